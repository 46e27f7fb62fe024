"""`retipair demo [OUT]`: the whole way on rendered eyes, by the commands one would type, and a page to look at.

Each stage is a command of its own and is printed before it runs. What an earlier demo left in OUT is used again.
"""

import io
import json
import shlex
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from retipair import __version__
from retipair.config import DemoConfig, GenerateConfig, PhantomConfig, PrepareConfig, TrainConfig
from retipair.data.dataset import content_sha256, load_pair, read_dataset
from retipair.data.manifest import GeneratedPair, PreparedPair, Record, read_manifest
from retipair.data.pair import chessboard, load_image, px_at_512
from retipair.data.sources import find_pairs
from retipair.errors import UserError
from retipair.generate import generate
from retipair.metrics.consistency import Consistency, mean, set_consistency
from retipair.metrics.measured import measure
from retipair.model.base import Base, open_base
from retipair.parallel import in_order
from retipair.phantom import phantom
from retipair.prepare import prepare
from retipair.progress import console, watched
from retipair.run import read_json, results_folder, write_json
from retipair.train import train

CAMERA, DISEASE = "teal", "vein_occlusion"
"""A look that the bundled bases have never seen: it is the adapter that has to learn it."""

Mode = Literal["noise", "from_data"]
SAVEDIRS: Mapping[Mode, str] = {"noise": "new", "from_data": "varied"}
PAGES = {"sdxl": "index.html", "sd15": "index-sd15.html"}
NEXT = "retipair prepare eyes pairs"
SHOWN = 4
"""Pairs shown before and after alignment; the contact sheet has them all."""
VIEW = 256
"""px of a view on the page"""

_INK = "#010203"  # stands for the colour of the page's text, light or dark
_ON_THE_PAGE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retipair",
    "font.family": "sans-serif",
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class Steps:
    """Of training, and of drawing a pair."""

    training: int
    drawing: int


@dataclass(frozen=True)
class Settings:
    """How much of everything, by system where that differs; where the files lie comes later."""

    bases: Mapping[str, str]
    steps: Mapping[str, Steps]
    phantoms: PhantomConfig
    training: TrainConfig
    drawing: GenerateConfig
    amounts: Mapping[Mode, int]


# The whole way in 6 minutes on two cores. Noise added in each step (ddpm) mends what earlier ones drew badly:
# recipes/README.md.
SETTINGS = Settings(
    bases={"sdxl": "tiny-sdxl", "sd15": "tiny-sd15"},
    steps={"sdxl": Steps(80, 50), "sd15": Steps(160, 100)},  # squeezed, the image and a step's time are half as large
    phantoms=PhantomConfig(out=Path(), amount=24, size=512, camera=CAMERA, disease=DISEASE, unregistered=True),
    training=TrainConfig(
        name="demo",
        batch_size=4,
        learning_rate=1e-3,
        unet_lora_rank=16,
        lora_targets="all",
        offset_noise_strength=0.0,  # the base knows none: with it all eyes come out of one colour
        half_clean_fraction=0.3,  # brings the look a little nearer: recipes/README.md
        val_every=80,  # of steps that differ by less than validation can tell, the last is the best
        log_every=10,
        num_samples=0,  # pairs are drawn afterwards
        resume=True,
    ),
    drawing=GenerateConfig(name="demo"),
    amounts={"noise": 8, "from_data": 4},
)


def demo(config: DemoConfig) -> Path:
    """Run every stage that is not done yet and write the page; returns its path.

    Raises UserError, before anything is written, if OUT is not a demo's or the base is missing.
    """
    _check_out(config.out)
    base = open_base(SETTINGS.bases[config.system])
    stages = stages_of(config, base.view_size)
    for number, stage in enumerate(stages, start=1):
        console.print(f"\n{number} of {len(stages)}: {stage.purpose}\n  {stage.command}", markup=False)
        stage.run()
    console.print("\nThe page: how well both views agree, and what was drawn", markup=False)
    page = write_page(config, base, [stage.command for stage in stages])
    print(f"Look at {page.resolve()}\nNext, with your own pairs in the folder eyes: {NEXT}")
    return page


