import copy
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch.utils.data import DataLoader

import retipair
from compare import contents
from conftest import VIEW, write_prepared
from eyes import apply, draw_pair
from judging import write_generated
from killing import Death, kill_all
from refusals import Refused, raises_file, raises_setting
from retipair.data.manifest import GeneratedPair, PreparedPair, read_manifest, write_manifest
from retipair.data.pair import Pair, load_image, synthetic_mark_of
from retipair.interfaces.cli import main
from retipair.matching import warped_pair
from retipair.matching.export_pair import PairExporter
from retipair.matching.samples import MatchSample, read_samples
from retipair.matching.warped_pair import Variation
from retipair.matching.warps import WIDE, WarpRanges
from retipair.models.device import torch_setting
from retipair.runtime.errors import DamagedError

Fill = Callable[[Path], None]


def export(pairs: Path, out: Path, *more: object) -> Path:
    words = ["export", "matches", pairs, out, "--workers", 1, "--ranges", "wide", *more]
    assert main(list(map(str, words))) == 0
    return out


def samples(out: Path, variant: str) -> list[MatchSample]:
    return [sample for sample in read_samples(out) if sample.variant == variant]


@pytest.fixture(scope="module")
def exported(once: Callable[[str, Fill], Path], prepared: Path) -> Path:
    return once("exported", lambda out: void(export(prepared, out / "out", "--warps", 2, "--appearance"))) / "out"


def void(_: object) -> None:
    return None


def test_each_pair_gives_the_aligned_pair_and_its_variants(exported: Path, prepared: Path) -> None:
    listed = list(read_samples(exported))
    variants = ["aligned", "warp_1", "warp_2", "appearance"]
    records = list(read_manifest(prepared))
    assert [(s.id, s.variant) for s in listed] == [(r.id, variant) for r in records for variant in variants]
    assert [s.split for s in listed[:: len(variants)]] == [r.split for r in records]
    for sample in listed:
        for path in sample.files:
            assert (exported / path).is_file()
        views = [load_image(exported / path, mode) for path, mode in ((sample.cf, "RGB"), (sample.fa, "L"))]
        assert [view.shape[:2] for view in views] == [(VIEW, VIEW)] * 2
        assert not sample.synthetic


def test_the_aligned_variant_has_the_pixels_of_the_pair(exported: Path, prepared: Path) -> None:
    for record, sample in zip(read_manifest(prepared), samples(exported, "aligned"), strict=True):
        assert sample.h_cf_to_fa == np.eye(3).tolist()
        for path, original, mode in ((sample.cf, record.cf, "RGB"), (sample.fa, record.fa, "L")):
            np.testing.assert_array_equal(load_image(exported / path, mode), load_image(prepared / original, mode))


def test_the_homography_maps_the_landmarks_onto_their_partners(exported: Path) -> None:
    found = 0
    for sample in read_samples(exported):
        landmarks = np.loadtxt(exported / sample.landmarks, ndmin=2).reshape(-1, 4)
        errors = apply(np.array(sample.h_cf_to_fa), landmarks[:, :2]) - landmarks[:, 2:]
        assert np.abs(errors).max(initial=0) < 1e-6
        found += len(landmarks)
    assert found > 50


def test_an_elastic_export_has_the_field_and_is_marked(prepared: Path, tmp_path: Path) -> None:
    out = export(prepared, tmp_path / "out", "--elastic", 10, "--split", "val")
    [sample] = samples(out, "warp_1")
    assert sample.field is not None
    residual = np.load(out / sample.field)["residual"]
    assert (residual.dtype, residual.shape) == (np.float16, (VIEW, VIEW, 2))
    landmarks = np.loadtxt(out / sample.landmarks, ndmin=2).reshape(-1, 4)
    columns, rows = np.rint(landmarks[:, :2]).astype(int).T
    by_field = apply(np.array(sample.h_cf_to_fa), landmarks[:, :2]) + residual[rows, columns]
    assert np.abs(by_field - landmarks[:, 2:]).max() < 0.1  # the field at the nearest pixel
    assert [s.field for s in samples(out, "aligned")] == [None]


