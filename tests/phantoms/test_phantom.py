"""`retipair phantom`: folders that prepare and train take, the truth beside them, and runs that go on when killed."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import train_command
from eyes import apply
from killing import Death, kill_all
from refusals import Refused, raises_file
from retipair.data.dataset import read_dataset
from retipair.data.manifest import PreparedPair, read_manifest
from retipair.data.pair import load_image
from retipair.data.sources import find_pairs
from retipair.interfaces.cli import main
from retipair.phantoms import phantom as verb
from retipair.phantoms.cameras import CAMERAS
from retipair.phantoms.lesions import DISEASES
from retipair.phantoms.truth import LAYERS, Truth, read_truth
from retipair.preparation.state import STATE_NAME
from retipair.registration.estimate import register_points
from retipair.registration.landmarks import Landmarks, read_points
from retipair.registration.warp import View
from retipair.runtime.errors import MissingError, OccupiedError, UserError

SIZE = 64


def command(out: Path, *more: object) -> list[str]:
    return [str(part) for part in ("phantom", out, "--size", SIZE, "--amount", 3, "--seed", 4, *more)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs; read only."""
    out = tmp_path_factory.mktemp("registered") / "out"
    assert main(command(out)) == 0
    return out


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three raw pairs; read only."""
    out = tmp_path_factory.mktemp("raw") / "out"
    assert main(command(out, "--unregistered")) == 0
    return out


def test_registered_phantoms_are_a_prepared_folder(registered: Path) -> None:
    names = {path.name for path in registered.iterdir()}
    assert names == {"cf", "fa", "mask", "truth", "manifest.jsonl", "contact_sheet.png", ".phantom.json"}
    records = list(read_manifest(registered))
    assert [record.id for record in records] == ["0001", "0002", "0003"]
    for record in records:
        assert isinstance(record, PreparedPair)
        cf, fa, mask = (Image.open(registered / path) for path in (record.cf, record.fa, record.mask))
        assert (cf.mode, fa.mode, mask.mode) == ("RGB", "L", "L")
        assert cf.size == fa.size == mask.size == (SIZE, SIZE) == (record.size, record.size)
        assert set(np.unique(mask)) == {0, 255}
        assert not np.asarray(cf)[np.asarray(mask) == 0].any()
        assert (record.fa_to_cf, record.points, record.inliers) == (np.eye(3).tolist(), [], None)
    assert sorted(record.split for record in records if isinstance(record, PreparedPair)) == ["train", "train", "val"]


def test_the_truth_lies_beside(registered: Path, raw: Path) -> None:
    for folder in (registered, raw):
        for number in (1, 2, 3):
            here = folder / "truth" / f"{number:04d}"
            assert {path.stem for path in here.glob("*.png")} == set(LAYERS)
            truth = read_truth(here / "truth.json")
            assert (truth.id, truth.eye, truth.seed) == (here.name, number, 4)
            assert (truth.fa_to_cf == np.eye(3).tolist()) == (folder == registered)
            assert len(truth.wrong_points) == (0 if folder == registered else 2)
            assert all((folder / path).is_file() for path in truth.files_sha256)
            assert set(json.loads((here / "truth.json").read_text())) == {field.name for field in fields(Truth)}
    mask, field = (registered / path for path in ("mask/0001.png", "truth/0001/field.png"))
    assert (load_image(mask, "L") == load_image(field, "L")).all()


def test_a_truth_of_another_shape_is_refused(registered: Path, tmp_path: Path) -> None:
    values = json.loads((registered / "truth/0001/truth.json").read_text())
    for broken in ("", "[]", "{}", json.dumps({**values, "more": 1}), json.dumps({**values, "eye": "1"})):
        (tmp_path / "truth.json").write_text(broken)
        with pytest.raises(UserError, match="truth.json"):
            read_truth(tmp_path / "truth.json")


def test_every_picture_says_that_it_is_rendered(registered: Path, raw: Path) -> None:
    pictures = [*registered.rglob("*.png"), *raw.rglob("*.png")]
    assert len(pictures) == 3 * (3 + len(LAYERS)) + 1 + 3 * (2 + len(LAYERS))
    for path in pictures:
        assert "not for clinical use" in Image.open(path).text["Synthetic"]  # type: ignore[attr-defined]


def test_raw_phantoms_are_in_the_original_layout(raw: Path) -> None:
    assert {path.name for path in raw.iterdir()} == {"raw", "truth", ".phantom.json"}
    pairs = find_pairs(raw / "raw")
    assert [pair.id for pair in pairs] == ["0001", "0002", "0003"]
    for pair in pairs:
        assert pair.cf_points is not None
        assert pair.fa_points is not None
        truth = read_truth(raw / "truth" / pair.id / "truth.json")
        on_cf, on_fa = read_points(pair.cf_points), read_points(pair.fa_points)
        assert len(on_cf) == len(on_fa) == 20
        apart = np.linalg.norm(apply(np.array(truth.fa_to_cf), on_fa) - on_cf, axis=1)
        assert set(np.argsort(apart)[-2:]) == set(truth.wrong_points)


def test_the_same_seed_is_the_same_bytes_and_the_amount_changes_none(registered: Path, tmp_path: Path) -> None:
    assert main(command(tmp_path / "again")) == 0
    assert content(tmp_path / "again") == content(registered)
    assert main(command(tmp_path / "two", "--amount", 2)) == 0
    fewer, more = content(tmp_path / "two"), content(registered)
    assert set(fewer) == {path for path in more if "0003" not in path}
    for path in set(fewer) - {"manifest.jsonl", "contact_sheet.png"}:
        assert fewer[path] == more[path]
    assert main(command(tmp_path / "two")) == 0  # the amount may be raised
    assert content(tmp_path / "two") == more
    assert main(command(tmp_path / "two", "--amount", 2)) == 0  # what exists is kept
    assert content(tmp_path / "two") == more


@pytest.mark.nightly
def test_any_number_of_cores_draws_the_same(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (1, 3):
        monkeypatch.setattr("retipair.phantoms.phantom.available_cores", lambda cores=cores: cores)
        assert main(command(tmp_path / str(cores))) == 0
        assert content(tmp_path / str(cores)) == content(registered)


@pytest.mark.nightly
def test_a_killed_run_goes_on_to_the_same_bytes(registered: Path, raw: Path, tmp_path: Path) -> None:
    places = [("save_image", 14), ("write_manifest", 1)]
    deaths = [Death(command(tmp_path / place), f"retipair.phantoms.phantom:{place}", call) for place, call in places]
    deaths.append(Death(command(tmp_path / "raw", "--unregistered"), "retipair.phantoms.phantom:write_truth", 2))
    kill_all(deaths)
    for death in deaths:
        assert main(death.command) == 0
        assert content(Path(death.command[1])) == content(raw if "--unregistered" in death.command else registered)


@pytest.mark.parametrize("place", ["draw_phantom", "save_image", "contact_sheet", "write_manifest"])
def test_raising_the_amount_keeps_the_manifest_until_the_new_one_is_ready(
    place: str, registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(registered, out)
    before = content(out)
    if place == "write_manifest":
        del before["contact_sheet.png"]  # the new one is written just before
    with monkeypatch.context() as patch:
        patch.setattr(verb, place, _interrupt)
        assert main(command(out, "--amount", 5)) == 130
    assert {path: content(out)[path] for path in before} == before
    assert len(read_dataset(out)) == 3
    assert main(command(out, "--amount", 5)) == 0
    assert len(read_dataset(out)) == 5


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_rendered_pairs_without_a_manifest_are_not_raw(registered: Path, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(registered, out)
    (out / "manifest.jsonl").unlink()
    before = content(out)
    training = train_command("phantoms", "tiny-sd15", out, tmp_path)
    for words in ([*training, "--dry_run"], training, ["prepare", out, tmp_path / "again"]):
        line = refused(*map(str, words))
        assert (line.kind, line.path) == (MissingError, out)
        assert "repeat the `retipair phantom` command" in line
    with raises_file(out, MissingError):
        read_dataset(out)
    assert content(tmp_path) == {f"out/{path}": data for path, data in before.items()}
    assert main(command(out)) == 0
    assert content(out) == content(registered)


def test_a_folder_of_raw_phantoms_says_where_its_pairs_are(raw: Path, refused: Refused, tmp_path: Path) -> None:
    line = refused("prepare", str(raw), str(tmp_path / "out"))
    assert (line.kind, line.path) == (MissingError, raw)
    assert str(raw / "raw") in line


def test_a_raw_pair_that_was_begun_is_finished_whatever_the_amount(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(raw, out)
    (out / "truth/0003/truth.json").unlink()
    (out / "raw/0003/0003_02.txt").unlink()
    assert main(command(out, "--unregistered", "--amount", 1)) == 0
    assert content(out) == content(raw)


def test_only_what_is_damaged_is_drawn_again(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = verb.draw_phantom
    monkeypatch.setattr(verb, "draw_phantom", lambda *how: drawn.append(how[1]) or draw(*how))
    out = tmp_path / "out"
    shutil.copytree(registered, out)
    assert main(command(out)) == 0
    assert drawn == []
    (out / "fa/0001.png").write_bytes(b"damaged")
    (out / "truth/0003/disc.png").unlink()
    assert main(command(out)) == 0
    assert sorted(drawn) == [1, 3]
    assert content(out) == content(registered)


@pytest.mark.parametrize(
    "more", [("--seed", 5), ("--size", 128), ("--camera", "teal"), ("--disease", "healthy"), ("--unregistered",)]
)
def test_other_settings_need_another_folder(
    registered: Path, refused: Refused, tmp_path: Path, more: tuple[object, ...]
) -> None:
    before = content(registered)
    line = refused(*command(registered, *more))
    assert (line.kind, line.path) == (OccupiedError, registered)
    assert str(more[0]) in line
    assert "None" not in line
    assert content(registered) == before


def test_how_points_are_placed_is_a_setting_too(raw: Path, refused: Refused) -> None:
    assert "with --jitter 1.0, not with --jitter 2.0" in refused(*command(raw, "--unregistered", "--jitter", 2))


def test_out_must_not_hold_other_files(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for out in (tmp_path, tmp_path / "thesis.tex"):
        line = refused(*command(out))
        assert (line.kind, line.path) == (OccupiedError, out)
    for text in ("", "[]", '{"schema": "retipair.phantom-state/1"}'):
        (tmp_path / ".phantom.json").write_text(text)
        assert refused(*command(tmp_path)).kind is OccupiedError
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", ".phantom.json"}


@pytest.mark.parametrize(
    ("setting", "value", "more"),
    [
        ("amount", 0, ()),
        ("amount", 1, ()),
        ("amount", 0, ("--unregistered",)),
        ("size", 100, ()),
        ("size", 4096, ()),
        ("seed", -1, ()),
        ("camera", "sepia", ()),
        ("disease", "measles", ()),
        ("jitter", 2, ()),
        ("points", 3, ("--unregistered",)),
        ("points", 51, ("--unregistered",)),
        ("jitter", "nan", ("--unregistered",)),
        ("jitter", -1, ("--unregistered",)),
        ("wrong", 21, ("--unregistered",)),
    ],
)
def test_settings_that_cannot_work_are_named(
    refused: Refused, tmp_path: Path, setting: str, value: object, more: tuple[str, ...]
) -> None:
    assert refused(*command(tmp_path / "out", f"--{setting}", value, *more)).setting == setting
    assert not (tmp_path / "out").exists()


def test_help_names_every_camera_and_disease(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "--help"]) == 0
    shown = set(re.findall(r"\w+", capsys.readouterr().out))
    assert shown >= {*CAMERAS, *DISEASES}


def test_camera_and_disease_can_be_chosen(tmp_path: Path) -> None:
    assert main(command(tmp_path / "out", "--camera", "teal", "--disease", "vein_occlusion")) == 0
    truths = [read_truth(path) for path in (tmp_path / "out/truth").glob("*/truth.json")]
    assert {(truth.camera, truth.disease) for truth in truths} == {("teal", "vein_occlusion")}


@pytest.mark.nightly
def test_registered_phantoms_can_be_trained_on(registered: Path, tmp_path: Path) -> None:
    assert main(train_command("phantoms", "random:tiny-sdxl", registered, tmp_path, "--max_steps", "2")) == 0
    assert list(tmp_path.rglob("pytorch_lora_weights.safetensors"))


# --- What prepare makes of them

AT = 512
CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (AT - 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "count"),
    [
        ("--seed 11", 50),
        # Early in the dye's passage few vessels are lit: those of 5 and 7 fit best 30 px off.
        ("--seed 2024 --camera teal --disease vein_occlusion", 8),
    ],
    ids=["any", "early dye"],
)
def test_prepare_registers_phantoms(tmp_path: Path, how: str, count: int) -> None:
    """About ten minutes. Points off by 1 px in each view, 2 of 20 nonsense; errors at the prepared frame's corners."""
    out, pairs = tmp_path / "phantoms", tmp_path / "pairs"
    assert main(["phantom", str(out), "--amount", str(count), *how.split(), "--unregistered"]) == 0
    assert main(["prepare", str(out / "raw"), str(pairs)]) == 0
    outcomes = json.loads((pairs / STATE_NAME).read_text())["pairs"]
    kept = [outcome for outcome in outcomes if not outcome["refused"]]
    found = np.array([_corner_errors(out, outcome, np.array(outcome["fa_to_cf"])) for outcome in kept])
    alone = np.array([_corner_errors(out, outcome, _by_points_alone(out, outcome)) for outcome in kept])
    for name, errors in (("points alone", alone), ("prepare", found)):
        figures = (np.median(errors), np.quantile(errors, 0.95), errors.max())
        print("{}: corners off by {:.2f} px (median), {:.2f} (95 %), {:.2f} (most)".format(name, *figures))
    print(f"refused: {count - len(kept)} of {count}")
    assert np.median(found) < 1.5
    assert found.max() < 6
    assert len(kept) >= count - 2


