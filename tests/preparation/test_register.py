"""`retipair register`: the true homography is found, errors are measured by the field's rule, bad input is refused."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retipair
from compare import contents
from eyes import RawEye, apply, draw_raw, write_eye
from refusals import Refused, raises_setting
from retipair.data.pair import save_image
from retipair.interfaces.cli import main
from retipair.phantoms.truth import read_truth
from retipair.preparation import register
from retipair.registration.landmark_error import error_auc
from retipair.runtime.errors import DamagedError, FileError, MissingError, OccupiedError, UserError

SIZE = 256
FILES = ["checkerboard.png", "fa_warped.png", "registration.json"]


def corner_errors(found: np.ndarray, eye: RawEye) -> np.ndarray:
    """At places of the middle of the FA, px."""
    places = SIZE * np.array([[0.3, 0.3], [0.7, 0.3], [0.3, 0.7], [0.7, 0.7]])
    return np.linalg.norm(apply(found, places) - apply(eye.fa_to_cf, places), axis=1)


def matches_of(eye: RawEye, count: int = 120, wrong: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """What a network finds: points off by 1.5 px (sigma), and many that are nonsense."""
    rng = np.random.default_rng(0)
    fa = rng.uniform(0.15, 0.85, (count, 2)) * SIZE
    cf = np.clip(apply(eye.fa_to_cf, fa) + rng.normal(0, 1.5, fa.shape), 0, SIZE - 1)
    cf[: int(wrong * count)] = rng.uniform(0.1, 0.9, (int(wrong * count), 2)) * SIZE
    return cf, fa


def record_of(folder: Path) -> dict:
    return json.loads((folder / "registration.json").read_text())


@pytest.fixture(scope="module")
def eye() -> RawEye:
    return draw_raw(seed=4, size=SIZE, jitter=0.5)


@pytest.fixture(scope="module")
def views(eye: RawEye, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("private")
    write_eye(folder, "e", eye)
    np.savez(folder / "e.npz", **dict(zip(("cf", "fa"), matches_of(eye), strict=True)))
    return folder / "e_01.png", folder / "e_02.png"


@pytest.fixture(scope="module")
def registered(views: tuple[Path, Path], once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Registered by the vessels, with the landmarks to measure the error."""
    points = [str(view.with_suffix(".txt")) for view in views]

    def fill(out: Path) -> None:
        assert main(["register", *map(str, views), str(out), "--evaluate", *points]) == 0

    return once("registered", fill)


def test_the_fa_is_found_in_the_frame_of_the_cf(registered: Path, eye: RawEye) -> None:
    record = record_of(registered)
    assert sorted(path.name for path in registered.iterdir()) == [*FILES, "scores.json"]
    assert corner_errors(np.array(record["fa_to_cf"]), eye).max() < 1
    assert (record["method"], record["matches"], record["refused"], record["doubt"]) == ("vessels", None, None, None)
    assert (record["cf"], record["fa"], record["id"]) == ("e_01.png", "e_02.png", "e")  # without their folders
    assert "private" not in (registered / "registration.json").read_text()
    assert record["consistency"] > record["consistency_before"]
    assert record["residual_px"] < 1

    warped = np.asarray(Image.open(registered / "fa_warped.png"))
    assert (warped.dtype, warped.shape) == (np.uint8, (SIZE, SIZE))
    outside = apply(np.linalg.inv(np.array(record["fa_to_cf"])), np.argwhere(np.ones((SIZE, SIZE)))[:, ::-1])
    outside = ((outside < -2) | (outside > SIZE + 1)).any(axis=1).reshape(SIZE, SIZE)
    assert outside.any()
    assert not warped[outside].any()
    board = np.asarray(Image.open(registered / "checkerboard.png"))
    assert np.array_equal(board[:32, :32], eye.cf[:32, :32])
    assert np.array_equal(board[96:128, 64:96], np.repeat(warped[96:128, 64:96, None], 3, axis=2))


