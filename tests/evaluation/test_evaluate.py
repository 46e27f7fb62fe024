"""`retipair evaluate`: metrics with references, copies and data issues are found, nothing is measured twice."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from conftest import VIEW, prepared_record, write_prepared
from judging import Evaluated, write_generated, write_run
from retipair.data.dataset import content_sha256, read_dataset
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.pair import load_image, save_image
from retipair.data.rejected import REJECTED_NAME, read_rejected
from retipair.evaluation import measurements
from retipair.evaluation.comparison import pairs_sha256
from retipair.interfaces.cli import main
from retipair.metrics.pair_metrics import compute_pair_metrics
from retipair.metrics.views import prepare_views
from retipair.phantoms.draw import draw_phantom
from retipair.runtime.errors import OccupiedError


@pytest.fixture(scope="module")
def scores(evaluated: Evaluated) -> dict:
    return json.loads((evaluated.out / "scores.json").read_text())


def test_each_figure_of_agreement_stands_beside_its_references(scores):
    for name, row in scores["consistency"].items():
        assert list(row) == ["generated", "train", "val", "mispaired"], name
        assert [row[column]["n"] for column in row] == [6, 5, 2, 7]
    row = scores["consistency"]["correlation"]
    assert min(row[column]["mean"] for column in ("generated", "train", "val")) > 0.3
    assert row["mispaired"]["mean"] < 0.15
    assert row["train"]["low"] <= row["train"]["mean"] <= row["train"]["high"]
    assert row["val"]["low"] is None, "two pairs have no interval"


def test_a_copy_upside_down_is_named(scores):
    found = scores["memorisation"]
    assert found["copies"] == ["1"]
    assert found["closest"][0]["id"] == "1"
    assert found["closest"][0]["train_id"] == "eye2"
    assert any(one["level"] == "bad" and one["about"] == "copies" for one in scores["verdict"])
    assert "copies" in scores["headline"]
    assert scores["advice"][0] == "Exclude the copies: evaluate with --withhold_copies."


def test_a_feature_has_a_plain_name_on_the_page(evaluated, scores):
    page = (evaluated.out / "report.html").read_text()
    for one in scores["distribution"]["furthest"]:
        assert one["name"] != one["feature"]
        assert one["feature"] not in page
    assert scores["distribution"]["furthest"][0]["name"] in page


# --- Rejected pairs


@pytest.fixture
def own(evaluated, tmp_path) -> tuple[Path, list[str]]:
    """Return generated pairs that a test may reject, and the command that evaluates them with cached metrics."""
    generated, out = tmp_path / "generated", tmp_path / "out"
    shutil.copytree(evaluated.generated, generated)
    shutil.copytree(evaluated.out / "features", out / "features")
    words = ["--real", evaluated.real, "--generated", generated, "--out", out]
    return generated, ["evaluate", *map(str, words)]


def read_scores(command: list[str]) -> dict:
    return json.loads((Path(command[-1]) / "scores.json").read_text())


@pytest.mark.nightly
def test_withheld_copies_are_rejected_once_and_the_others_are_judged(own, capsys):
    generated, command = own
    (generated / REJECTED_NAME).write_text("# mine\n6\n")
    for again in range(2):
        assert main([*command, "--withhold_copies"]) == 0, again
        rejected = (generated / REJECTED_NAME).read_text().splitlines()
        assert rejected[:2] == ["# mine", "6"]
        assert rejected[3:] == ["1"]
        scores = read_scores(command)
        assert scores["sizes"]["generated"] == 4
        assert scores["memorisation"]["copies"] == []
        assert scores["withheld"] == ["1"]
    assert "2 listed in rejected.txt (1, 6)" in capsys.readouterr().err
    assert not list(Path(command[-1]).glob("withheld*"))
    assert [entry.id for entry in read_dataset(generated)] == ["2", "3", "4", "5"]
    assert main(command) == 0, "and without the flag"
    assert read_scores(command) == scores


@pytest.mark.nightly
def test_copies_found_before_can_be_withheld_after(own):
    generated, command = own
    assert main(command) == 0
    assert read_scores(command)["memorisation"]["copies"] == ["1"]
    assert main([*command, "--withhold_copies"]) == 0
    assert read_scores(command)["sizes"]["generated"] == 5
    assert "1" in read_rejected(generated)


@pytest.mark.nightly
@pytest.mark.parametrize("split", ["train", pytest.param("val", marks=pytest.mark.nightly)])
def test_copies_of_rejected_training_pairs_are_found(split, tmp_path):
    """A model may have been trained before the pair was rejected, so the search for copies includes it."""
    real = write_prepared(tmp_path / "real", ["train", "train", split, "train", "val"])
    generated = write_generated(tmp_path / "generated", 3)
    (real / REJECTED_NAME).write_text("eye2\neye4\n")
    command = ["evaluate", "--real", str(real), "--generated", str(generated), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    scores = read_scores(command)
    assert scores["memorisation"]["copies"] == (["1"] if split == "train" else [])
    assert scores["sizes"] == {"generated": 3, "train": 3}
    assert main([*command, "--withhold_copies"]) == 0
    assert ("1" in read_rejected(generated)) == (split == "train")


@pytest.mark.nightly
@pytest.mark.parametrize(("trained_on", "looks"), [("real", False), ("another folder", True)])
def test_where_training_was_on_other_pairs_the_verdict_says_that_its_copies_were_not_looked_for(
    trained_on, looks, tmp_path
):
    real = write_prepared(tmp_path / "real", ["train", "train", "val"])
    other = write_prepared(tmp_path / "another folder", ["train", "val", "train"])
    generated = write_generated(tmp_path / "generated", 2)
    write_run(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["data_sha256"] = content_sha256(read_dataset(real if trained_on == "real" else other))
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    if trained_on == "real":
        (real / REJECTED_NAME).write_text("eye2\n")
    command = [
        "evaluate",
        "--real",
        real,
        "--generated",
        generated,
        "--adapter",
        tmp_path / "run",
        "--out",
        tmp_path / "o",
    ]
    assert main([str(word) for word in command]) == 0
    texts = [finding["text"] for finding in json.loads((tmp_path / "o/scores.json").read_text())["verdict"]]
    assert any("copies of pairs that are not in --real are not found" in text for text in texts) == looks


@pytest.mark.nightly
def test_a_rejected_pair_that_lacks_a_view_does_not_stop_the_search_for_copies(tmp_path):
    real = write_prepared(tmp_path / "real", ["train"] * 4)
    generated = write_generated(tmp_path / "generated", 3)
    (real / REJECTED_NAME).write_text("eye3\n")
    (real / "fa/eye3.png").unlink()
    command = ["evaluate", "--real", str(real), "--generated", str(generated), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert read_scores(command)["memorisation"]["copies"] == ["1"]


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["listed", pytest.param("deleted", marks=pytest.mark.nightly)])
def test_a_pair_thrown_out_after_a_report_is_left_out_of_the_next(how, own):
    generated, command = own
    assert main(command) == 0
    if how == "listed":
        (generated / REJECTED_NAME).write_text("1\n3\n")
    else:
        for id in ("1", "3"):
            shutil.rmtree(generated / id)
    assert main(command) == 0
    scores = read_scores(command)
    assert scores["sizes"]["generated"] == 4
    assert scores["memorisation"]["copies"] == []
    with (Path(command[-1]) / "figures.csv").open(newline="") as stream:
        assert [row["id"] for row in csv.DictReader(stream) if row["set"] == "generated"] == ["2", "4", "5", "6"]


@pytest.mark.nightly
def test_where_all_are_copies_they_are_rejected_and_still_reported(tmp_path):
    real = write_prepared(tmp_path / "real", ["train"] * 3)
    generated = write_generated(tmp_path / "generated", 1)
    command = ["evaluate", "--real", str(real), "--generated", str(generated), "--out", str(tmp_path / "out")]
    assert main([*command, "--withhold_copies"]) == 0
    assert read_scores(command)["memorisation"]["copies"] == ["1"]
    assert "1" in read_rejected(generated)
    assert main(command) == 2


@pytest.mark.parametrize("figure", ["cf", "fa"])
def test_half_a_pair_is_named_with_what_to_do(figure, own, capsys):
    generated, command = own
    (generated / f"2/{figure}.png").unlink()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"2/{figure}.png" in said
    assert "rejected.txt" in said


def test_speed_and_memory_are_those_of_the_run_with_what_would_change_them(scores):
    assert scores["training"]["cost"] == {"seconds_per_step": 2.0, "memory_gib": 2.5}
    said = {one["about"]: (one["text"], one["advice"]) for one in scores["verdict"]}
    assert said["speed of training"] == ("A step of 2 pairs took 2.00 s.", "")
    text, advice = said["memory of training"]
    assert "2.5 GiB" in text
    assert "--memory" not in advice  # no preset is smaller than that
    assert "--batch_size 1 with --gradient_accumulation_steps 2" in advice


def test_a_mean_is_that_of_the_pairs(evaluated, scores):
    with (evaluated.out / "figures.csv").open(newline="") as stream:
        figures = list(csv.DictReader(stream))
    for column in ("generated", "train", "val"):
        of_pairs = [float(row["consistency.dice"]) for row in figures if row["set"] == column]
        assert len(of_pairs) == scores["sizes"][column]
        assert scores["consistency"]["dice"][column]["mean"] == pytest.approx(np.mean(of_pairs))


def test_what_a_model_had_of_colour_is_reported_from_its_manifest(scores):
    assert scores["colour"]["fa"]["generated"]["mean"] == 1.5
    assert scores["colour"]["fa"]["train"]["mean"] == 0


def test_a_users_image_model_adds_distances_with_a_warning_about_fid(evaluated, scores):
    found = scores["deep"]
    assert (found["n"], found["features"]) == (6, 32)
    for view in ("cf", "fa"):
        assert set(found[view]) == {"mmd2", "floor", "fid"}
        assert found[view]["fid"] > 0
    assert "do not quote it" in (evaluated.out / "report.html").read_text()


def test_squeezing_loses_what_side_by_side_keeps(scores):
    alone = [row for row in scores["layouts"]["rows"] if row["between"] == "nothing"]
    rows = {(row["layout"], row["view"]): row for row in alone}
    for view in ("cf", "fa"):
        assert rows["side_by_side", view]["thin"] == rows["side_by_side", view]["vessels"] == 1
        assert rows["side_by_side", view]["psnr"] is None, "nothing was lost"
        assert rows["squeezed", view]["thin"] < 1
        assert rows["squeezed", view]["fine_left"] < 1


def test_the_same_again_measures_nothing_and_scores_the_same(evaluated, scores, monkeypatch):
    monkeypatch.setattr(measurements, "compute_pair_metrics", None)
    assert main(evaluated.command) == 0
    assert json.loads((evaluated.out / "scores.json").read_text()) == scores


def test_more_generated_pairs_are_other_scores(evaluated, scores, tmp_path, refused):
    real, out = evaluated.real, evaluated.out
    more = write_generated(tmp_path / "more", 7)
    line = refused("evaluate", "--real", real, "--generated", more, "--out", out)
    assert (line.kind, line.path) == (OccupiedError, out)
    without = scores["provenance"] | {name: None for name in scores["provenance"] if name.startswith("generated")}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores.json").write_text(json.dumps(scores | {"provenance": without}))
    line = refused("evaluate", "--real", real, "--generated", more, "--out", tmp_path / "out")
    assert "contains scores that were computed without --generated; choose another --out" in line


@pytest.mark.slow  # measures half of it all once more
def test_order_and_number_at_once_do_not_matter(evaluated, scores, tmp_path):
    real, generated = evaluated.real, evaluated.generated
    backwards = list(read_manifest(generated))[::-1]
    for record in backwards:
        for path in (record.cf, record.fa):
            save_image(tmp_path / "generated" / path, load_image(generated / path, "RGB" if path == record.cf else "L"))
    write_manifest(tmp_path / "generated", backwards)
    shutil.copytree(evaluated.out / "features", tmp_path / "out/features")
    words = ["--generated", str(tmp_path / "generated"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["evaluate", "--real", str(real), *words]) == 0
    again = json.loads((tmp_path / "out/scores.json").read_text())
    for figure, row in scores["consistency"].items():
        assert again["consistency"][figure]["generated"]["mean"] == pytest.approx(row["generated"]["mean"])
    assert again["memorisation"]["closest"] == scores["memorisation"]["closest"]
    assert again["distribution"]["mmd2"] == pytest.approx(scores["distribution"]["mmd2"])


# --- Real pairs alone


def swapped(cf: np.ndarray, fa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(fa[..., None], 3, axis=2), cf[..., 1]


def mirrored(cf: np.ndarray, fa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return cf, fa[:, ::-1]


def in_colour(cf: np.ndarray, fa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return cf, np.stack([fa, fa // 2, fa // 4], axis=2)


def read(folder: Path, id: str) -> tuple[np.ndarray, np.ndarray]:
    return load_image(folder / f"cf/{id}.png", "RGB"), load_image(folder / f"fa/{id}.png", "L")


def write(folder: Path, id: str, views: tuple[np.ndarray, np.ndarray]) -> None:
    for view, image in zip(("cf", "fa"), views, strict=True):
        save_image(folder / view / f"{id}.png", np.ascontiguousarray(image))


def write_swapped_phantom(folder: Path, id: str) -> None:
    """Write a swapped pair with vessels of all calibres, which distinguish a grey CF from an FA."""
    drawn = draw_phantom(5, 0, 4 * VIEW, None, None, None)
    views = (drawn.cf, drawn.fa, drawn.field.astype(np.uint8) * 255)
    cf, fa, mask = (np.asarray(Image.fromarray(view).reduce(4)) for view in views)
    write(folder, id, swapped(cf, fa))
    save_image(folder / f"mask/{id}.png", (mask > 127).astype(np.uint8) * 255)


@pytest.mark.nightly
def test_each_spoilt_pair_is_doubted_by_its_name_and_no_other(tmp_path, capsys):
    real = write_prepared(tmp_path / "real", ["train"] * 5 + ["val"])
    write_swapped_phantom(real, "eye0")
    write(real, "eye1", mirrored(*read(real, "eye1")))
    write(real, "eye2", in_colour(*read(real, "eye2")))
    write(real, "eye5", read(real, "eye3"))  # an eye under another name, on the other side of the split
    assert main(["evaluate", "--real", str(real), "--out", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    found = {(one["id"], one["kind"]) for one in scores["doubts"]}
    assert found == {("eye0", "swapped"), ("eye1", "turned"), ("eye2", "colour in FA"), ("eye3", "same eye")}
    assert next(one for one in scores["doubts"] if one["id"] == "eye3")["text"].endswith("split (train and val)")
    assert "check eye1" in capsys.readouterr().err
    assert scores["distribution"] is None
    assert [one["about"] for one in scores["verdict"]] == ["real pairs"]


def test_pairs_of_one_eye_are_never_called_mispaired(tmp_path):
    real = write_prepared(tmp_path / "real", ["train"] * 6)
    for eyes, expected in (("llllrr", 4), ("llllll", 0), ("lrlrlr", 6), ("abcdef", 6)):
        write_manifest(real, [replace(prepared_record(f"eye{n}", "train"), eye=eye) for n, eye in enumerate(eyes)])
        entries = read_dataset(real)
        ordered = [entries[at] for at in measurements._alternate_eyes(entries)]
        links = measurements._links(ordered, [f"{n}" * 12 for n in range(6)])
        assert all(ordered[a].group != ordered[b].group for a, b in links)
        assert len(links) == expected, eyes


# --- Errors


def broken_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    return folder


def not_a_log(folder: Path, line: str) -> Path:
    write_run(folder)
    (folder / "metrics.jsonl").write_text(line + "\n")
    return folder


def scored(folder: Path, schema: str) -> Path:
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps({"schema": schema, "provenance": {}}))
    return folder


def test_what_was_kept_and_is_damaged_is_measured_again(tmp_path):
    real = write_prepared(tmp_path / "real", ["train", "val"])
    entries, kept = read_dataset(real), tmp_path / "kept"
    before = measurements.measure_set("pairs", entries, kept)
    damaged = [next(iter(sorted(kept.glob("*.npz")))), next(iter(sorted(kept.glob("*.json"))))]
    for path, content in zip(damaged, (b"PK cut off", b"{}"), strict=True):
        path.write_bytes(content)
    after = measurements.measure_set("pairs", entries, kept)
    for columns, again in ((before.values, after.values), (before.links, after.links)):
        assert {name: column.tolist() for name, column in columns.items()} == {
            name: column.tolist() for name, column in again.items()
        }


def test_scores_hang_on_masks_and_eyes_too(tmp_path):
    real = write_prepared(tmp_path / "real", ["train", "train"])
    before = pairs_sha256(read_dataset(real))
    save_image(real / "mask/eye0.png", np.zeros((128, 128), np.uint8))
    masked = pairs_sha256(read_dataset(real))
    write_manifest(real, [replace(prepared_record(f"eye{n}", "train"), patient="P1") for n in range(2)])
    assert len({before, masked, pairs_sha256(read_dataset(real))}) == 3


def test_views_of_two_sizes_are_named(tmp_path, refused):
    real = write_prepared(tmp_path / "real", ["train", "val"])
    save_image(real / "fa/eye1.png", np.zeros((96, 128), np.uint8))
    assert refused("evaluate", "--real", real, "--out", tmp_path / "out").path == real / "cf/eye1.png"


def test_a_black_pair_has_figures_that_are_numbers(black):
    figures = compute_pair_metrics(prepare_views(black))
    assert np.isfinite(list(figures.values.values())).all()
    assert np.isfinite(figures.features).all()


def test_what_cannot_be_evaluated_is_said_in_a_line_before_anything_is_written(tmp_path, capsys):
    broken = broken_model(tmp_path / "model")
    real, both = write_prepared(tmp_path / "real", ["train", "val"]), write_prepared(tmp_path / "both", ["train"] * 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("...")
    for words, said in (
        (["--real", str(tmp_path / "none")], "no such folder"),
        (["--real", str(tmp_path / "full")], "no manifest.jsonl"),
        (["--real", str(real), "--out", str(tmp_path / "full")], "contains files, but no scores.json"),
        (["--real", str(real), "--adapter", str(tmp_path)], "not inside a run"),
        (["--real", str(real), "--base", "tiny-sdx"], "tiny-sdx"),
        (["--real", str(real), "--generated", str(real), "--deep", str(tmp_path)], "no image model"),
        (["--real", str(real), "--generated", str(real), "--deep", str(broken)], "not an image model"),
        (["--real", str(real), "--deep", str(broken)], "pass --generated"),
        (["--real", str(real), "--withhold_copies"], "pass --generated"),
        (["--real", str(real), "--generated", str(real), "--withhold_copies"], "fewer than two training pairs"),
        (["--real", str(both), "--generated", str(both), "--withhold_copies"], "same folder as --real"),
        (["--real", str(real), "--workers", "-1"], "--workers -1"),
        (
            ["--real", str(real), "--adapter", str(not_a_log(tmp_path / "run", '{"kind": "training", "step": 1}'))],
            "metrics",
        ),
        (["--real", str(real), "--adapter", str(not_a_log(tmp_path / "run2", "5"))], "metrics.jsonl"),
        (["--real", str(real), "--out", str(scored(tmp_path / "old", "retipair.scores/0"))], "another version"),
    ):
        out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
        assert main(["evaluate", *words, *out]) == 2, words
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]
