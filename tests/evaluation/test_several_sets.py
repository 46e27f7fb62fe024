"""`retipair evaluate --generated A B C`: each set is scored as if alone, once, and one report compares them."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retipair
from conftest import Fill
from judging import SIZE, Evaluated, generated_record, write_generated, write_run
from pages import Page, check_figures, check_needs_nothing, check_opens
from refusals import Refused, raises_setting
from retipair.config import CardConfig, EvaluateConfig
from retipair.data.dataset import read_dataset
from retipair.data.manifest import write_manifest
from retipair.data.pair import load_image, save_image
from retipair.data.rejected import read_rejected
from retipair.evaluation import evaluate, measurements
from retipair.evaluation.card import card
from retipair.evaluation.compared_scores import ComparedScores, read_compared_scores
from retipair.evaluation.comparison import load_comparisons
from retipair.evaluation.means import Mean
from retipair.evaluation.provenance import Provenance
from retipair.evaluation.ranking import compare
from retipair.evaluation.scores import Scores, read_scores
from retipair.evaluation.sets import set_names
from retipair.interfaces.cli import main
from retipair.models.lora import adapter_sha256
from retipair.runtime.errors import FileError, MissingError, OccupiedError

FILES = ("report.html", "scores.json", "figures.csv")


def write_settings(folder: Path, **settings: Any) -> None:
    common = {
        "base": "tiny-sdxl",
        "adapter_sha256": "0" * 64,
        "mode": "noise",
        "prompts": ["an eye"],
        "sampler": "ddpm",
    }
    (folder / "settings.json").write_text(json.dumps({**common, **settings}))


def write_unmatched(folder: Path, source: Path) -> None:
    """Write the pairs of a generated folder, each with the FA of the next pair."""
    pairs = read_dataset(source)
    records = [generated_record(index) for index in range(1, len(pairs) + 1)]
    for record, pair, other in zip(records, pairs, [*pairs[1:], pairs[0]], strict=True):
        save_image(folder / record.cf, load_image(pair.cf, "RGB"))
        save_image(folder / record.fa, load_image(other.fa, "L"))
    write_manifest(folder, records)


@pytest.fixture(scope="module")
def three(once: Callable[[str, Fill], Path], evaluated: Evaluated) -> Path:
    """The folders of three sets, A with a copy, and `out` with A compared with B."""

    def fill(folder: Path) -> None:
        shutil.copytree(evaluated.generated, folder / "A")
        write_settings(folder / "A", steps=50)
        write_unmatched(folder / "B", evaluated.generated)
        write_settings(folder / "B", steps=25)
        write_generated(folder / "C", 3)
        (folder / "C" / "1/fa.png").write_bytes((folder / "C" / "2/fa.png").read_bytes())
        shutil.copytree(evaluated.out / "features", folder / "out/features")
        assert main(command(evaluated, folder, "A", "B", out=folder / "out")) == 0

    return once("three-sets", fill)


def command(evaluated: Evaluated, folder: Path, *names: str, out: Path) -> list[str]:
    generated = [str(folder / name) for name in names]
    return ["evaluate", "--real", str(evaluated.real), "--generated", *generated, "--out", str(out)]


@pytest.fixture
def out(three: Path, tmp_path: Path) -> Path:
    """A copy of the evaluation of A and B."""
    return Path(shutil.copytree(three / "out", tmp_path / "out"))


# --- Scores


def test_each_set_has_the_scores_that_it_has_alone(
    evaluated: Evaluated, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = read_compared_scores(three / "out")
    assert compared.names == ("A", "B")
    shutil.copytree(three / "out/features", tmp_path / "features")
    monkeypatch.setattr(measurements, "compute_pair_metrics", None)
    for name in compared.names:
        shutil.copytree(tmp_path / "features", tmp_path / name / "features")
        assert main(command(evaluated, three, name, out=tmp_path / name)) == 0
        assert read_scores(tmp_path / name) == compared.sets[name]
    values = json.loads((three / "out/scores.json").read_text())
    assert compared.to_json() == values
    of_one = json.loads((tmp_path / "A/scores.json").read_text())
    assert values["scores"][0] == {key: value for key, value in of_one.items() if key not in ("schema", "sha256")}


def test_a_further_set_is_measured_alone_and_the_files_are_those_of_a_new_evaluation(
    evaluated: Evaluated, three: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    compute = measurements._measure_pair
    monkeypatch.setattr(measurements, "_measure_pair", lambda pair: (measured.append(str(pair.cf)), compute(pair))[1])
    scored: list[int] = []
    score = evaluate.compute_scores
    monkeypatch.setattr(evaluate, "compute_scores", lambda *given: (scored.append(1), score(*given))[1])
    assert main(command(evaluated, three, "A", "B", "C", out=out)) == 0
    assert len(scored) == 1
    assert measured
    assert all(path.startswith(str(three / "C")) for path in measured)
    shutil.copytree(out / "features", tmp_path / "new/features")
    assert main(command(evaluated, three, "A", "B", "C", out=tmp_path / "new")) == 0
    assert [(out / name).read_bytes() == (tmp_path / "new" / name).read_bytes() for name in FILES] == [True] * 3


def test_sets_can_be_added_to_one_and_reordered_but_not_left_out(
    evaluated: Evaluated, three: Path, out: Path, tmp_path: Path, refused: Refused
) -> None:
    one = tmp_path / "one"
    shutil.copytree(out / "features", one / "features")
    assert main(command(evaluated, three, "B", out=one)) == 0
    assert main(command(evaluated, three, "B", "A", out=one)) == 0
    assert main(command(evaluated, three, "B", "A", out=out)) == 0
    assert [(out / name).read_bytes() == (one / name).read_bytes() for name in FILES] == [True] * 3
    before = {name: (out / name).read_bytes() for name in FILES}
    for names in (("A",), ("A", "C")):
        line = refused(*command(evaluated, three, *names, out=out))
        assert (line.kind, line.path) == (OccupiedError, out)
        assert str(three / "B") in line
    assert {name: (out / name).read_bytes() for name in FILES} == before


def test_a_stopped_evaluation_continues(
    evaluated: Evaluated, three: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = command(evaluated, three, "A", "B", "C", out=out)
    compute, measured = measurements._measure_pair, []

    def stop(pair: Any) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(pair)
        return compute(pair)

    monkeypatch.setattr(measurements, "_measure_pair", stop)
    assert main([*fresh, "--workers", "1"]) == 130
    assert read_compared_scores(out).names == ("A", "B"), "still those of before"
    monkeypatch.setattr(measurements, "_measure_pair", compute)
    assert main(fresh) == 0
    assert read_compared_scores(out).names == ("A", "B", "C")


@pytest.mark.parametrize("stop", ["write_json", "write_metrics_table", "write_report"])
def test_files_of_other_scores_never_lie_beside_scores(
    stop: str, evaluated: Evaluated, three: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = command(evaluated, three, "A", "B", "C", out=out)
    before = {name: (out / name).read_bytes() for name in FILES}
    with monkeypatch.context() as patch:

        def stopped(*given: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(evaluate, stop, stopped)
        assert main(fresh) == 130
    names = read_compared_scores(out).names
    assert names == (("A", "B") if stop == "write_json" else ("A", "B", "C"))
    table = out / "figures.csv"
    assert not table.exists() or ("\nC," in table.read_text()) == ("C" in names)
    assert not (out / "report.html").exists()
    assert main(fresh[:-3] + fresh[-2:] if stop == "write_json" else fresh) == 0
    if stop == "write_json":
        assert {name: (out / name).read_bytes() for name in FILES} == before, "evaluated as before, after the stop"


def test_the_table_of_pairs_has_the_names_of_the_sets(three: Path) -> None:
    with (three / "out/figures.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["set"] for row in rows] == ["A"] * 6 + ["B"] * 6 + ["train"] * 5 + ["val"] * 2
    assert [row["id"] for row in rows][:12] == list("123456") * 2


def test_copies_are_withheld_from_the_set_that_has_them(evaluated: Evaluated, three: Path, tmp_path: Path) -> None:
    shutil.copytree(three / "out/features", tmp_path / "out/features")
    for name in "AB":
        shutil.copytree(three / name, tmp_path / name)
    copies = read_compared_scores(three / "out").sets["B"].copies
    for again in range(2):
        assert main([*command(evaluated, tmp_path, "A", "B", out=tmp_path / "out"), "--withhold_copies"]) == 0, again
        compared = read_compared_scores(tmp_path / "out")
        assert [one.withheld for one in compared.scores] == [("1",), copies]
        assert [one.sizes["generated"] for one in compared.scores] == [5, 6 - len(copies)]
        assert "1" in read_rejected(tmp_path / "A")
        assert (tmp_path / "B/rejected.txt").exists() == bool(copies)
    with (tmp_path / "out/figures.csv").open(newline="") as stream:
        assert [row["set"] for row in csv.DictReader(stream)].count("A") == 5


def test_options_apply_to_every_set(evaluated: Evaluated, three: Path, out: Path, tmp_path: Path) -> None:
    run, sets = tmp_path / "pairs/run", tmp_path / "pairs_preds/run"
    write_run(run)
    for name in "AB":
        shutil.copytree(three / name, sets / name)
    words = ["--base", "random:tiny-sdxl", "--adapter", str(run), "--deep", str(evaluated.out.parent / "dino")]
    assert main([*command(evaluated, sets, "A", "B", out=out), *words]) == 0
    a, b = read_compared_scores(out).scores
    assert a.deep
    assert b.deep
    assert a.deep.n == b.deep.n == 6
    assert a.training == b.training
    assert a.layouts == b.layouts
    assert {row.between for row in a.layouts.rows} == {"nothing", "autoencoder"}
    assert "deep_mmd2_fa" in {row.name for row in read_compared_scores(out).comparison}
    assert check_figures(out) > 300
    alts = [image["alt"] for image in Page(out / "report.html").all("img")]
    assert alts.count("Sample pair at step 0") == 1, "the training is shown once"


def test_the_training_of_another_adapter_is_refused(
    evaluated: Evaluated, three: Path, trained: Callable[[str], Path], tmp_path: Path, refused: Refused
) -> None:
    [run] = (trained("sd15") / "out_joint_sd15_cffa_pairs").iterdir()
    made = adapter_sha256(run / "best_checkpoint/unet_lora")
    for name in "AB":
        shutil.copytree(three / name, tmp_path / name)
        write_settings(tmp_path / name, adapter_sha256=made)
    words = ["--adapter", str(run / "best_checkpoint")]
    config = EvaluateConfig(real=evaluated.real, generated=(tmp_path / "A", tmp_path / "B"), adapter=run)
    assert all(one.training for one in load_comparisons(config).values())
    for settings in ({"adapter_sha256": "0" * 64}, {"adapter_sha256": None}):
        write_settings(tmp_path / "B", **settings)
        line = refused(*command(evaluated, tmp_path, "A", "B", out=tmp_path / "out"), *words)
        assert (line.kind, line.path) == (FileError, tmp_path / "B")
        assert str(run) in line
    assert not (tmp_path / "out").exists()


# --- Names and refusals


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["x/A"], ["generated"]),
        (["x/A", "x/B"], ["A", "B"]),
        (["x/new", "y/new"], ["x", "y"]),
        (["r/x/new", "r/y/new", "r/y/old"], ["x/new", "y/new", "y/old"]),
        (["x/train", "x/B"], ["x/train", "x/B"]),
        (["A", "x/../B/"], ["A", "B"]),
        (["new", "x/new"], ["{here}", "x"]),
    ],
)
def test_names_are_the_shortest_that_distinguish(
    folders: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set_names([Path(folder) for folder in folders]) == [name.format(here=tmp_path.name) for name in names]


def test_bad_folders_are_named_before_anything_is_written(
    evaluated: Evaluated, three: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(three / "A")
    line = refused(*command(evaluated, three, "A", "B", out=out)[:-2], tmp_path / "link", "--out", out)
    assert line.setting == "generated"
    assert str(tmp_path / "link") in line
    line = refused(*command(evaluated, three, "A", "none", out=out))
    assert (line.kind, line.path) == (MissingError, three / "none")
    assert "twice" in refused(*command(evaluated, three, "A", out=out), "--generated", three / "B")
    damaged = Path(shutil.copytree(three / "B", tmp_path / "damaged"))
    (damaged / "settings.json").write_text("{")
    words = command(evaluated, three, "A", out=out)
    assert refused(*words[:4], damaged, *words[4:]).path == damaged / "settings.json"
    assert not out.exists()


def test_the_names_of_folders_cannot_break_the_page(
    evaluated: Evaluated, three: Path, out: Path, tmp_path: Path
) -> None:
    names = ["_<b>$x^{$", "眼底" * 20]
    for name, source in zip(names, "AB", strict=True):
        shutil.copytree(three / source, tmp_path / name)
    shutil.copytree(out / "features", tmp_path / "new/features")
    assert main(command(evaluated, tmp_path, *names, out=tmp_path / "new")) == 0
    page = Page(tmp_path / "new/report.html")
    assert {"b", "td"} <= {tag for tag, _ in page.tags}
    assert page.text.count(names[0]) > 5
    assert check_figures(tmp_path / "new") > 120


# --- The comparison


def test_the_settings_that_differ_are_listed(three: Path) -> None:
    compared = read_compared_scores(three / "out")
    assert compared.settings == {"Denoising steps": ("50", "25")}
    text = Page(three / "out/report.html").text
    assert "Settings in which the sets differ" in text


def with_consistency(scores: Scores, *, mean: float, width: float, n: int) -> Scores:
    generated = Mean(mean, mean - width, mean + width, n)
    correlation = {**scores.consistency.correlation, "generated": generated}
    return replace(scores, consistency=replace(scores.consistency, correlation=correlation))


@pytest.mark.parametrize(
    ("width", "n", "best"), [(0.04, 30, "B"), (0.06, 30, None), (0.04, 19, None)], ids=["apart", "overlap", "few pairs"]
)
def test_a_value_is_best_only_if_the_difference_is_certain(width: float, n: int, best: str | None, three: Path) -> None:
    scores = read_compared_scores(three / "out").sets["A"]
    sets = {name: with_consistency(scores, mean=mean, width=width, n=n) for name, mean in (("A", 0.5), ("B", 0.6))}
    [row] = [row for row in compare(sets) if row.name == "consistency"]
    assert row.best == best
    third = {**sets, "C": with_consistency(scores, mean=0.59, width=width, n=n)}
    assert next(row for row in compare(third) if row.name == "consistency").best is None, "B and C overlap"


def test_fine_detail_is_best_where_it_is_closest_to_the_real_pairs(three: Path) -> None:
    scores = read_compared_scores(three / "out").sets["A"]

    def with_detail(share: float) -> Scores:
        means = {"generated": Mean(share, share - 0.001, share + 0.001, 30), "train": Mean(0.03, 0.02, 0.04, 30)}
        return replace(scores, texture={**scores.texture, "cf": replace(scores.texture["cf"], fine_share=means)})

    sets = {"noisy": with_detail(0.06), "close": with_detail(0.028), "smooth": with_detail(0.01)}
    assert next(row for row in compare(sets) if row.name == "detail_cf").best == "close"


def test_the_squared_mmd_must_differ_by_more_than_chance(three: Path) -> None:
    scores = read_compared_scores(three / "out").sets["A"]
    assert scores.distribution

    def with_mmd(value: float) -> Scores:
        assert scores.distribution
        distance = replace(scores.distribution, mmd2=value, floor=0.5)
        return replace(scores, distribution=distance, sizes={"generated": 30, "train": 30})

    for other, best in ((0.9, None), (1.1, "A")):
        sets = {"A": with_mmd(0.5), "B": with_mmd(other)}
        assert next(row for row in compare(sets) if row.name == "mmd2").best == best


# --- The report


def test_the_report_compares_the_sets_and_every_figure_is_a_score(three: Path) -> None:
    report = three / "out/report.html"
    check_needs_nothing(report)
    assert check_figures(three / "out") > 250
    assert check_figures(three / "out", "comparison/") > 25
    page = Page(report)
    text = " ".join(page.text.split())
    assert "Generated and real pairs: A, B" in text
    assert text.index("Comparison") < text.index("Agreement of CF and FA") < text.index("Verdict")
    for scores, name in zip(read_compared_scores(three / "out").scores, "AB", strict=True):
        assert f"{name}: {scores.headline}" in text
        alts = [image["alt"] or "" for image in page.all("img")]
        assert sum(alt.startswith(f"{name}: Generated pair") for alt in alts) == 6
    assert len(page.all("svg")) == 8, "the sets share the plots"
    assert len(page.all("input")) == 3 * 2
    labels = [table["aria-label"] for table in page.all("table")]
    assert labels.count("Agreement") == 1


def test_findings_about_the_real_pairs_are_shown_once(three: Path) -> None:
    text = (three / "out/report.html").read_text()
    for finding in read_compared_scores(three / "out").scores[0].verdict:
        assert text.count(f"{finding.about}. ") >= 1
    assert text.count("No problems found in the real pairs.") == 1


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_of_several_sets_opens_in_chromium(three: Path, tmp_path: Path, width: int) -> None:
    check_opens(three / "out/report.html", tmp_path, width)


# --- Readers of scores.json


def test_an_edited_file_is_refused_and_computed_again(evaluated: Evaluated, three: Path, out: Path) -> None:
    path = out / "scores.json"
    unedited = path.read_bytes()
    values = json.loads(unedited)
    path.write_text(json.dumps(values | {"names": ["B", "A"]}))
    with pytest.raises(retipair.UserError, match="edited or damaged"):
        read_compared_scores(out)
    assert main(command(evaluated, three, "A", "B", out=out)) == 0
    assert path.read_bytes() == unedited


def test_a_card_has_the_scores_of_its_own_set(evaluated: Evaluated, three: Path, tmp_path: Path) -> None:
    compared = read_compared_scores(three / "out")
    for name in "AB":
        folder = Path(shutil.copytree(three / name, tmp_path / name))
        text = card(CardConfig(directory=folder, evaluation=three / "out")).read_text()
        mean = compared.sets[name].consistency.correlation["generated"]
        assert mean
        assert f"| Vesselness correlation of CF and FA, generated | {mean.mean:.3f} (n = 6) |" in text
    real = Path(shutil.copytree(evaluated.real, tmp_path / "real"))
    text = card(CardConfig(directory=real, evaluation=three / "out")).read_text()
    assert "Vesselness correlation of CF and FA, train" in text
    assert "Vesselness correlation of CF and FA, generated" not in text
    with raises_setting("evaluation"):
        card(CardConfig(directory=three / "C", evaluation=three / "out"))


def test_runs_lists_each_set_beside_the_run_that_generated_it(
    trained: Callable[[str], Path], three: Path, tmp_path: Path
) -> None:
    results, tree = tmp_path / "results", "out_joint_sd15_cffa_pairs"
    for run in "ab":
        shutil.copytree(trained("sd15") / tree / "exp", results / tree / run)
    known = read_compared_scores(three / "out")

    def generated_by(provenance: Provenance, run: str) -> Provenance:
        return replace(provenance, generated=f"elsewhere/{tree}_preds/{run}/new")

    scores = [
        replace(one, provenance=generated_by(one.provenance, run)) for one, run in zip(known.scores, "ab", strict=True)
    ]
    folder = tmp_path / "comparison"
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps(replace(known, scores=tuple(scores)).to_json()))
    table = tmp_path / "runs.json"
    assert main(["runs", str(results), "--evaluations", str(folder), "--json", str(table)]) == 0
    rows = json.loads(table.read_text())
    assert [(row["run"], row["evaluation"]) for row in rows] == [("a", "comparison: A"), ("b", "comparison: B")]
    for row, one in zip(rows, scores, strict=True):
        mean = one.consistency.correlation["generated"]
        assert mean
        assert row["correlation"] == mean.mean


def test_from_python_a_list_gives_the_scores_of_each_set(evaluated: Evaluated, three: Path, out: Path) -> None:
    compared = retipair.evaluate(evaluated.real, [three / "A", str(three / "B")], out=out)
    assert isinstance(compared, ComparedScores)
    assert compared == read_compared_scores(three / "out")
    assert compared.best == {row.name: row.best for row in compared.comparison if row.best}
    with raises_setting("generated"):
        retipair.evaluate(evaluated.real, [], out=out)


def test_sets_of_different_sizes_are_compared(evaluated: Evaluated, three: Path, out: Path, tmp_path: Path) -> None:
    small = write_generated(tmp_path / "small", 2)
    for pair in read_dataset(small):
        for path, mode in ((pair.cf, "RGB"), (pair.fa, "L")):
            view = load_image(path, mode)  # type: ignore[arg-type]
            save_image(path, np.ascontiguousarray(view[: SIZE // 2, : SIZE // 2]))
    words = command(evaluated, three, "A", "B", out=out)
    assert main([*words[:6], str(small), *words[6:]]) == 0
    compared = read_compared_scores(out)
    assert [one.sizes["generated"] for one in compared.scores] == [6, 6, 2]
    assert compared.scores[2].distribution is None
    assert check_figures(out) > 250
