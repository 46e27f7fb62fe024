import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from compare import contents
from eyes import draw_pair, draw_raw, write_eye, write_raw
from retipair.config import PrepareConfig
from retipair.data.contact_sheet import SHEET_NAME, load_titled
from retipair.data.dataset import read_dataset
from retipair.data.manifest import has_manifest, read_manifest
from retipair.data.pair import load_image, save_image
from retipair.data.rejected import REJECTED_NAME
from retipair.data.sources import find_pairs
from retipair.interfaces.cli import main
from retipair.preparation.alignment import align_pair
from retipair.preparation.prepare import fingerprint
from retipair.preparation.reading import read_pairs
from retipair.preparation.state import AlignmentResult, doubtful, load_previous_results
from retipair.registration.warp import resample
from retipair.runtime.errors import MissingError, OccupiedError
from running import started, wait_for

SIZE = "128"


def _prepare(raw: Path, out: Path, *flags: str) -> int:
    return main(["prepare", str(raw), str(out), "--size", SIZE, "--workers", "1", *flags])


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder, n=3, size=224, jitter=0.3)
    return folder


@pytest.fixture(scope="module")
def prepared(raw, once) -> Path:
    def fill(out: Path) -> None:
        assert _prepare(raw, out) == 0

    return once("prepared-raw", fill)


def test_a_prepared_folder_is_what_the_manifest_says(prepared):
    records = list(read_manifest(prepared))
    assert [record.id for record in records] == ["001", "002", "003"]
    assert sorted(record.split for record in records) == ["train", "train", "val"]
    for record in records:
        cf, fa, mask = (Image.open(prepared / path) for path in (record.cf, record.fa, record.mask))
        assert (cf.mode, fa.mode, mask.mode) == ("RGB", "L", "L")
        assert cf.size == fa.size == mask.size == (128, 128)
        assert set(np.unique(mask)) == {0, 255}
        assert record.inliers == len(record.points) == 20
        assert record.native_size is not None
        assert record.raw_sizes == [[224, 224], [224, 224]]
        assert all(190 <= side <= 224 for side in record.native_size)  # the common field, in raw views 224 px wide
        points = np.array(record.points)
        residual = np.median(np.linalg.norm(points[:, :2] - points[:, 2:], axis=1))
        assert record.residual_px == pytest.approx(residual, abs=0.01)
        assert record.consistency >= record.consistency_before


def test_the_manifest_says_which_part_of_the_raw_photograph_each_cf_is(raw, prepared):
    for record, pair in zip(read_manifest(prepared), find_pairs(raw), strict=True):
        cropped = resample(load_image(pair.cf, "RGB"), np.array(record.raw_cf_to_cf), record.size)
        mask = load_image(prepared / record.mask, "L") > 0
        np.testing.assert_array_equal(cropped[mask], load_image(prepared / record.cf, "RGB")[mask])


@pytest.mark.nightly
def test_views_that_are_enlarged_are_said(raw, tmp_path, capsys):
    assert _prepare(raw, tmp_path / "out", "--size", "256") == 0
    assert "warning: 3 pairs have views smaller than 256 px (first: 001; smallest: 224 px)" in capsys.readouterr().err
    assert _prepare(raw, tmp_path / "small") == 0
    assert "smaller than" not in capsys.readouterr().err


def test_too_few_eyes_after_some_were_left_out_say_so(raw, tmp_path, capsys):
    left = tmp_path / "left"
    shutil.copytree(raw, left)
    for name in ("001", "002"):
        (left / name / f"{name}_01.png").write_bytes(b"broken")
    assert _prepare(left, tmp_path / "out", "--skip_bad") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "2 pairs or images were skipped, and" in said


def test_nothing_else_is_left_behind(prepared):
    names = sorted(path.name for path in prepared.iterdir())
    assert names == [".prepare.json", "cf", "contact_sheet.png", "fa", "manifest.jsonl", "mask"]


def test_what_is_synthetic_says_so_once_prepared_and_no_other_metadata_is_kept(raw, tmp_path):
    mark = {"Synthetic": "yes: rendered", "Software": "retipair 0.1.0", "Seed": "0, pair 1", "Base": "none"}
    marked = tmp_path / "raw"
    shutil.copytree(raw, marked)
    for name in ("001_01", "001_02", "002_01"):  # both views of one eye, one of another
        path = marked / name[:3] / f"{name}.png"
        save_image(path, np.asarray(Image.open(path)), {**mark, "Patient": "J. Doe"})
    assert _prepare(marked, tmp_path / "out") == 0
    synthetic = {"cf/001", "fa/001", "mask/001", "cf/002"}
    for name in (f"{view}/{id}" for view in ("cf", "fa", "mask") for id in ("001", "002", "003")):
        assert Image.open(tmp_path / "out" / f"{name}.png").info == (mark if name in synthetic else {}), name
    assert _said_on_the_sheet(tmp_path / "out") == {
        "Synthetic": "yes: 2 of 3 pairs are synthetic; not for clinical use"
    }