def _check_out(out: Path) -> None:
    """OUT is new, empty, or what a demo began: its phantoms come first."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose another OUT")
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if there and ("phantoms" not in there or there - {"phantoms", "pairs", "results", *PAGES.values()}):
        raise UserError(f"{out}: holds other files; choose a new or empty folder for OUT")


# Stages


@dataclass(frozen=True)
class Stage:
    """A command with its settings, and what it is for."""

    purpose: str
    verb: Callable[[Any], object]
    config: Any

    @property
    def command(self) -> str:
        """What one would type for the same: the settings that are not the defaults."""
        words = ["retipair", self.verb.__name__]
        for setting in fields(self.config):
            value = getattr(self.config, setting.name)
            if value != setting.default:
                positional = setting.default is MISSING and setting.name != "name"
                flag = [] if positional else ["-n" if setting.name == "name" else f"--{setting.name}"]
                words += flag if value is True else [*flag, str(value)]
        return shlex.join(words)

    def run(self) -> None:
        """Do what is not done yet. What was begun otherwise, by another version say, cannot be gone on with."""
        try:
            self.verb(self.config)
        except UserError as error:
            raise UserError(f"{error}; or start afresh with another OUT") from None


def stages_of(config: DemoConfig, size: int) -> list[Stage]:
    """The whole way; size: side of the views that the base draws, px."""
    looks = replace(SETTINGS.phantoms, out=config.out / "phantoms")
    aligning = PrepareConfig(raw=looks.out / "raw", out=config.out / "pairs", size=size)
    new, varied = (generate_config(config, mode) for mode in SAVEDIRS)
    return [
        Stage(f"render {looks.amount} eyes of a camera and a disease the base has not seen", phantom, looks),
        Stage("align the views and crop them to the field they share", prepare, aligning),
        Stage("train an adapter on the aligned pairs", train, train_config(config)),
        Stage(f"draw {new.amount} new eyes from noise", generate, new),
        Stage(f"vary {varied.amount} of the training pairs", generate, varied),
    ]


def train_config(config: DemoConfig) -> TrainConfig:
    """The training of this demo."""
    base, data = SETTINGS.bases[config.system], config.out / "pairs"
    steps = SETTINGS.steps[config.system].training
    return replace(SETTINGS.training, data=data, base=base, results=config.out / "results", max_steps=steps)


def generate_config(config: DemoConfig, mode: Mode) -> GenerateConfig:
    """What this demo draws with its adapter."""
    return replace(
        SETTINGS.drawing,
        mode=mode,
        steps=SETTINGS.steps[config.system].drawing,
        savedir=SAVEDIRS[mode],
        amount=SETTINGS.amounts[mode],
        base=SETTINGS.bases[config.system],
        results=config.out / "results",
    )


# The page


@dataclass(frozen=True)
class Picture:
    """An image within the page: a data URI, what it shows, and its sides in px."""

    source: str
    title: str
    height: int
    width: int


@dataclass(frozen=True)
class Agreement:
    """How well the views of a set of pairs agree: as they are, and each CF with the FA of the next pair."""

    name: str
    count: int
    matched: Consistency
    mispaired: Consistency


def write_page(config: DemoConfig, base: Base, commands: Sequence[str]) -> Path:
    """Write the page from what the stages left, whole or not at all; returns its path."""
    template = files("retipair").joinpath("demo.html.j2").read_text(encoding="utf-8")
    pairs, drawn = config.out / "pairs", {mode: _drawn(config, mode) for mode in SAVEDIRS}
    aligned = _prepared(pairs)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    text = page.render(
        version=__version__,
        base=base.source,
        layout=base.system.layout.replace("_", " "),
        camera=CAMERA,
        disease=DISEASE.replace("_", " "),
        asked=SETTINGS.phantoms.amount,
        commands=commands,
        next=NEXT,
        out=config.out,
        kept=len(aligned),
        residual_px=median(map(_residual_px, aligned)),
        before_and_after=_before_and_after(config),
        curve=Markup(training_curve(_run(config) / "metrics.jsonl")),  # ours, and nothing a user typed is in it
        new=[_new(drawn["noise"], record) for record in _generated(drawn["noise"])],
        varied=[_varied(pairs, drawn["from_data"], record) for record in _generated(drawn["from_data"])],
        agreements=[
            _agreement(name, folder, config.out / "results" / "agreements")
            for name, folder in (
                ("rendered pairs, aligned", pairs),
                ("new pairs, from noise", drawn["noise"]),
                ("varied pairs, from data", drawn["from_data"]),
            )
        ],
    )
    path = config.out / PAGES[config.system]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    return partial.replace(path)


def _run(config: DemoConfig) -> Path:
    return results_folder(config.out / "results", config.system) / SETTINGS.training.name


def _drawn(config: DemoConfig, mode: Mode) -> Path:
    return results_folder(config.out / "results", config.system, "_preds") / SETTINGS.training.name / SAVEDIRS[mode]


def _prepared(pairs: Path) -> list[PreparedPair]:
    return [record for record in read_manifest(pairs) if isinstance(record, PreparedPair)]


def _generated(folder: Path) -> list[GeneratedPair]:
    return [record for record in read_manifest(folder) if isinstance(record, GeneratedPair)]


def _residual_px(record: PreparedPair) -> float:
    """How far apart the pair's key points remain (every phantom has some), px at 512."""
    assert record.residual_px is not None
    return px_at_512(record.residual_px, record.size)