def test_the_error_is_measured_at_the_landmarks(registered: Path, eye: RawEye) -> None:
    record, scores = record_of(registered), json.loads((registered / "scores.json").read_text())
    errors = np.linalg.norm(apply(np.array(record["fa_to_cf"]), eye.fa_points) - eye.cf_points, axis=1) * 512 / SIZE
    assert record["landmarks"] == 20
    assert record["mean_error_px"] == pytest.approx(errors.mean(), abs=0.002)
    assert record["median_error_px"] == pytest.approx(np.median(errors), abs=0.002)
    assert (scores["pairs"], scores["failed"], scores["mean_error_px"]) == (1, 0, record["mean_error_px"])
    assert scores["auc"]["5"] == pytest.approx(1 - record["mean_error_px"] / 10, abs=1e-4)


def test_matches_of_a_network_are_refined_on_vessels(
    views: tuple[Path, Path], eye: RawEye, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "retipair"):
        found = retipair.register(*views, matches=views[0].with_name("e.npz"))
    assert (found.method, found.matches, found.refused, found.landmarks) == ("matches", 120, None, None)
    assert 40 <= found.inliers <= 60
    assert corner_errors(found.homography, eye).max() < 1
    assert found.homography.dtype == np.float64
    assert found.fa_warped.shape == eye.cf.shape[:2]
    assert found.consistency > found.consistency_before
    assert capsys.readouterr().out == ""
    assert "of 120 matches agree" in caplog.text


def test_matches_that_are_nonsense_are_refused_with_the_reason_in_the_file(
    views: tuple[Path, Path], refused: Refused, tmp_path: Path
) -> None:
    cf, fa = np.random.default_rng(3).uniform(0.2, 0.8, (2, 9, 2)) * SIZE
    np.savez(tmp_path / "m.npz", keypoints0=cf, keypoints1=fa)
    points = [view.with_suffix(".txt") for view in views]
    line = refused("register", *views, tmp_path / "out", "--matches", tmp_path / "m.npz", "--evaluate", *points)
    assert line.path == views[1]
    record = record_of(tmp_path / "out")
    assert record["refused"] in line
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert (scores["failed"], scores["mean_error_px"]) == (1, None)
    assert set(scores["auc"].values()) == {0}
    assert record["mean_error_px"] > 5

    found = retipair.register(*views, matches=tmp_path / "m.npz")
    assert found.refused == record["refused"]


def test_what_is_synthetic_says_so(views: tuple[Path, Path], tmp_path: Path) -> None:
    mark = {"Synthetic": "yes: rendered", "Seed": "0"}
    for view in views:
        save_image(tmp_path / view.name, np.asarray(Image.open(view)), {**mark, "Patient": "J. Doe"})
    save_image(tmp_path / "angiogram.png", np.asarray(Image.open(views[1])))
    for fa, warped in (("e_02.png", mark), ("angiogram.png", {})):
        out = tmp_path / f"out {fa}"
        retipair.register(tmp_path / "e_01.png", tmp_path / fa, out, matches=views[0].with_name("e.npz"))
        assert Image.open(out / "fa_warped.png").info == warped
        assert Image.open(out / "checkerboard.png").info == mark


# --- A folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three eyes, for two of which a network found matches; the third has no landmarks."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "matches").mkdir()
    for number, name in enumerate(("a", "b", "c")):
        eye = draw_raw(seed=number + 4, size=SIZE, jitter=0.5)
        write_eye(folder / "eyes" / name, name, eye)
        cf, fa = matches_of(eye) if name != "b" else (np.array([]), np.array([]))
        np.savez(folder / "matches" / f"{name}.npz", cf=cf, fa=fa)
    for path in (folder / "eyes/c").glob("*.txt"):
        path.unlink()
    return folder