def test_only_a_contact_sheet_with_synthetic_views_says_that_it_is_synthetic(raw, prepared, tmp_path):
    assert _said_on_the_sheet(prepared) == {}
    drawn = tmp_path / "raw"
    shutil.copytree(raw, drawn)
    for path in drawn.glob("*/*.png"):
        save_image(path, np.asarray(Image.open(path)), {"Synthetic": "yes: rendered"})
    assert _prepare(drawn, tmp_path / "out") == 0
    assert _said_on_the_sheet(tmp_path / "out")["Synthetic"].startswith("yes: 3 of 3 pairs")


def _said_on_the_sheet(out: Path) -> dict[str, str]:
    return Image.open(out / SHEET_NAME).info


def test_views_whose_preparation_was_killed_are_not_raw(prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    (out / "manifest.jsonl").unlink()
    for read in (find_pairs, read_dataset):
        with pytest.raises(MissingError, match="repeat the `retipair prepare` command") as caught:
            read(out)
        assert caught.value.path == out


def test_fa_to_cf_maps_raw_fa_onto_the_prepared_cf(raw, prepared):
    record = next(iter(read_manifest(prepared)))
    raw_points = np.loadtxt(raw / record.id / f"{record.id}_02.txt")
    moved = np.column_stack([raw_points, np.ones(len(raw_points))]) @ np.array(record.fa_to_cf).T
    assert moved[:, :2] / moved[:, 2:] == pytest.approx(np.array(record.points)[:, 2:], abs=0.01)


def test_the_table_is_on_screen(raw, tmp_path, capsys):
    assert _prepare(raw, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("001", "inliers", "residual", "consistency", "kept", "val"))


@pytest.mark.nightly
def test_workers_do_not_change_a_byte(raw, prepared, tmp_path):
    assert _prepare(raw, tmp_path / "out", "--workers", "2") == 0
    assert contents(tmp_path / "out") == contents(prepared)


def test_points_are_parsed_once(raw, prepared, tmp_path):
    """Alignment uses the points that were checked, even if their files are gone."""
    copy = tmp_path / "raw"
    shutil.copytree(raw, copy)
    config = PrepareConfig(raw=copy, out=tmp_path / "out", size=int(SIZE))
    checked, _ = read_pairs(find_pairs(copy), [], config)
    for path in copy.rglob("*.txt"):
        path.unlink()
    assert align_pair(checked[0], config) == load_previous_results(prepared)["001"]


def test_a_second_run_redoes_only_what_changed(raw, prepared, tmp_path, monkeypatch):
    changed, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, changed)
    shutil.copytree(prepared, out)
    redone = []
    from retipair.preparation import alignment

    align = alignment.align_pair
    monkeypatch.setattr(
        alignment, "align_pair", lambda item, config: redone.append(item.pair.id) or align(item, config)
    )
    assert _prepare(changed, out) == 0
    assert redone == []
    assert contents(out) == contents(prepared)

    write_eye(changed / "002", "002", draw_raw(seed=9, size=224))
    (out / "fa/003.png").write_bytes(b"damaged")
    assert _prepare(changed, out) == 0
    assert redone == ["002", "003"]
    assert _prepare(changed, tmp_path / "fresh") == 0
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_pair_that_is_gone_leaves_with_its_files(raw, prepared, tmp_path):
    fewer, out = tmp_path / "raw", tmp_path / "out"
    shutil.copytree(raw, fewer)
    shutil.copytree(prepared, out)
    shutil.rmtree(fewer / "001")
    assert _prepare(fewer, out) == 0
    assert not list(out.rglob("001.png"))
    assert [record.id for record in read_manifest(out)] == ["002", "003"]