def _views(out: Path, name: str) -> tuple[np.ndarray, np.ndarray, Landmarks]:
    stem = out / "raw" / name / name
    cf, fa = load_image(Path(f"{stem}_01.png"), "RGB"), load_image(Path(f"{stem}_02.png"), "L")
    return cf, fa, Landmarks(*(read_points(Path(f"{stem}_{view}.txt")) for view in ("01", "02")))


def _frame(out: Path, outcome: dict) -> np.ndarray:
    """Raw CF px -> prepared px, (3, 3): a scale and a shift, told by the points before and after."""
    before, after = _views(out, outcome["id"])[2].cf, np.array(outcome["points"])[:, :2]
    ones = np.tile(np.eye(2), (len(before), 1))
    scale, x, y = np.linalg.lstsq(np.column_stack([before.ravel(), ones]), after.ravel(), rcond=None)[0]
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])


def _corner_errors(out: Path, outcome: dict, fa_to_frame: np.ndarray) -> np.ndarray:
    """How far what belongs at the frame's corners is put from them, (4,) px."""
    truth = read_truth(out / "truth" / outcome["id"] / "truth.json")
    from_frame = np.linalg.inv(_frame(out, outcome) @ np.array(truth.fa_to_cf))
    return np.linalg.norm(apply(fa_to_frame, apply(from_frame, CORNERS)) - CORNERS, axis=1)


def _by_points_alone(out: Path, outcome: dict) -> np.ndarray:
    """RANSAC without refinement: raw FA px -> prepared px."""
    cf, fa, landmarks = _views(out, outcome["id"])
    return _frame(out, outcome) @ register_points(View(cf), View(fa), landmarks).fa_to_cf
