"""Small real things to test on: prepared pairs, and bases of both systems built from the real classes."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands started as processes, beside the other tests
if not os.environ.get("RETIPAIR_TEST_GPU"):  # `make test-gpu` sets it; elsewhere bytes are those of the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from cached import cached
from eyes import draw_pair
from judging import SPLITS, Evaluated, write_generated, write_image_model, write_run
from refusals import Refusal, Refused
from retipair.data.manifest import PreparedPair, write_manifest
from retipair.data.pair import Pair, save_image
from retipair.evaluation import measurements, reconstruction, scoring
from retipair.interfaces import cli
from retipair.interfaces.cli import main
from retipair.metrics.views import PairViews, prepare_views
from retipair.models.base import Base, open_base
from retipair.preparation import alignment
from retipair.runtime.errors import UserError
from retipair.runtime.library_logging import quiet_libraries
from retipair.vision.field_of_view import field_of_view

VIEW = 128
"""px; what the tiny bases were made for"""
FAMILIES = ("sdxl", "sd15")
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bytes on the CPU depend on the number of threads, and tiny networks are quickest with one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_mps() -> Iterator[None]:
    """As CUDA's, a Mac's GPU is left out: what is tested byte for byte is the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mps, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _fewer_pairs_in_reports() -> Iterator[None]:
    """One pair through the layouts shows what a dozen do, and is measured five times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruction, "MOST", 1)
        patch.setattr(scoring, "SHOWN", 1)
        yield


def _pixels_of(*pairs: PairViews) -> object:
    """What decides their figures, without what they have computed so far."""
    return [(pair.cf.pixels, pair.fa.pixels, pair.mask) for pair in pairs]


Fill = Callable[[Path], object]


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(autouse=True, scope="session")
def _align_and_measure_equal_views_once(shared_root: Path) -> Iterator[None]:
    """Cache the two slow pure functions behind `prepare` and `evaluate`: most tests use the same few eyes.

    Tests of the functions themselves call them where they are defined; commands that tests start as processes, and
    their workers, are not affected.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "align", cached(alignment.align, shared_root / "align", lambda *given: given))
        for name in ("compute_pair_metrics", "compute_cross_metrics"):
            patch.setattr(measurements, name, cached(getattr(measurements, name), shared_root / name, _pixels_of))
        yield