def test_the_list_of_rejected_pairs_outlives_the_next_call(raw, prepared, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    (out / REJECTED_NAME).write_text("# blurred\n002\n")
    for view in ("cf", "fa", "mask"):
        (out / view / "003.png").unlink()
    assert _prepare(raw, out) == 0
    assert (out / REJECTED_NAME).read_text() == "# blurred\n002\n# their files were deleted by hand\n003\n"
    assert "2 listed in rejected.txt (002, 003)" in capsys.readouterr().err
    assert [record.id for record in read_manifest(out)] == ["001", "002", "003"]
    assert [entry.id for entry in read_dataset(out)] == ["001"]
    (out / REJECTED_NAME).unlink()
    assert contents(out) == contents(prepared)


def test_where_every_file_is_gone_nothing_was_rejected(raw, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    for view in ("cf", "fa", "mask"):
        shutil.rmtree(out / view)
    assert _prepare(raw, out) == 0
    assert contents(out) == contents(prepared)


def test_a_rejected_id_that_is_no_pair_is_refused_before_anything_is_done(raw, prepared, tmp_path, capsys):
    """Also the id of a pair that is now called otherwise: a name would stay beside its hash."""
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    for text, flags in (("1\n", []), ("001\n", ["--anonymise", str(tmp_path / "key")])):
        (out / REJECTED_NAME).write_text(text)
        before = contents(out)
        assert _prepare(raw, out, *flags) == 2
        assert "rejected.txt, line 1: no pair has the id" in capsys.readouterr().err
        assert contents(out) == before


def test_swapped_views_are_put_right_with_their_points(raw, prepared, tmp_path, capsys):
    swapped = tmp_path / "raw"
    for name in ("001", "002", "003"):
        (swapped / name).mkdir(parents=True)
        for suffix in ("png", "txt"):
            shutil.copy(raw / name / f"{name}_01.{suffix}", swapped / name / f"{name}_02.{suffix}")
            shutil.copy(raw / name / f"{name}_02.{suffix}", swapped / name / f"{name}_01.{suffix}")
    assert _prepare(swapped, tmp_path / "out") == 0
    assert "002_02.png is the view in colour" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(prepared)


def _arranged(raw: Path, folder: Path, form: str) -> Path:
    """The raw pairs in a form whose source names the views: a table's columns or folders; what to prepare."""
    views = [(name, view, number) for name in ("001", "002", "003") for view, number in (("cf", 1), ("fa", 2))]
    if form in ("table.csv", "table.jsonl"):
        shutil.copytree(raw, folder / "raw", dirs_exist_ok=True)
        keys = {"cf": "01.png", "fa": "02.png", "cf_points": "01.txt", "fa_points": "02.txt"}
        rows = [
            {"id": name, **{key: f"raw/{name}/{name}_{end}" for key, end in keys.items()}}
            for name in ("001", "002", "003")
        ]
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        lines = [json.dumps(row) for row in rows] if form == "table.jsonl" else lines
        (folder / form).write_text("".join(f"{line}\n" for line in lines))
        return folder / form
    for name, view, number in views:
        (folder / "raw" / view).mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "txt"):
            shutil.copy(raw / name / f"{name}_0{number}.{suffix}", folder / "raw" / view / f"{name}.{suffix}")
    return folder / "raw"


@pytest.fixture
def red_free(raw, tmp_path) -> Path:
    """The raw folder with CF of one channel, as a camera with a green filter takes them."""
    folder = tmp_path / "red_free"
    shutil.copytree(raw, folder)
    for path in folder.rglob("*_01.png"):
        Image.open(path).getchannel("G").save(path)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["table.csv", "table.jsonl", "folders"])
def test_a_grey_cf_is_taken_where_the_source_names_it(red_free, tmp_path, capsys, form):
    out = tmp_path / "out"
    assert _prepare(_arranged(red_free, tmp_path, form), out) == 0
    assert "3 CF without colour (red-free?; first: 001)" in capsys.readouterr().out
    for record in read_manifest(out):
        assert np.asarray(Image.open(out / record.cf)).std(axis=2).max() == 0
        assert record.consistency > 0.4
    assert main(["evaluate", "--real", str(out), "--out", str(tmp_path / "scores")]) == 0
    doubts = json.loads((tmp_path / "scores/scores.json").read_text())["doubts"]
    assert "swapped" not in {doubt["kind"] for doubt in doubts}