def folder_command(raw: Path, out: Path, *flags: str) -> list[str]:
    return [
        "register",
        "--folder",
        "--matches",
        str(raw / "matches"),
        "--workers",
        "1",
        *flags,
        str(raw / "eyes"),
        str(out),
    ]


@pytest.fixture(scope="module")
def all_registered(raw: Path, once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    def fill(out: Path) -> None:
        assert main(folder_command(raw, out)) == 0

    return once("registered-folder", fill)


@pytest.fixture
def redone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The ids of the pairs that are registered."""
    ids: list[str] = []
    views = register.register_views
    monkeypatch.setattr(register, "register_views", lambda item, *how: ids.append(item.pair.id) or views(item, *how))
    return ids


def test_a_folder_has_a_line_for_each_pair_and_failures_count(all_registered: Path) -> None:
    assert sorted(path.name for path in all_registered.iterdir()) == [
        "a",
        "b",
        "c",
        "registrations.jsonl",
        "scores.json",
    ]
    records = [json.loads(line) for line in (all_registered / "registrations.jsonl").read_text().splitlines()]
    assert records == [record_of(all_registered / name) for name in "abc"]
    assert [bool(record["refused"]) for record in records] == [False, True, False]
    assert (records[1]["matches"], records[2]["landmarks"], records[2]["mean_error_px"]) == (0, None, None)
    scores = json.loads((all_registered / "scores.json").read_text())
    error = records[0]["mean_error_px"]
    assert (scores["pairs"], scores["failed"], scores["mean_error_px"]) == (2, 1, error)
    assert list(scores["auc"].values()) == pytest.approx(error_auc([error, np.inf]), abs=1e-4)


def test_only_what_is_new_or_changed_is_registered_again(
    raw: Path, all_registered: Path, redone: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copy = tmp_path / "out", tmp_path / "raw"
    shutil.copytree(all_registered, out)
    shutil.copytree(raw, copy)
    assert main(folder_command(copy, out)) == 0
    said = capsys.readouterr().out
    assert redone == []
    assert all(
        word in said for word in ("3 of 3 pairs are registered already", "refused: only 0 matches", "AUC@5/10/20")
    )
    assert "1 of 3 pairs were refused" in said

    (out / "a/checkerboard.png").unlink()
    shutil.copy(copy / "matches/b.npz", copy / "matches/c.npz")
    (out / "b/.fa_warped.png.partial").touch()  # of a run that was killed
    shutil.rmtree(out / "c")
    (out / "c").mkdir()  # of a run that was stopped, or for which the disk was full
    assert main(folder_command(copy, out)) == 0
    assert redone == ["a", "c"]
    assert contents(out / "a") == contents(all_registered / "a")
    assert record_of(out / "c")["refused"]


def test_a_folder_where_all_is_refused_ends_with_status_2(raw: Path, refused: Refused, tmp_path: Path) -> None:
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    for name in "ac":
        shutil.rmtree(copy / "eyes" / name)
    line = refused(*folder_command(copy, tmp_path / "out"))
    assert line.path == copy / "eyes"
    assert "all 1 pairs were refused" in line
    assert json.loads((tmp_path / "out/scores.json").read_text())["failed"] == 1


def test_the_api_registers_folders(raw: Path, all_registered: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(all_registered, out)
    records = retipair.register_folder(raw / "eyes", out, matches=raw / "matches", workers=1)
    assert [record.id for record in records] == ["a", "b", "c"]
    assert contents(out) == contents(all_registered)


@pytest.mark.nightly
def test_workers_change_no_byte(raw: Path, all_registered: Path, tmp_path: Path) -> None:
    assert main([*folder_command(raw, tmp_path / "out"), "--workers", "2"]) == 0
    assert contents(tmp_path / "out") == contents(all_registered)


def test_bad_folders_are_refused_before_anything_is_written(
    raw: Path, all_registered: Path, refused: Refused, tmp_path: Path
) -> None:
    assert refused(*folder_command(raw, raw / "eyes/out")).kind is OccupiedError
    other = tmp_path / "other"
    (other / "notes").mkdir(parents=True)
    assert "notes" in refused(*folder_command(raw, other))
    fewer = tmp_path / "fewer"
    shutil.copytree(raw, fewer)
    shutil.rmtree(fewer / "eyes/b")
    out = tmp_path / "out"
    shutil.copytree(all_registered, out)
    line = refused(*folder_command(fewer, out))
    assert (line.path, line.kind) == (out / "b", OccupiedError)
    assert contents(out) == contents(all_registered)

    (fewer / "matches/c.npz").unlink()
    line = refused(*folder_command(fewer, tmp_path / "new"))
    assert (line.path, line.kind) == (fewer / "matches/c.npz", MissingError)
    (fewer / "eyes/c/c_02.png").write_bytes(b"broken")
    line = refused(*folder_command(fewer, tmp_path / "new"))
    assert line.kind is UserError
    assert "c_02.png" in line
    assert not (tmp_path / "new").exists()


# --- Bad input of one pair


def test_bad_files_are_refused_before_anything_is_written(
    views: tuple[Path, Path], refused: Refused, tmp_path: Path
) -> None:
    cf, fa = views
    points, out = (cf.with_suffix(".txt"), fa.with_suffix(".txt")), tmp_path / "out"
    few, line, broken = tmp_path / "few.txt", tmp_path / "line.txt", tmp_path / "broken.png"
    few.write_text("1 2\n3 4\n5 6\n")
    line.write_text("".join(f"{i} {2 * i}\n" for i in range(20)))
    broken.write_bytes(b"broken")
    np.savez(tmp_path / "three.npz", cf=np.arange(6.0).reshape(3, 2), fa=np.arange(6.0).reshape(3, 2))
    np.savez(tmp_path / "nan.npz", cf=np.full((9, 2), np.nan), fa=np.ones((9, 2)))

    def check(path: Path, kind: type[FileError], *words: object) -> None:
        said = refused("register", *words)
        assert (said.path, said.kind) == (path, kind), said

    check(cf, FileError, fa, cf, out)  # exchanged
    check(cf, FileError, cf, cf, out)
    check(broken, FileError, broken, fa, out)
    check(tmp_path / "none.png", MissingError, cf, tmp_path / "none.png", out)
    check(cf.parent, FileError, cf.parent, fa, out)
    check(broken, OccupiedError, cf, fa, broken)
    check(cf.parent, OccupiedError, cf, fa, cf.parent)
    check(tmp_path / "three.npz", FileError, cf, fa, out, "--matches", tmp_path / "three.npz")
    check(tmp_path / "nan.npz", FileError, cf, fa, out, "--matches", tmp_path / "nan.npz")
    check(points[0], DamagedError, cf, fa, out, "--matches", points[0])
    check(tmp_path / "none.txt", MissingError, cf, fa, out, "--evaluate", points[0], tmp_path / "none.txt")
    check(few, FileError, cf, fa, out, "--evaluate", few, points[1])
    check(line, FileError, cf, fa, out, "--evaluate", points[0], line)
    assert not out.exists()


def test_a_registration_is_replaced_but_nothing_else(
    views: tuple[Path, Path], registered: Path, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(registered, out)
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in refused("register", *views, out)
    (out / "notes.txt").unlink()
    retipair.register(*views, out, matches=views[0].with_name("e.npz"))
    assert record_of(out)["method"] == "matches"
    assert sorted(path.name for path in out.iterdir()) == FILES  # the scores were of the first registration


def test_a_registration_of_its_own_views_is_not_replaced(
    views: tuple[Path, Path], registered: Path, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(registered, out)
    assert refused("register", views[0], out / "fa_warped.png", out).path == out / "fa_warped.png"
    assert contents(out) == contents(registered)


def test_bad_settings_are_named(views: tuple[Path, Path], refused: Refused, tmp_path: Path) -> None:
    for words, setting in (
        ((*views,), "folder"),
        ((), "folder"),
        (("--folder", views[0]), "folder"),
        (("--folder", views[0].parent, tmp_path / "out", "--evaluate", *views), "evaluate"),
        ((*views, tmp_path / "out", "--skip_bad"), "skip_bad"),
        ((*views, tmp_path / "out", "--max_residual_px", 0), "max_residual_px"),
        ((*views, tmp_path / "out", "--min_consistency", 2), "min_consistency"),
        ((*views, tmp_path / "out", "--workers", -1), "workers"),
    ):
        assert refused("register", *words).setting == setting
    for name, value in (("folder", True), ("evaluate", "points.txt"), ("evaluate", (1, 2))):
        with raises_setting(name):
            retipair.register(*views, **{name: value})
    with raises_setting("raw"):
        retipair.register_folder(None, tmp_path / "out")  # type: ignore[arg-type]
    with raises_setting("cf"):
        retipair.register(np.zeros((9, 9)), views[1])  # type: ignore[arg-type]


# --- Against the truth


def grey(path: Path) -> None:
    save_image(path, np.asarray(Image.open(path).convert("L")))


def test_a_grey_cf_is_taken_as_the_user_says(
    views: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copy(views[0], tmp_path / "red_free.png")
    grey(tmp_path / "red_free.png")
    found = retipair.register(tmp_path / "red_free.png", views[1], matches=views[0].with_name("e.npz"), verbose=True)
    assert found.refused is None
    assert "red_free.png: has no colour" in capsys.readouterr().err


@pytest.mark.nightly
def test_phantoms_are_registered_as_they_were_rendered(tmp_path: Path) -> None:
    """Also the one of an early phase, in which most vessels of the CF are dark in the FA: it is refused."""
    retipair.phantom(tmp_path / "p", amount=3, unregistered=True, jitter=0, wrong=0)
    records = retipair.register_folder(tmp_path / "p/raw", tmp_path / "out", workers=1)
    for record in records:
        rendered = read_truth(tmp_path / "p/truth" / record.id / "truth.json")
        assert bool(record.refused) == (rendered.phase < 0.1)
        truth = np.array(rendered.fa_to_cf)
        places = 512 * np.array([[0.3, 0.3], [0.7, 0.3], [0.3, 0.7], [0.7, 0.7]])
        errors = np.linalg.norm(apply(np.array(record.fa_to_cf), places) - apply(truth, places), axis=1)
        assert errors.max() < 1.5
        assert record.median_error_px < 1.5


@pytest.mark.nightly
def test_views_of_different_eyes_are_refused(tmp_path: Path, refused: Refused) -> None:
    for seed in (1, 2):
        write_eye(tmp_path, str(seed), draw_raw(seed, SIZE))
    line = refused("register", tmp_path / "1_01.png", tmp_path / "2_02.png", tmp_path / "out")
    assert (line.path, line.kind) == (tmp_path / "2_02.png", FileError)
    assert record_of(tmp_path / "out")["refused"] in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.nightly
def test_a_mirrored_fa_is_flipped_only_if_allowed(eye: RawEye, views: tuple[Path, Path], tmp_path: Path) -> None:
    save_image(tmp_path / "fa.png", np.ascontiguousarray(eye.fa[:, ::-1]))
    assert "mirrored" in (retipair.register(views[0], tmp_path / "fa.png").refused or "")
    found = retipair.register(views[0], tmp_path / "fa.png", allow_mirror=True)
    assert found.refused is None
    assert "mirrored" in (found.doubt or "")
    assert np.linalg.det(found.homography) < 0
    mirror = np.array([[-1.0, 0, SIZE - 1], [0, 1, 0], [0, 0, 1]])
    assert corner_errors(found.homography @ mirror, eye).max() < 1
    straight = retipair.register(*views).fa_warped.astype(float)
    assert np.abs(found.fa_warped - straight).mean() < 3