@pytest.fixture(scope="session")
def once(shared_root: Path) -> Callable[[str, Fill], Path]:
    """(name, fill) -> a folder that whichever worker asks first fills, for all of them; read only."""

    def folder(name: str, fill: Fill) -> Path:
        path, done = shared_root / name, shared_root / f"{name}.done"
        with FileLock(shared_root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # what another worker left that failed
                fill(path)
                done.touch()
        return path

    return folder


@pytest.fixture(params=FAMILIES)
def system(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def prepared(once: Callable[[str, Fill], Path]) -> Path:
    """A prepared folder: three eyes to train on, one to validate, one to test."""
    return once("prepared", lambda folder: write_prepared(folder, ["train", "val", "train", "test", "train"]))


def write_prepared(folder: Path, splits: list[str], captions: dict[int, str] | None = None) -> Path:
    """A prepared folder of synthetic eyes, one for each entry of `splits`."""
    records = []
    for number, split in enumerate(splits):
        cf, fa = draw_pair(number, VIEW)
        name = f"eye{number}"
        for view, image in (("cf", cf), ("fa", fa), ("mask", np.full((VIEW, VIEW), 255, np.uint8))):
            save_image(folder / view / f"{name}.png", image)
        records.append(prepared_record(name, split, (captions or {}).get(number)))
    write_manifest(folder, records)
    return folder


def prepared_record(name: str, split: str, caption: str | None = None) -> PreparedPair:
    return PreparedPair(
        id=name,
        eye=name,
        patient=None,
        split=split,  # type: ignore[arg-type]
        cf=f"cf/{name}.png",
        fa=f"fa/{name}.png",
        mask=f"mask/{name}.png",
        size=VIEW,
        caption=caption,
        source_sha256="0" * 64,
        fa_to_cf=np.eye(3).tolist(),
        points=[],
        inliers=None,
        residual_px=None,
        consistency_before=0.5,
        consistency=0.5,
    )


@pytest.fixture(scope="session")
def base_folder(once: Callable[[str, Fill], Path]) -> Callable[[str], Path]:
    """system -> a diffusers folder with a tiny base of it, as the library itself saves one."""

    def fill(system: str, folder: Path) -> None:
        save_base(open_base(f"random:tiny-{system}"), folder)

    return lambda system: once(f"base-{system}", lambda folder: fill(system, folder))


def save_base(base: Base, folder: Path) -> None:
    """Write a base as a whole diffusers folder."""
    pipeline = base.text_pipeline()
    pipeline.register_modules(unet=base.unet(), vae=base.vae())  # its constructor would rewrite a small UNet's config
    with quiet_libraries():
        pipeline.save_pretrained(str(folder))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Run a command that must be refused: status 2, one line, which is returned; warnings may stand before it."""
    errors: list[UserError] = []

    def execute(arguments: Sequence[str], original: Callable[[Sequence[str]], None] = cli.execute) -> None:
        try:
            original(arguments)
        except UserError as error:
            errors.append(error)
            raise

    monkeypatch.setattr(cli, "execute", execute)

    def run(*arguments: object) -> Refusal:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        printed = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        lines = [line for line in printed if not line.startswith("warning: ")]
        assert len(lines) == 1, printed
        refusal = Refusal(lines[0])
        refusal.error = errors.pop() if errors else None  # None: an OSError, which the command line explains
        return refusal

    return run


TRAIN_QUICKLY = [
    *("--max_steps", "4", "--val_every", "2", "--log_every", "1", "--num_samples", "1", "--sample_steps", "2"),
    *("--augment_variants", "2", "--unet_lora_rank", "4", "--unet_lora_alpha", "4"),
]


def train_command(name: str, base: object, data: Path, results: Path, *more: object) -> list[str]:
    """A short training as one would type it."""
    flags = ["--base", base, "--data", data, "--results", results]
    return [str(part) for part in ("train", "-n", name, *flags, *TRAIN_QUICKLY, *more)]


@pytest.fixture(scope="session")
def trained(
    once: Callable[[str, Fill], Path], base_folder: Callable[[str], Path], prepared: Path
) -> Callable[[str], Path]:
    """system -> a results folder with a short run "exp" in it; read only."""

    def fill(system: str, results: Path) -> None:
        assert main(train_command("exp", base_folder(system), prepared, results)) == 0

    return lambda system: once(f"trained-{system}", lambda results: fill(system, results))


# --- Pairs to measure: views of synthetic eyes, drawn and measured once


def drawn(seed: int, size: int = 512) -> Pair:
    cf, fa = draw_pair(seed, size)
    return Pair(cf, fa, field_of_view(cf) & field_of_view(fa))


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return [drawn(seed) for seed in range(8)]


@pytest.fixture(scope="session")
def measured(pairs: list[Pair]) -> list[PairViews]:
    return [prepare_views(pair) for pair in pairs]


@pytest.fixture(scope="session")
def black() -> Pair:
    """What a broken model may draw."""
    return Pair(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64), bool))


@pytest.fixture(scope="session")
def evaluated(once: Callable[[str, Fill], Path]) -> Evaluated:
    """Enough pairs for every part of the report, judged with everything that evaluate can be given; read only."""

    def fill(folder: Path) -> None:
        write_prepared(folder / "real", SPLITS)
        write_generated(folder / "generated", 6)
        write_run(folder / "run")
        write_image_model(folder / "dino")
        assert main(command_of(folder)) == 0

    def command_of(folder: Path) -> list[str]:
        flags = {
            "real": "real",
            "generated": "generated",
            "out": "out",
            "adapter": "run/best_checkpoint",
            "deep": "dino",
        }
        command = ["evaluate", *(word for flag, name in flags.items() for word in (f"--{flag}", str(folder / name)))]
        return [*command, "--base", "random:tiny-sdxl"]

    folder = once("evaluated", fill)
    return Evaluated(folder / "real", folder / "generated", folder / "out", command_of(folder))