def test_a_grey_cf_is_refused_where_numbers_alone_name_it(red_free, tmp_path, capsys):
    assert _prepare(red_free, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "001_01.png: neither" in said
    assert "a table (columns cf and fa)" in said


@pytest.mark.parametrize("form", ["table.csv", "table.jsonl", "folders"])
def test_views_that_the_source_names_are_never_swapped(raw, tmp_path, capsys, form):
    crossed = tmp_path / "crossed"
    shutil.copytree(raw, crossed)
    for name in ("001", "002", "003"):
        for suffix in ("png", "txt"):
            one, two, held = (crossed / name / f"{name}_0{number}.{suffix}" for number in (1, 2, 3))
            one.rename(held), two.rename(one), held.rename(two)
    assert _prepare(_arranged(crossed, tmp_path, form), tmp_path / "out", "--register", "none") == 2
    said = capsys.readouterr()
    assert "3 FA have more colour than their CF (first: 001) and are used as FA" in said.err
    assert "(swapped)" not in said.out
    assert "all 3 pairs were refused" in said.err.splitlines()[-1]


def test_the_form_of_the_source_is_part_of_the_fingerprint(raw, tmp_path):
    table = _arranged(raw, tmp_path, "table.csv")
    ours, theirs = (fingerprint(PrepareConfig(raw=path, out=tmp_path / "out")) for path in (raw, table))
    assert ours != theirs, "the one may swap views, the other never does"


@pytest.mark.nightly
def test_pairs_without_points_are_registered_by_features(raw, tmp_path):
    bare = tmp_path / "raw"
    for view, number in (("cf", "01"), ("fa", "02")):
        (bare / view).mkdir(parents=True)
        for name in ("001", "002"):
            shutil.copy(raw / name / f"{name}_{number}.png", bare / view / f"{name}.png")
    assert _prepare(bare, tmp_path / "out") == 0
    for record in read_manifest(tmp_path / "out"):
        assert 0 < record.residual_px < 0.5  # at 128 px, of patches of vessels
        assert record.points == []
        assert record.consistency > 0.4


@pytest.mark.nightly
def test_a_mirrored_fa_is_named_or_turned(raw, prepared, tmp_path, capsys):
    mirrored = tmp_path / "raw"
    shutil.copytree(raw, mirrored)
    fa, points = mirrored / "001/001_02.png", mirrored / "001/001_02.txt"
    Image.fromarray(np.asarray(Image.open(fa))[:, ::-1]).save(fa)
    np.savetxt(points, np.array([223, 0]) + np.array([-1, 1]) * np.loadtxt(points))
    assert _prepare(mirrored, tmp_path / "out") == 0
    assert "the FA is mirrored left to right" in " ".join(capsys.readouterr().out.split())
    assert [record.id for record in read_manifest(tmp_path / "out")] == ["002", "003"]
    assert _prepare(mirrored, tmp_path / "out", "--allow_mirror") == 0
    assert "001: its FA was mirrored" in capsys.readouterr().out
    assert (tmp_path / "out/fa/001.png").read_bytes() == (prepared / "fa/001.png").read_bytes()
    turned, upright = (next(iter(read_manifest(folder))) for folder in (tmp_path / "out", prepared))
    assert np.linalg.det(turned.fa_to_cf) < 0 < np.linalg.det(upright.fa_to_cf)
    assert turned.residual_px == pytest.approx(upright.residual_px, abs=0.01)


@pytest.mark.nightly
def test_the_limit_of_consistency_can_be_set(raw, prepared, tmp_path, capsys):
    assert _prepare(raw, tmp_path / "out", "--min_consistency", "0.99") == 2
    assert "< 0.99" in " ".join(capsys.readouterr().out.split())
    assert _prepare(raw, tmp_path / "out", "--min_consistency", "-1") == 0
    assert len(list(read_manifest(tmp_path / "out"))) == 3


def _outcome(number: int, consistency: float, residual: float, doubt: str | None = None) -> AlignmentResult:
    return AlignmentResult(
        id=f"{number}",
        key="",
        source_sha256="",
        refused=None,
        doubt=doubt,
        native_size=[512, 512],
        raw_sizes=[[640, 512], [640, 512]],
        raw_cf_to_cf=np.eye(3).tolist(),
        fa_to_cf=[],
        points=[],
        inliers=20,
        residual_px=residual,
        consistency_before=consistency,
        consistency=consistency,
        files_sha256={},
    )


def test_pairs_that_fit_worse_than_the_others_are_doubted():
    """Consistencies as those of seven real pairs; .29 is what a registration that was 18 px off had."""
    usual = [_outcome(n, consistency, 2.0) for n, consistency in enumerate((0.51, 0.67, 0.65, 0.57, 0.61, 0.66, 0.71))]
    assert doubtful(usual, 512) == {}
    low = doubtful([*usual, _outcome(7, 0.29, 2.0)], 512)
    assert list(low) == ["7"]
    assert "consistency 0.29, the median of the others is 0.65" in low["7"]
    far = doubtful([*usual, _outcome(7, 0.6, 4.5)], 512)
    assert far == {"7": "residual 4.5 px, the median of the others is 2.0 px"}
    assert doubtful([*usual, _outcome(7, 0.6, 4.5)], 2048) == {}  # 1.1 px at 512
    assert doubtful([*usual[:3], _outcome(7, 0.29, 9.0)], 512) == {}  # too few to compare
    assert doubtful([_outcome(0, 0.6, 1.0, "2 features")], 512) == {"0": "2 features"}


def test_doubtful_pairs_are_listed_last_and_shown_first(raw, tmp_path, capsys, monkeypatch):
    from retipair.preparation import summary

    shown = []
    monkeypatch.setattr(summary, "doubtful", lambda outcomes, size: {"002": "it is odd"})
    monkeypatch.setattr(
        summary, "load_titled", lambda out, record, doubt: shown.append((record.id, doubt)) or load_titled(out, record)
    )
    assert _prepare(raw, tmp_path / "out") == 0
    assert shown == [("002", "it is odd"), ("001", None), ("003", None)]
    said = capsys.readouterr().out
    assert "002: it is odd" in said[said.index("Check these first") :]


def test_views_of_other_sizes_and_depths_fit_too(raw, tmp_path):
    other = tmp_path / "raw"
    shutil.copytree(raw, other)
    path = other / "001/001_02.png"
    fa = np.pad(np.asarray(Image.open(path)), ((0, 40), (0, 10))).astype(np.uint16) * 257
    Image.fromarray(fa).save(path)
    assert _prepare(other, tmp_path / "out") == 0
    assert next(iter(read_manifest(tmp_path / "out"))).residual_px < 2


def test_aligned_views_can_be_left_alone(tmp_path):
    for seed in (1, 2):
        eye = draw_raw(seed, size=128, points=0)
        cf, fa = draw_pair(seed, 128)
        write_eye(tmp_path / "raw", f"{seed}", replace(eye, cf=cf, fa=fa))
    for path in (tmp_path / "raw").glob("*.txt"):
        path.unlink()
    assert _prepare(tmp_path / "raw", tmp_path / "out", "--register", "none") == 0
    records = list(read_manifest(tmp_path / "out"))
    assert all(record.inliers is None and record.consistency > 0.2 for record in records)
    assert all(record.consistency == record.consistency_before for record in records)


def test_a_refused_pair_is_named_and_left_out(raw, tmp_path, capsys):
    wrong = tmp_path / "raw"
    shutil.copytree(raw, wrong)
    points = np.random.default_rng(0).uniform(40, 180, (20, 2))
    np.savetxt(wrong / "001/001_02.txt", points)
    assert _prepare(wrong, tmp_path / "out") == 0
    assert "of 20 points agree" in capsys.readouterr().out
    assert [record.id for record in read_manifest(tmp_path / "out")] == ["002", "003"]
    assert not (tmp_path / "out/cf/001.png").exists()


@pytest.mark.parametrize(
    ("fault", "register"),
    [
        pytest.param("another eye", "none", marks=pytest.mark.nightly),
        pytest.param("another eye", "points", marks=pytest.mark.slow),  # the compromise is searched
        pytest.param("black", "points", marks=pytest.mark.nightly),
        ("black", "none"),
    ],
)
def test_views_that_do_not_match_are_refused_whatever_the_points_say(tmp_path, capsys, register, fault):
    raw = tmp_path / "raw"
    for seed in range(1, 4):
        eye = draw_raw(seed, size=224)
        cf, fa = draw_pair(seed, 224)
        write_eye(raw / f"{seed}", f"{seed}", replace(eye, cf=cf, fa=fa, fa_points=eye.cf_points))
    wrong = {"another eye": draw_pair(9, 224)[1], "black": np.zeros((224, 224), np.uint8)}
    Image.fromarray(wrong[fault]).save(raw / "1/1_02.png")
    assert _prepare(raw, tmp_path / "out", "--register", register) == 0
    said = capsys.readouterr().out
    [row] = [cells for line in said.splitlines() if (cells := line.strip("│┃ ").split("│"))[0].strip() == "1"]
    shown = row[5].split("->")[1].strip()
    assert f"refused: consistency {shown} < 0." in " ".join(row[6].split())
    assert [record.id for record in read_manifest(tmp_path / "out")] == ["2", "3"]


@pytest.mark.nightly
def test_the_residual_limit_is_meant_at_512(raw, prepared, tmp_path, capsys):
    residuals = [record.residual_px for record in read_manifest(prepared)]
    limit = f"{min(residuals) * 2:.2f}"  # at 128 px, half of which is below every residual
    assert _prepare(raw, tmp_path / "other", "--max_residual_px", limit) == 2
    said = capsys.readouterr()
    assert "all 3 pairs were refused" in said.err
    assert "px at 512" in said.out
    limit = f"{max(residuals) * 4.1:.2f}"
    assert _prepare(raw, tmp_path / "other", "--max_residual_px", limit) == 0


@pytest.mark.nightly
def test_too_few_pairs_left_write_nothing(raw, tmp_path, capsys):
    assert _prepare(raw, tmp_path / "out", "--max_residual_px", "0.0001") == 2
    said = capsys.readouterr()
    assert "all 3 pairs were refused" in said.err
    assert "(001: median residual" in said.err
    assert "prepare again" in said.err
    assert "eye(s)" not in said.err
    assert "median residual" in said.out
    assert not (tmp_path / "out").exists()


def _remove(raw: Path) -> None:
    (raw / "001/001_02.png").unlink()


def _truncate(raw: Path) -> None:
    path = raw / "002/002_01.png"
    path.write_bytes(path.read_bytes()[:2000])


def _garble(raw: Path) -> None:
    (raw / "002/002_01.png").write_text("no image")


def _drop_a_point(raw: Path) -> None:
    path = raw / "003/003_01.txt"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))


