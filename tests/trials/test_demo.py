"""`retipair demo`: every stage is the command it prints, what is there is used again, and the page shows it all."""

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import Fill, write_prepared
from pages import Page
from refusals import Refused
from retipair.config import DemoConfig
from retipair.data.dataset import load_pair, read_dataset
from retipair.data.pair import load_image, save_image
from retipair.interfaces import cli
from retipair.interfaces.cli import main
from retipair.phantoms.cameras import BASE_CAMERAS
from retipair.runtime.errors import OccupiedError
from retipair.trials import demo
from retipair.vision.field_of_view import field_of_view

USUAL = demo.SETTINGS
QUICK = replace(
    USUAL,
    base="random:tiny-{system}",
    steps=dict.fromkeys(USUAL.steps, demo.Steps(3, 2)),
    phantoms=replace(USUAL.phantoms, amount=3, size=192, seed=3),
    training=replace(
        USUAL.training,
        **{"batch_size": 1, "val_every": 2, "log_every": 1, "augment_variants": 2, "unet_lora_rank": 4},
    ),
    amounts={"noise": 1, "from_data": 1},
)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SETTINGS", QUICK)
        yield


@pytest.fixture(scope="module")
def made(once: Callable[[str, Fill], Path]) -> Path:
    """What the demo leaves; read only."""

    def fill(out: Path) -> None:
        assert main(["demo", str(out)]) == 0

    return once("<b>a & b", fill)


def written(out: Path) -> dict[str, int]:
    """When each picture and each adapter in a folder was written."""
    files = [path for path in out.rglob("*") if path.suffix in (".png", ".safetensors")]
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in files if "sheet" not in path.name}


# The report


def test_the_report_is_of_this_demos_pairs(made: Path) -> None:
    scores = json.loads((made / "report/scores.json").read_text())
    kept = len(read_dataset(made / "pairs"))
    assert scores["sizes"].pop("generated") == 1
    assert sum(scores["sizes"].values()) == kept
    assert scores["provenance"]["base"] == "random:tiny-sdxl"
    assert [line["step"] for line in scores["training"]["training"]] == [1, 2, 3]
    assert {row["between"] for row in scores["layouts"]["rows"]} == {"nothing", "autoencoder"}


def test_what_a_user_typed_is_text_on_the_page(made: Path) -> None:
    page = Page(made / "report/report.html")
    assert made.name in page.text
    assert all(attributes == {} for attributes in page.all("b")), "ours, and not the folder's name"
    assert "<b>a & b" not in (made / "report/report.html").read_text()


# Stages


def test_each_stage_is_the_command_it_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (QUICK, USUAL):
        monkeypatch.setattr(demo, "SETTINGS", settings)
        for stage in demo.stages_of(DemoConfig(out=tmp_path / "a folder", system="sd15"), 256):
            verb, config = cli._parse(shlex.split(stage.command)[1:])
            assert verb.name == stage.verb.__name__
            assert config == stage.config


def test_the_base_has_not_seen_the_camera() -> None:
    assert demo.CAMERA not in BASE_CAMERAS


@pytest.mark.nightly
def test_a_second_time_uses_what_is_there(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made, tmp_path / "out")
    before = written(tmp_path / "out")
    assert main(["demo", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert written(tmp_path / "out") == before
    assert len(said.out.splitlines()[-2:]) == 2
    assert str(tmp_path / "out/report/report.html") in said.out.splitlines()[-2]
    assert demo.NEXT in said.out.splitlines()[-1]


@pytest.mark.slow  # the whole way once more
def test_the_other_base_shares_the_pairs(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "out")
    before = written(tmp_path / "out")
    assert main(["demo", str(tmp_path / "out"), "--system", "sd15"]) == 0
    after = written(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert all("sd15" in name for name in set(after) - set(before))
    assert "random:tiny-sd15" in Page(tmp_path / "out/report-sd15/report.html").text
    assert "random:tiny-sdxl" in Page(tmp_path / "out/report/report.html").text


# Refused


def test_out_must_be_a_demos(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    for out in (tmp_path / "file", tmp_path, tmp_path / "site"):
        line = refused("demo", out)
        assert (line.kind, line.path) == (OccupiedError, out)
    assert (tmp_path / "site" / "index.html").read_text() == "mine"


def test_a_missing_base_is_known_before_anything_is_drawn(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SETTINGS", replace(QUICK, base="tiny-nothing"))
    assert refused("demo", tmp_path / "out").setting == "base"
    assert not (tmp_path / "out").exists()


def test_a_demo_that_was_begun_otherwise_is_left_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SETTINGS", replace(QUICK, training=replace(QUICK.training, learning_rate=0.5)))
    before = written(made)
    assert main(["demo", str(made)]) == 2
    assert "or start again with another OUT" in capsys.readouterr().err.splitlines()[-1]
    assert written(made) == before


# Pairs as they lie on disk


def test_a_pair_has_the_mask_of_its_file_or_else_of_its_views(tmp_path: Path, made: Path) -> None:
    folder = write_prepared(tmp_path, ["train", "val"])
    left = np.zeros((128, 128), np.uint8)
    left[:, :64] = 255
    save_image(folder / "mask" / "eye0.png", left)
    pair = load_pair(read_dataset(folder)[0])
    assert (pair.mask == (left > 0)).all()
    assert (pair.cf == load_image(folder / "cf" / "eye0.png", "RGB")).all()
    [generated] = demo.evaluate_config(DemoConfig(out=made)).generated
    drawn = read_dataset(generated)[0]
    assert drawn.mask is None
    pair = load_pair(drawn)
    assert (pair.mask == (field_of_view(pair.cf) & field_of_view(pair.fa))).all()