def _before_and_after(config: DemoConfig) -> list[tuple[Picture, Picture]]:
    """The first pairs as they came and as they were aligned."""
    raw = {pair.id: pair for pair in find_pairs(config.out / "phantoms" / "raw")}
    shown = []
    for record in _prepared(config.out / "pairs")[:SHOWN]:
        before = _strip(load_image(raw[record.id].cf, "RGB"), load_image(raw[record.id].fa, "L"))
        title = f"{record.id}, aligned: residual {_residual_px(record):.1f} px, consistency {record.consistency:.2f}"
        after = _strip_of(config.out / "pairs", record)
        shown.append((_picture(f"{record.id} as it came", before), _picture(title, after)))
    return shown


def _new(folder: Path, record: GeneratedPair) -> Picture:
    return _picture(f"{record.id}: consistency {record.consistency:.2f}", _strip_of(folder, record))


def _varied(pairs: Path, folder: Path, record: GeneratedPair) -> Picture:
    """The pair that was varied above its variation."""
    source = next(one for one in _prepared(pairs) if one.id == record.source_id)
    strips = [_strip_of(pairs, source), _strip_of(folder, record)]
    title = f"{source.id}, and below it its variation: consistency {record.consistency:.2f}"
    return _picture(title, np.concatenate(strips))


def _strip_of(folder: Path, record: Record) -> np.ndarray:
    return _strip(load_image(folder / record.cf, "RGB"), load_image(folder / record.fa, "L"))


def _strip(cf: np.ndarray, fa: np.ndarray) -> np.ndarray:
    """CF, FA and the checkerboard of both, side by side: (VIEW, 3 VIEW, 3) uint8."""
    views = (cf, fa, chessboard(cf, fa))
    small = [Image.fromarray(view).convert("RGB").resize((VIEW, VIEW), Image.Resampling.BOX) for view in views]
    return np.concatenate([np.asarray(view) for view in small], axis=1)


def _picture(title: str, image: np.ndarray) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=88, comment="Synthetic: not a photograph, not for clinical use")
    return Picture(f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}", title, *image.shape[:2])


def _agreement(name: str, folder: Path, kept: Path) -> Agreement:
    """Of the pairs of a folder. Half a second a pair: what this version measured is kept by the pairs' fingerprint."""
    entries = read_dataset(folder)
    path = kept / f"{content_sha256(entries)[:16]}-{__version__}.json"
    if not path.is_file():
        seen = in_order(measure, map(load_pair, watched(f"Measuring {name}", entries, len(entries))))
        path.parent.mkdir(exist_ok=True)
        write_json(path, {part: asdict(mean(values)) for part, values in vars(set_consistency(seen)).items()})
    means = {part: Consistency(**values) for part, values in read_json(path).items()}
    return Agreement(name, len(entries), **means)


def training_curve(metrics: Path) -> str:
    """The mean squared error over the steps, in training and on eyes held out, as an SVG element."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    with rc_context(_ON_THE_PAGE):
        figure = Figure(figsize=(5, 2.8), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="mean squared error")
        for kind, key, style in (("training", "mse", "-"), ("validation", "loss", "o-")):
            steps, values = zip(*((line["step"], line[key]) for line in lines if line["kind"] == kind), strict=True)
            axes.plot(steps, values, style, label=kind)
        axes.legend()
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """A figure as an SVG element, the same for the same figure."""
    stream = io.StringIO()
    figure.savefig(
        stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")