def _nan(raw: Path) -> None:
    path = raw / "003/003_01.txt"
    path.write_text("nan 3\n" + "\n".join(path.read_text().splitlines()[1:]))


def _far_away(raw: Path) -> None:
    path = raw / "003/003_02.txt"
    path.write_text("9000 3\n" + "\n".join(path.read_text().splitlines()[1:]))


def _line_up(raw: Path) -> None:
    np.savetxt(raw / "003/003_02.txt", np.repeat(np.arange(20.0)[:, None] + 50, 2, axis=1))


def _grey(raw: Path) -> None:
    Image.open(raw / "001/001_01.png").convert("L").save(raw / "001/001_01.png")


def _one_eye(raw: Path) -> None:
    (raw / "eyes.csv").write_text("id,eye\n001,1\n002,1\n003,1\n")


def _split_of_two(raw: Path) -> None:
    (raw / "eyes.csv").write_text("id,eye,split\n001,1,train\n002,2,\n003,3,val\n")


@pytest.mark.parametrize(
    ("harm", "file", "said"),
    [
        (_remove, "001_01.png", "partner 001_02 is missing"),
        (_truncate, "002_01.png", "cannot be read"),
        (_garble, "002_01.png", "unsupported image format"),
        (_drop_a_point, "003_01.txt", "19 points but 003_02.txt has 20"),
        (_nan, "003_01.txt", "line 1"),
        (_far_away, "003_02.txt", "outside"),
        (_line_up, "003_02.txt", "on one line"),
        (_grey, "001_01.png", "in colour"),
        (_one_eye, "eyes.csv", "add pairs of other eyes"),
        (_split_of_two, "eyes.csv: ", "pair '002' has no split"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(raw, tmp_path, capsys, harm, file, said):
    bad = tmp_path / "raw"
    shutil.copytree(raw, bad)
    harm(bad)
    assert _prepare(bad, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert file in message
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ("--size", "100"),
        ("--size", "0"),
        ("--val_fraction", "0"),
        ("--val_fraction", "0.6", "--test_fraction", "0.5"),
        ("--size", "4160"),
        ("--max_residual_px", "0"),
        ("--max_residual_px", "nan"),
        ("--max_residual_px", "inf"),
        ("--min_consistency", "1.01"),
        ("--min_consistency", "nan"),
        ("--workers", "-1"),
    ],
)
def test_settings_that_cannot_work_are_named(raw, tmp_path, capsys, flags):
    assert _prepare(raw, tmp_path / "out", *flags) == 2
    assert flags[0] in capsys.readouterr().err


def test_points_cannot_be_asked_for_where_there_are_none(raw, tmp_path, capsys):
    bare = tmp_path / "raw"
    shutil.copytree(raw, bare, ignore=shutil.ignore_patterns("*.txt"))
    assert _prepare(bare, tmp_path / "out", "--register", "points") == 2
    assert "no points for this pair" in capsys.readouterr().err


@pytest.mark.parametrize("register", ["auto", "points", "features", "none"])
@pytest.mark.parametrize("form", ["one file", "a copy", "another format"])
def test_one_image_is_no_pair(raw, tmp_path, capsys, register, form):
    folder = tmp_path / "raw"
    shutil.copytree(raw, folder)
    other = {"one file": "001_01.png", "a copy": "copy.png", "another format": "copy.tif"}[form]
    if form != "one file":
        with Image.open(folder / "001/001_01.png") as image:
            image.save(folder / "001" / other)
    rows = ["001,001/001_01.png," + f"001/{other},001/001_01.txt,001/001_01.txt\n"]
    rows += [f"{name},{name}/{name}_01.png,{name}/{name}_02.png,,\n" for name in ("002", "003")]
    (folder / "t.csv").write_text("".join(["id,cf,fa,cf_points,fa_points\n", *rows]))
    assert _prepare(folder / "t.csv", tmp_path / "out", "--register", register) == 2
    assert f"{other}: the same image as 001_01.png" in capsys.readouterr().err


@pytest.mark.parametrize("linked", [False, True])
def test_out_must_not_hold_the_raw_views(prepared, tmp_path, capsys, linked):
    out = tmp_path / "out"
    shutil.copytree(prepared, out)
    ids = [record.id for record in read_manifest(out)]
    folder = tmp_path / "links" if linked else out
    if linked:
        for view in ("cf", "fa"):
            (folder / view).mkdir(parents=True)
            for name in ids:
                (folder / view / f"{name}.png").symlink_to(out / view / f"{name}.png")
    rows = [f"x{name},cf/{name}.png,fa/{name}.png\n" for name in ids]
    (folder / "t.csv").write_text("".join(["id,cf,fa\n", *rows]))
    before = contents(out)
    assert _prepare(folder / "t.csv", out) == 2
    assert "lies in OUT" in capsys.readouterr().err
    assert contents(out) == before


def test_out_must_not_be_among_the_raw_views_nor_hold_other_files(raw, tmp_path, refused):
    (tmp_path / "thesis.tex").touch()
    for out in (raw, raw / "out", tmp_path, tmp_path / "thesis.tex"):
        line = refused("prepare", raw, out, "--workers", 1)
        assert (line.kind, line.path) == (OccupiedError, out)


def test_what_a_run_that_was_cut_off_left_is_no_other_file(raw, prepared, tmp_path):
    (tmp_path / "out/.partial/cf").mkdir(parents=True)
    for name in (".prepare.json.partial", ".manifest.jsonl.partial", ".contact_sheet.png.partial"):
        (tmp_path / "out" / name).touch()
    assert _prepare(raw, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(prepared)


_SCHEMA = '{"schema": "retipair.prepare-state/1"'


@pytest.mark.parametrize("state", ["", "[]", "null", f"{_SCHEMA}}}", f'{_SCHEMA}, "pairs": [1]}}', "mistyped"])
def test_a_state_file_of_another_shape_is_none(prepared, tmp_path, state):
    if state == "mistyped":
        values = json.loads((prepared / ".prepare.json").read_text())
        values["pairs"][0]["id"] = ["001"]
        state = json.dumps(values)
    (tmp_path / ".prepare.json").write_text(state)
    assert load_previous_results(tmp_path) == {}
    assert len(load_previous_results(prepared)) == 3


def _copied(raw: Path, folder: Path, source: str, name: str) -> None:
    """Another pair of the same views, without their points."""
    (folder / name).mkdir(parents=True)
    for view in ("01", "02"):
        shutil.copy(raw / source / f"{source}_{view}.png", folder / name / f"{name}_{view}.png")


def _as_bmp(folder: Path) -> None:
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".bmp"))
        path.unlink()


def _with_metadata(folder: Path) -> None:
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            save_image(path, np.asarray(image), {"Comment": "exported twice"})


def _stored_turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_180).save(path, exif=exif)