def test_more_warps_keep_the_earlier_ones(exported: Path, prepared: Path, tmp_path: Path) -> None:
    out = shutil.copytree(exported, tmp_path / "out")
    export(prepared, out, "--warps", 3, "--appearance")
    before, after = contents(exported), contents(out)
    kept = [name for name in before if name.endswith((".png", ".txt"))]
    assert all(before[name] == after[name] for name in kept)
    assert len(samples(out, "warp_3")) == len(samples(exported, "warp_2"))


def test_files_do_not_depend_on_the_number_of_processes(exported: Path, prepared: Path, tmp_path: Path) -> None:
    out = export(prepared, tmp_path / "out", "--warps", 2, "--appearance", "--workers", 2)
    assert contents(out) == contents(exported)


def test_vessels_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes have one thread; the process of --workers 1 may have more, which changes the rounding."""
    used: list[int] = []

    def segment(flat: np.ndarray) -> np.ndarray:
        used.append(torch.get_num_threads())
        return flat > 0

    monkeypatch.setattr(warped_pair, "segment_flattened", segment)
    with torch_setting(2, torch.get_num_threads, torch.set_num_threads):
        warped_pair.segment_pair(Pair(*draw_pair(0, VIEW), np.ones((VIEW, VIEW), dtype=bool)))
        assert (used, torch.get_num_threads()) == ([1], 2)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS cannot fork after loading these libraries")
def test_killed_anywhere_it_is_completed_with_the_same_files(exported: Path, prepared: Path, tmp_path: Path) -> None:
    command = ["export", "matches", str(prepared), "OUT", "--workers", "1", "--ranges", "wide"]
    more = ["--warps", "2", "--appearance"]
    places = [
        ("retipair.matching.export_pair:PairExporter.write", 3),
        ("retipair.matching.export_pair:write_png", 9),
        ("retipair.runtime.atomic_io:recover_dir", 2),
        ("retipair.matching.export:write_samples", 1),
    ]
    outs = [tmp_path / f"{number}" for number in range(len(places))]
    commands = [[str(out) if word == "OUT" else word for word in (*command, *more)] for out in outs]
    kill_all([Death(words, *place) for words, place in zip(commands, places, strict=True)])
    for out in outs:
        assert not (out / "matches.jsonl").exists()
        export(prepared, out, *more)
        assert contents(out) == contents(exported)


def test_only_changed_pairs_are_written_again(exported: Path, prepared: Path, tmp_path: Path) -> None:
    pairs, out = shutil.copytree(prepared, tmp_path / "pairs"), shutil.copytree(exported, tmp_path / "out")
    first, second, *_ = read_manifest(pairs)
    shutil.copyfile(pairs / first.fa, pairs / second.fa)
    (pairs / "rejected.txt").write_text("eye3\n")
    (out / f"pairs/{first.id}/warp_1/fa_warped.png").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in (out / "pairs").iterdir()}
    export(pairs, out, "--warps", 2, "--appearance")
    again = {path.name: path.stat().st_mtime_ns for path in (out / "pairs").iterdir()}
    assert {name for name in again if again[name] != times[name]} == {first.id, second.id}
    assert "eye3" not in again
    assert {sample.id for sample in read_samples(out)} == set(again)


def test_synthetic_pairs_stay_marked(tmp_path: Path) -> None:
    eyes = tmp_path / "eyes"
    assert main(["phantom", str(eyes), "--amount", "2", "--size", "64"]) == 0
    out = export(eyes, tmp_path / "out", "--appearance")
    for sample in read_samples(out):
        assert sample.synthetic
        for path in (sample.cf, sample.fa):
            assert synthetic_mark_of([out / path])["Synthetic"].startswith("yes")


def test_pairs_drawn_for_real_eyes_get_the_splits_of_these_eyes(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated = write_generated(tmp_path / "generated", 5)
    eyes = ["eye0", "eye1", "eye2", "eye3", "unknown"]
    drawn = [
        replace(record, mode="cf2fa", source_id=eye, source_eye=eye)
        for record, eye in zip(read_manifest(generated), eyes, strict=True)
        if isinstance(record, GeneratedPair)
    ]
    write_manifest(generated, drawn)
    out = export(generated, tmp_path / "out", "--real", prepared)
    assert [sample.split for sample in samples(out, "aligned")][:4] == ["train", "val", "train", "test"]
    assert "1 pairs were generated from eyes whose splits are not known (first: 5)" in capsys.readouterr().err
    export(generated, tmp_path / "other")
    assert "5 pairs were generated from eyes whose splits are not known" in capsys.readouterr().err


def test_pairs_are_exported_at_another_size(prepared: Path, tmp_path: Path) -> None:
    out = export(prepared, tmp_path / "out", "--size", 64, "--split", "val")
    [sample] = samples(out, "warp_1")
    assert sample.size == 64
    assert load_image(out / sample.vessels_fa, "L").shape == (64, 64)


@pytest.mark.nightly
@pytest.mark.parametrize(("method", "limit"), [("points", 0.1), ("features", 0.75)])
def test_prepare_finds_the_homographies_of_an_export(tmp_path: Path, method: str, limit: float) -> None:
    assert main(["phantom", str(tmp_path / "eyes"), "--amount", "5", "--seed", "1", "--disease", "healthy"]) == 0
    out, again = (
        export(tmp_path / "eyes", tmp_path / "out", "--ranges", "typical", "--to", "numbered"),
        tmp_path / "again",
    )
    raw = ["prepare", str(out / "numbered"), str(again), "--register", method, "--workers", "1"]
    assert main(raw) == 0
    true = {sample.name: np.array(sample.h_cf_to_fa) for sample in read_samples(out)}
    corners = np.array([[0, 0], [511, 0], [0, 511], [511, 511]])
    errors = []
    for record in read_manifest(again):
        assert isinstance(record, PreparedPair)
        found = np.linalg.inv(record.fa_to_cf) @ np.array(record.raw_cf_to_cf)
        distances = np.linalg.norm(apply(found, corners) - apply(true[record.id], corners), axis=1)
        errors.append(distances.mean())
    assert len(errors) >= 8
    assert np.median(errors) < limit


def test_forms_of_other_samples_are_deleted(prepared: Path, tmp_path: Path) -> None:
    """The lists of glue-factory and the scenes of LoFTR would combine earlier homographies with the new images."""
    out = export(prepared, tmp_path / "out", "--to", "glue_factory", "numbered")
    before = contents(out)
    export(prepared, out, "--to", "segmented")
    kept = contents(out)
    assert {name: kept[name] for name in before} == before
    export(prepared, out, "--to", "segmented", "--split", "train")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["pairs", "segmented"]
    assert len(list((out / "segmented/train").iterdir())) == len(samples(out, "warp_1"))
    export(prepared, out, "--seed", 1)
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["pairs"]


def test_folders_that_are_not_of_pairs_are_kept(prepared: Path, tmp_path: Path) -> None:
    out = export(prepared, tmp_path / "out")
    mine = shutil.copytree(prepared, out / "pairs/mine")
    for name in (".mine", ".eye0.partial", ".eye0.before"):  # an interrupted write leaves the last two
        (out / "pairs" / name).mkdir()
    export(mine, out, "--split", "val")
    assert contents(mine) == contents(prepared)
    kept = [".mine", "mine", samples(out, "aligned")[0].id]
    assert sorted(path.name for path in (out / "pairs").iterdir()) == sorted(kept)


def test_a_list_without_samples_is_damaged_and_written_again(exported: Path, prepared: Path, tmp_path: Path) -> None:
    out = shutil.copytree(exported, tmp_path / "out")
    path = next((out / "pairs").glob("*/samples.json"))
    values = json.loads(path.read_text())
    path.write_text(json.dumps({"key": values["key"]}))
    with raises_file(path, DamagedError):
        PairExporter(out, Variation(WIDE), 2, True, None).samples(path.parent.name)
    export(prepared, out, "--warps", 2, "--appearance")
    assert contents(out) == contents(exported)


def change_line(folder: Path, number: int, **values: object) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | values)
    (folder / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_damaged_pairs_are_refused_before_anything_is_written(
    exported: Path, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    pairs, out = shutil.copytree(prepared, tmp_path / "pairs"), shutil.copytree(exported, tmp_path / "out")
    *_, last = read_manifest(pairs)
    command = ["export", "matches", str(pairs), str(out), "--workers", "1", "--ranges", "wide"]
    (pairs / last.fa).write_bytes((pairs / last.fa).read_bytes()[:99])
    assert refused(*command, "--seed", "1").path == pairs / last.fa
    (pairs / last.fa).unlink()
    assert refused(*command, "--seed", "1").path == pairs / last.fa
    assert refused(*command[:3], str(tmp_path / "new"), *command[4:]).path == pairs / last.fa
    assert contents(out) == contents(exported)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("id", ["../../victim", "a b", "", ".a", "x" * 201, "EYE0"])
def test_ids_that_are_no_folder_names_are_refused(prepared: Path, tmp_path: Path, refused: Refused, id: str) -> None:
    pairs, victim = shutil.copytree(prepared, tmp_path / "pairs"), tmp_path / "victim"
    victim.mkdir()
    change_line(pairs, 1, id=id)
    assert refused("export", "matches", pairs, tmp_path / "out", "--ranges", "wide").path == pairs / "manifest.jsonl"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "victim"]
    assert not any(victim.iterdir())


def test_a_form_that_cannot_be_written_is_refused_first(
    prepared: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "h5py" in refused("export", "matches", prepared, tmp_path / "out", "--to", "megadepth")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        (["--warps", "0"], "warps"),
        (["--elastic", "21"], "elastic"),
        (["--size", "100"], "size"),
        (["--seed", "-1"], "seed"),
        (["--workers", "-1"], "workers"),
        (["--scale", "1.2", "0.8"], "scale"),
        (["--rotation", "0", "400"], "rotation"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    prepared: Path, tmp_path: Path, refused: Refused, more: list[str], setting: str
) -> None:
    command = ["export", "matches", prepared, tmp_path / "out", "--ranges", "wide", *more]
    assert refused(*map(str, command)).setting == setting
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_are_refused(prepared: Path, tmp_path: Path, refused: Refused) -> None:
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    assert refused("export", "matches", str(prepared), str(occupied)).path == occupied
    assert refused("export", "matches", str(prepared), str(prepared / "out")).path == prepared / "out"
    assert refused("export", "matches", str(tmp_path / "empty"), str(tmp_path / "out")).path == tmp_path / "empty"
    fitted = refused("export", "matches", str(prepared), str(tmp_path / "out"), "--ranges", "fitted")
    assert fitted.path == prepared
    one = write_prepared(tmp_path / "one", ["train"])
    assert refused("export", "matches", str(one), str(tmp_path / "out"), "--split", "test").setting == "split"
    assert not (tmp_path / "out").exists()


def test_the_dataset_gives_what_the_export_wrote(exported: Path, prepared: Path) -> None:
    dataset = retipair.WarpedPairs(prepared, ranges="wide")
    changed = retipair.WarpedPairs(prepared, ranges="wide", appearance=True)
    for epoch, variant, pairs in ((1, "warp_1", dataset), (2, "warp_2", dataset), (0, "appearance", changed)):
        pairs.set_epoch(epoch)
        for sample, item in zip(samples(exported, variant), (pairs[i] for i in range(len(pairs))), strict=True):
            images = [load_image(exported / path, mode) for path, mode in ((sample.cf, "RGB"), (sample.fa, "L"))]
            np.testing.assert_array_equal((item["image0"] * 255).round().byte().permute(1, 2, 0), images[0])
            np.testing.assert_array_equal((item["image1"][0] * 255).round().byte(), images[1])
            for key, path in (("mask0", sample.valid_cf), ("mask1", sample.valid_fa)):
                np.testing.assert_array_equal(item[key], load_image(exported / path, "L") > 0)
            assert item["H_0to1"].tolist() == sample.h_cf_to_fa
            landmarks = np.loadtxt(exported / sample.landmarks, ndmin=2).reshape(-1, 4)[:128]
            points = torch.cat([item["keypoints0"], item["keypoints1"]], dim=1)[: len(landmarks)]
            np.testing.assert_allclose(points, landmarks, atol=1e-4)
            assert torch.isnan(item["keypoints0"][len(landmarks) :]).all()
            assert (item["id"], item["split"]) == (sample.id, sample.split)


def test_a_grey_first_view_stays_grey_and_is_what_the_export_wrote(tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs", tmp_path / "out"
    retipair.phantom(pairs, amount=4, size=64, modalities=("red_free", "fa"))
    retipair.export_matches(pairs, out, ranges="wide", warps=1, appearance=True, workers=1)
    changed = retipair.WarpedPairs(pairs, ranges="wide", appearance=True)
    for sample, item in zip(samples(out, "appearance"), (changed[i] for i in range(4)), strict=True):
        image = (item["image0"] * 255).round().byte()
        assert (image == image[:1]).all()
        np.testing.assert_array_equal(image[0], load_image(out / sample.cf, "L"))


def test_without_keypoints_no_vessels_are_segmented(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_keypoints = retipair.WarpedPairs(prepared, ranges="wide")[0]
    monkeypatch.setattr("retipair.matching.torch_dataset.segment_pair", None)
    item = retipair.WarpedPairs(prepared, ranges="wide", keypoints=0)[0]
    assert item["keypoints0"].shape == item["keypoints1"].shape == (0, 2)
    assert torch.equal(item["image1"], with_keypoints["image1"])
    assert torch.equal(item["H_0to1"], with_keypoints["H_0to1"])


def test_workers_of_a_loader_give_the_same_items_and_follow_the_epoch(prepared: Path) -> None:
    dataset = retipair.WarpedPairs(prepared, ranges="wide", elastic=5.0)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True)
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        batches = list(loader)
        for key in ("image1", "H_0to1", "residual_0to1", "keypoints1"):
            expected = torch.stack([dataset[i][key] for i in range(len(dataset))])
            torch.testing.assert_close(
                torch.cat([batch[key] for batch in batches]), expected, rtol=0, atol=0, equal_nan=True
            )


FORKED = """
import sys, cv2, numpy, torch, retipair
cv2.setNumThreads(2)
cv2.warpPerspective(numpy.zeros((3000, 3000, 3), numpy.uint8), numpy.eye(3), (3000, 3000))  # starts OpenCV's threads
pairs = retipair.WarpedPairs(sys.argv[1], ranges="typical", appearance=True, elastic=2.0)
print(len(list(torch.utils.data.DataLoader(pairs, num_workers=1, multiprocessing_context="fork"))))
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS cannot fork after loading these libraries")
def test_forked_workers_do_not_hang_if_opencv_has_used_threads(prepared: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(prepared)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["5"], done.stderr


def test_a_dataset_that_cannot_be_is_refused(prepared: Path, tmp_path: Path) -> None:
    with raises_setting("split"):
        retipair.WarpedPairs(write_prepared(tmp_path / "one", ["train"]), split="val", ranges="typical")
    with raises_setting("folders"):
        retipair.WarpedPairs([])
    for epoch in (-1, 1.5, "1", 2**63):
        with raises_setting("epoch"):
            retipair.WarpedPairs(prepared, ranges="typical").set_epoch(epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"elastic": -1.0},
        {"elastic": 21.0},
        {"elastic": float("nan")},
        {"elastic": "5"},
        {"seed": -1},
        {"seed": 1.5},
        {"size": 100},
        {"size": "64"},
        {"keypoints": -1},
        {"keypoints": 257},
        {"appearance": "yes"},
        {"ranges": "WIDE"},
        {"ranges": None},
        {"ranges": WarpRanges((), (1.0,), (0.0,), (0.0,))},
        {"ranges": WarpRanges((0.0,), (0.0, 1.0), (0.0,), (0.0,))},
        {"ranges": WarpRanges((0.0,), (1.2, 0.8), (0.0,), (0.0,))},
        {"ranges": WarpRanges((0.0,), (1.0,), (0.0, float("nan")), (0.0,))},
        {"ranges": WarpRanges((0.0,), (1.0,), (0.0,), (0.0, 0.1))},
    ],
)
def test_settings_of_a_dataset_that_cannot_be_are_refused(prepared: Path, settings: dict[str, Any]) -> None:
    with raises_setting(*settings):
        retipair.WarpedPairs(prepared, **{"ranges": "typical", **settings})


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS cannot fork after loading these libraries")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))])
def test_running_workers_of_a_copied_dataset_follow_the_epoch(prepared: Path, copied: Callable[[Any], Any]) -> None:
    dataset = copied(retipair.WarpedPairs(prepared, ranges=WIDE))
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for epoch in (1, 2):
        dataset.set_epoch(epoch)
        assert torch.equal(next(iter(loader))["H_0to1"][0], dataset[0]["H_0to1"])


def test_the_function_writes_what_the_command_writes(exported: Path, prepared: Path, tmp_path: Path) -> None:
    out = retipair.export_matches(prepared, tmp_path / "out", workers=1, ranges="wide", warps=2, appearance=True)
    assert contents(out) == contents(exported)
    with raises_setting("warps"):
        retipair.export_matches(prepared, tmp_path / "other", warps=0)
