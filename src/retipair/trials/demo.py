"""`retipair demo [OUT]`: run phantom, prepare, train, generate and evaluate on rendered eyes, and write a report.

Each stage of the demo runs one command, and prints it first. Results of an earlier demo in OUT are reused.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from retipair.config import DemoConfig, EvaluateConfig, GenerateConfig, PhantomConfig, PrepareConfig, TrainConfig
from retipair.evaluation.evaluate import evaluate
from retipair.evaluation.report import PAGE_NAME
from retipair.generation.generate import generate
from retipair.models.base import open_base
from retipair.models.families import FAMILIES
from retipair.phantoms.phantom import phantom
from retipair.preparation.prepare import prepare
from retipair.runs.run_dir import results_folder
from retipair.runtime.atomic_io import check_folder_place
from retipair.runtime.console import console
from retipair.runtime.errors import OccupiedError, UserError
from retipair.training.train import train

CAMERA, DISEASE = "teal", "vein_occlusion"
"""The bundled bases were trained without this camera and this disease, so the adapter has to learn both."""

PHOTOGRAPH = Path(__file__).parent / "retina.jpg"
"""A real fundus photograph in the public domain; README.md beside it names its source."""

Mode = Literal["noise", "from_data"]
SAVEDIRS: Mapping[Mode, str] = {"noise": "new", "from_data": "varied"}
ANGIOGRAM = "angiogram"
"""The name of the folder of the angiogram that is drawn for the photograph."""
REPORTS = {name: "report" if name == DemoConfig().system else f"report-{name}" for name in FAMILIES}
NEXT = "retipair prepare eyes pairs"


@dataclass(frozen=True)
class Steps:
    """The number of training steps, and the number of denoising steps per generated pair."""

    training: int
    generation: int


@dataclass(frozen=True)
class Settings:
    """The settings of the commands of the demo, apart from paths.

    base: the name of the base, in which `{system}` stands for "sdxl" or "sd15".
    steps: the numbers of steps, by the name of the layout.
    phantoms, training, generation: the settings of the commands `phantom`, `train` and `generate`.
    amounts: the number of pairs to generate, by mode.
    """

    base: str
    steps: Mapping[str, Steps]
    phantoms: PhantomConfig
    training: TrainConfig
    generation: GenerateConfig
    amounts: Mapping[Mode, int]


# The demo takes 6 minutes on two cores. It uses the default sampler, ddpm, which adds noise in each step; this corrects
# errors of earlier steps (recipes/README.md).
SETTINGS = Settings(
    base="tiny-{system}",
    # "squeezed" joint images have half the pixels of "side_by_side" ones, and a training step takes half as long.
    # 100 denoising steps bring their pairs closer to real ones than 50 (recipes/README.md).
    steps={"side_by_side": Steps(80, GenerateConfig.steps), "squeezed": Steps(160, 100)},
    phantoms=PhantomConfig(out=Path(), amount=24, size=512, camera=CAMERA, disease=DISEASE, unregistered=True),
    training=TrainConfig(
        name="demo",
        batch_size=4,
        learning_rate=1e-3,
        unet_lora_rank=16,
        lora_targets="all",
        # The base was trained without offset noise. In so short a training, offset noise would make all generated eyes
        # have the same colour.
        offset_noise_strength=0.0,
        half_clean_fraction=0.3,  # improves the generated images a little (recipes/README.md)
        val_every=80,  # rarely: validation cannot tell which step of so short a training is best
        log_every=10,
        num_samples=0,  # no samples during the training; pairs are generated after it
        resume=True,
    ),
    generation=GenerateConfig(name="demo"),
    amounts={"noise": 8, "from_data": 4},
)


def demo(config: DemoConfig) -> Path:
    """Run every stage and return the path of the report. A stage that is complete already reuses its results.

    Raises UserError, before anything is written, if OUT is neither empty nor the folder of a demo, or if the
    base is missing.
    """
    _check_out(config.out)
    base = open_base(base_of(config))
    stages = stages_of(config, base.view_size)
    for number, stage in enumerate(stages, start=1):
        console.print(f"\n{number} of {len(stages)}: {stage.purpose}\n  {stage.command}")
        stage.run()
    print(f"Next, with your own pairs in the folder eyes: {NEXT}")
    return config.out / REPORTS[config.system] / PAGE_NAME


def _check_out(out: Path) -> None:
    """Raise UserError unless OUT is new, empty, or the folder of a demo, which always has phantoms/."""
    check_folder_place(out)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if names and ("phantoms" not in names or names - {"phantoms", "pairs", "results", *REPORTS.values()}):
        raise OccupiedError(out, "neither empty nor the folder of a demo; choose a new or empty folder for OUT")


# Stages


@dataclass(frozen=True)
class Stage:
    """A command with its settings and its purpose."""

    purpose: str
    verb: Callable[[Any], object]
    config: Any

    @property
    def command(self) -> str:
        """The equivalent command line, with those settings that differ from their defaults."""
        words = ["retipair", self.verb.__name__]
        for setting in fields(self.config):
            value = getattr(self.config, setting.name)
            if value != setting.default:
                positional = setting.default is MISSING and setting.name not in ("name", "real")
                flag = [] if positional else ["-n" if setting.name == "name" else f"--{setting.name}"]
                values = value if isinstance(value, tuple) else (value,)
                words += flag if value is True else [*flag, *map(str, values)]
        return shlex.join(words)

    def run(self) -> None:
        """Run the command, or resume it if an earlier run was interrupted.

        Raises UserError if the earlier run had different settings or used a different version of retipair.
        """
        try:
            self.verb(self.config)
        except UserError as error:
            raise UserError(f"{error}; or start again with another OUT") from None


def stages_of(config: DemoConfig, size: int) -> list[Stage]:
    """Return all stages of the demo.

    size: the side of the views that the base generates, in px.
    """
    phantoms = replace(SETTINGS.phantoms, out=config.out / "phantoms")
    alignment = PrepareConfig(raw=phantoms.out / "raw", out=config.out / "pairs", size=size)
    new, varied = (generate_config(config, mode) for mode in SAVEDIRS)
    return [
        Stage(
            f"render {phantoms.amount} eyes with a camera and a disease the base was not trained on", phantom, phantoms
        ),
        Stage(
            "align the views and crop them to their common field of view (some landmarks are wrong on purpose)",
            prepare,
            alignment,
        ),
        Stage("train an adapter on the aligned pairs", train, train_config(config)),
        Stage(f"generate {new.amount} new pairs from noise", generate, new),
        Stage(f"generate {varied.amount} variations of training pairs", generate, varied),
        Stage(
            "draw an angiogram for a real photograph (Mikael Häggström, CC0), with the base alone",
            generate,
            angiogram_config(config),
        ),
        Stage("evaluate the new pairs against the rendered pairs", evaluate, evaluate_config(config)),
    ]


def base_of(config: DemoConfig) -> str:
    """Return the name of the base of this demo."""
    return SETTINGS.base.format(system=config.system)


def steps_of(config: DemoConfig) -> Steps:
    """Return the numbers of training and denoising steps of this demo."""
    return SETTINGS.steps[FAMILIES[config.system].layout]


def train_config(config: DemoConfig) -> TrainConfig:
    """Return the settings for training."""
    data, results = config.out / "pairs", config.out / "results"
    steps = steps_of(config).training
    return replace(SETTINGS.training, data=data, base=base_of(config), results=results, max_steps=steps)


def generate_config(config: DemoConfig, mode: Mode) -> GenerateConfig:
    """Return the settings for generating pairs with the adapter."""
    return replace(
        SETTINGS.generation,
        mode=mode,
        steps=steps_of(config).generation,
        savedir=SAVEDIRS[mode],
        amount=SETTINGS.amounts[mode],
        base=base_of(config),
        results=config.out / "results",
    )


def angiogram_config(config: DemoConfig) -> GenerateConfig:
    """Return the settings for drawing an angiogram. The adapter is not used: it was trained on diseased eyes."""
    return GenerateConfig(
        mode="cf2fa",
        steps=steps_of(config).generation,
        data=PHOTOGRAPH,
        base=base_of(config),
        out=_generated(config, ANGIOGRAM),
    )


def _generated(config: DemoConfig, savedir: str) -> Path:
    """Return the folder of a set of generated pairs."""
    return results_folder(config.out / "results", config.system, "_preds") / SETTINGS.training.name / savedir


def evaluate_config(config: DemoConfig) -> EvaluateConfig:
    """Return the settings for evaluating the new pairs against the training and held-out pairs."""
    results, name = config.out / "results", SETTINGS.training.name
    return EvaluateConfig(
        real=config.out / "pairs",
        generated=(_generated(config, SAVEDIRS["noise"]),),
        drawn_views=_generated(config, ANGIOGRAM),
        out=config.out / REPORTS[config.system],
        base=base_of(config),
        adapter=results_folder(results, config.system) / name,
    )
