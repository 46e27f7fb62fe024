"""`retipair demo [OUT]`: the whole way on rendered eyes, by the commands one would type, and the report to look at.

Each stage is a command of its own and is printed before it runs. What an earlier demo left in OUT is used again.
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
from retipair.runtime.errors import UserError
from retipair.training.train import train

CAMERA, DISEASE = "teal", "vein_occlusion"
"""A look that the bundled bases have never seen: it is the adapter that has to learn it."""

Mode = Literal["noise", "from_data"]
SAVEDIRS: Mapping[Mode, str] = {"noise": "new", "from_data": "varied"}
REPORTS = {name: "report" if name == DemoConfig().system else f"report-{name}" for name in FAMILIES}
NEXT = "retipair prepare eyes pairs"


@dataclass(frozen=True)
class Steps:
    """Of training, and of drawing a pair."""

    training: int
    drawing: int


@dataclass(frozen=True)
class Settings:
    """How much of everything; where the files lie comes later. base: `{system}` stands in it; steps: by layout."""

    base: str
    steps: Mapping[str, Steps]
    phantoms: PhantomConfig
    training: TrainConfig
    drawing: GenerateConfig
    amounts: Mapping[Mode, int]


# The whole way in 6 minutes on two cores. Noise added in each step (ddpm) mends what earlier ones drew badly:
# recipes/README.md.
SETTINGS = Settings(
    base="tiny-{system}",
    # Squeezed, the image and a step's time are half as large.
    steps={"side_by_side": Steps(80, 50), "squeezed": Steps(160, 100)},
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
    """Run every stage that is not done yet; returns the report's path.

    Raises UserError, before anything is written, if OUT is not a demo's or the base is missing.
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
    """OUT is new, empty, or what a demo began: its phantoms come first."""
    check_folder_place(out)
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if there and ("phantoms" not in there or there - {"phantoms", "pairs", "results", *REPORTS.values()}):
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
                positional = setting.default is MISSING and setting.name not in ("name", "real")
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
        Stage("judge the new eyes beside the rendered ones", evaluate, evaluate_config(config)),
    ]


def base_of(config: DemoConfig) -> str:
    """Name the base of this demo."""
    return SETTINGS.base.format(system=config.system)


def steps_of(config: DemoConfig) -> Steps:
    """Return the steps of this demo's training and drawing."""
    return SETTINGS.steps[FAMILIES[config.system].layout]


def train_config(config: DemoConfig) -> TrainConfig:
    """The training of this demo."""
    data, results = config.out / "pairs", config.out / "results"
    steps = steps_of(config).training
    return replace(SETTINGS.training, data=data, base=base_of(config), results=results, max_steps=steps)


def generate_config(config: DemoConfig, mode: Mode) -> GenerateConfig:
    """What this demo draws with its adapter."""
    return replace(
        SETTINGS.drawing,
        mode=mode,
        steps=steps_of(config).drawing,
        savedir=SAVEDIRS[mode],
        amount=SETTINGS.amounts[mode],
        base=base_of(config),
        results=config.out / "results",
    )


def evaluate_config(config: DemoConfig) -> EvaluateConfig:
    """What this demo judges: the new eyes, beside those that were trained on and held out."""
    results, name = config.out / "results", SETTINGS.training.name
    return EvaluateConfig(
        real=config.out / "pairs",
        generated=results_folder(results, config.system, "_preds") / name / SAVEDIRS["noise"],
        out=config.out / REPORTS[config.system],
        base=base_of(config),
        adapter=results_folder(results, config.system) / name,
    )