def _swapped(folder: Path) -> None:
    (cf, fa), other = sorted(folder.iterdir()), folder / "other.png"
    cf.rename(other)
    fa.rename(cf)
    other.rename(fa)


@pytest.mark.parametrize("change", [lambda folder: None, _as_bmp, _with_metadata, _stored_turned, _swapped])
def test_pairs_of_equal_pixels_are_all_named_and_the_first_is_kept(raw, tmp_path, capsys, change):
    twice = tmp_path / "raw"
    shutil.copytree(raw, twice)
    for source, name in (("001", "004"), ("002", "005"), ("001", "006")):
        _copied(raw, twice, source, name)
        change(twice / name)
    assert _prepare(twice, tmp_path / "out") == 2
    said = capsys.readouterr().err
    for source, name in (("001", "004"), ("002", "005"), ("001", "006")):
        assert f"pair '{name}' shows the same two images as pair '{source}'" in " ".join(said.split())
    assert not (tmp_path / "out").exists()
    assert _prepare(twice, tmp_path / "out", "--skip_bad") == 0
    assert [record.id for record in read_manifest(tmp_path / "out")] == ["001", "002", "003"]
    assert len((tmp_path / "out/skipped.txt").read_text().splitlines()) == 3


def _with_frames(raw: Path, folder: Path, view: str) -> Path:
    """Pairs 004 and 005 share one view of 001 and 002; their other view is a later frame, a little brighter."""
    shutil.copytree(raw, folder)
    for source, name in (("001", "004"), ("002", "005")):
        shutil.copytree(raw / source, folder / name)
        for path in list((folder / name).iterdir()):
            path.rename(path.with_name(path.name.replace(source, name)))
        path = folder / name / f"{name}_{view}.png"
        with Image.open(path) as image:
            frame = np.asarray(image)
        Image.fromarray(np.where(frame > 0, frame // 2 + 60, 0).astype(np.uint8)).save(path)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("other", ["01", "02"])
@pytest.mark.parametrize("hidden", [False, True])
def test_pairs_that_share_a_view_are_of_one_eye(raw, tmp_path, capsys, other, hidden):
    frames = _with_frames(raw, tmp_path / "raw", other)
    flags = ["--anonymise", str(tmp_path / "key")] if hidden else []
    assert _prepare(frames, tmp_path / "out", *flags) == 0
    assert "one eye and get one split: 001 + 004; 002 + 005" in " ".join(capsys.readouterr().out.split())
    records = list(read_manifest(tmp_path / "out"))
    eyes = {eye: {one.split for one in records if one.eye == eye} for eye in {one.eye for one in records}}
    assert len(records) == 5
    assert len(eyes) == 3
    assert all(len(sides) == 1 for sides in eyes.values())
    if not hidden:
        assert [one.eye for one in records] == ["001", "002", "003", "001", "002"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("id,eye\n001,a\n002,b\n003,c\n004,d\n005,b\n", "'001' and '004' share a view but their eye is 'a' and 'd'"),
        (
            "id,eye,patient\n001,OD,p\n002,OD,q\n003,OD,r\n004,OD,s\n005,OD,q\n",
            "'001' and '004' share a view but their patient is 'p' and 's'",
        ),
        (
            "id,eye,split\n001,a,train\n002,b,val\n003,c,train\n004,a,train\n005,b,train\n",
            "'002' and '005' share a view but their split is 'val' and 'train'",
        ),
        ("id,eye\n001,a\n002,b\n003,c\n004,a\n005,b\n", None),
        ("id,eye,patient\n001,OD,p\n002,OD,q\n003,OD,r\n004,OD,\n005,OD,q\n", None),
    ],
)
def test_a_table_that_divides_one_view_is_refused(raw, tmp_path, capsys, lines, said):
    frames = _with_frames(raw, tmp_path / "raw", "02")
    (frames / "eyes.csv").write_text(lines)
    assert _prepare(frames, tmp_path / "out") == (2 if said else 0)
    told = capsys.readouterr()
    assert (said or "") in " ".join(told.err.split())
    assert ("share a view (equal pixels)" in told.out) is ("004,OD,\n" in lines)
    assert (tmp_path / "out").exists() is (said is None)


def test_a_missing_or_empty_folder_is_named(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    for raw in (tmp_path / "gone", tmp_path / "empty"):
        line = refused("prepare", raw, tmp_path / "out")
        assert (line.kind, line.path) == (MissingError, raw)


def test_a_fingerprint_knows_content_and_settings_but_not_places(raw, tmp_path):
    config = PrepareConfig(raw=raw, out=tmp_path / "out")
    copy = tmp_path / "copy"
    shutil.copytree(raw, copy)
    same = fingerprint(config)
    assert fingerprint(replace(config, raw=copy, out=tmp_path, workers=3)) == same
    for changed in ({"size": 256}, {"min_consistency": 0.3}, {"allow_mirror": True}):
        assert fingerprint(replace(config, **changed)) != same
    (copy / "eyes.csv").write_text("id,eye\n001,a\n002,b\n003,c\n")
    assert fingerprint(replace(config, raw=copy)) != same
    (copy / "eyes.csv").unlink()
    (copy / "001/001_01.txt").write_text("1 2\n")
    assert fingerprint(replace(config, raw=copy)) != same


def test_a_prepared_folder_has_a_manifest(prepared, raw):
    assert has_manifest(prepared)
    assert not has_manifest(raw)
    assert not has_manifest(raw / "gone")


def test_the_state_holds_no_times_and_no_places(prepared, raw):
    text = (prepared / ".prepare.json").read_text()
    assert str(raw) not in text
    assert set(json.loads(text)) == {"schema", "pairs"}


def test_what_phantom_drew_is_not_overwritten(raw, tmp_path, refused):
    assert main(["phantom", str(tmp_path / "drawn"), "--amount", "2", "--size", "64"]) == 0
    before = contents(tmp_path / "drawn")
    line = refused("prepare", raw, tmp_path / "drawn")
    assert (line.kind, line.path) == (OccupiedError, tmp_path / "drawn")
    assert contents(tmp_path / "drawn") == before


@pytest.mark.nightly
def test_workers_are_gone_when_the_command_is_killed(raw, tmp_path):
    command = ["prepare", str(raw), str(tmp_path / "out"), "--size", "128", "--workers", "2"]
    with started(command) as process:
        staging = tmp_path / "out/.partial"
        wait_for(lambda: staging.exists() and any(staging.glob("*.json")), process)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) >= 2
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
