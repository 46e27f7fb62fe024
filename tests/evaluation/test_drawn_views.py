"""Views drawn from given ones (`--mode cf2fa`, `fa2cf`) are compared with the true views and with each other."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from conftest import Fill, write_prepared
from judging import Evaluated, generated_record, write_generated
from pages import Page, check_figures, check_opens
from refusals import Refused
from retipair.data.dataset import PairRecord, load_pair, read_dataset
from retipair.data.manifest import GIVEN_VIEWS, write_manifest
from retipair.data.pair import load_image, save_image
from retipair.evaluation import drawn_views
from retipair.evaluation.compared_scores import read_compared_scores
from retipair.evaluation.comparison import pairs_sha256
from retipair.evaluation.drawn_scores import DrawnViewScores
from retipair.evaluation.drawn_views import measure_drawn_views
from retipair.evaluation.scores import read_scores
from retipair.generation.modes import MODES
from retipair.interfaces.cli import main

SPLITS = ["train", "train", "val", "train"]
Change = Callable[[np.ndarray], np.ndarray]
both_modes = pytest.mark.parametrize("mode", GIVEN_VIEWS)


@pytest.fixture(scope="module")
def real(once: Callable[[str, Fill], Path]) -> Path:
    def fill(folder: Path) -> None:
        for pair in read_dataset(write_prepared(folder, SPLITS)):
            assert pair.mask
            save_image(pair.mask, 255 * load_image(pair.cf, "RGB").any(axis=2).astype(np.uint8))

    return once("drawn-real", fill)


def shifted(view: np.ndarray) -> np.ndarray:
    """The view 4 px further right, at 512."""
    return np.roll(view, round(4 * len(view) / 512), axis=1)


def resized(size: int) -> Change:
    return lambda view: np.asarray(Image.fromarray(view).resize((size, size), Image.Resampling.BICUBIC))


def unchanged(view: np.ndarray) -> np.ndarray:
    return view


def write_drawn(
    folder: Path,
    real: Path,
    mode: str,
    pairs: Sequence[tuple[str, str, str]],
    given: Change = unchanged,
    drawn: Change = unchanged,
) -> Path:
    """Write generated pairs, each from (source id, real pair of the given view, real pair of the drawn view)."""
    entries, records = {pair.id: pair for pair in read_dataset(real)}, []
    for index, (source, of_given, of_drawn) in enumerate(pairs, start=1):
        record = replace(generated_record(index), mode=mode, source_id=source, source_eye=source)
        for view in ("cf", "fa"):
            is_given = view == GIVEN_VIEWS[mode]
            image = load(entries[of_given if is_given else of_drawn], view)
            save_image(folder / getattr(record, view), (given if is_given else drawn)(image))
        records.append(record)
    write_manifest(folder, records)
    return folder


def load(pair: PairRecord, view: str) -> np.ndarray:
    return load_image(getattr(pair, view), "RGB" if view == "cf" else "L")


def measure(real: Path, generated: Path) -> dict[str, DrawnViewScores]:
    return measure_drawn_views(read_dataset(generated), read_dataset(real))


def true_pairs(*numbers: int) -> list[tuple[str, str, str]]:
    return [(f"eye{number}",) * 3 for number in numbers]


# Against the true views


@both_modes
def test_a_drawn_view_is_the_better_the_closer_it_is_to_the_true_one(mode: str, real: Path, tmp_path: Path) -> None:
    def correlation(name: str, pairs: list[tuple[str, str, str]], change: Change = unchanged) -> float:
        [scores] = measure(real, write_drawn(tmp_path / name, real, mode, pairs, drawn=change)).values()
        assert (scores.pairs, scores.matched, scores.unmatched) == (2, 2, 0)
        [mean] = scores.correlation.drawn_view.values()
        assert mean
        return mean.mean

    assert correlation("true", true_pairs(0, 1)) == pytest.approx(1)
    assert 0.3 < correlation("shifted", true_pairs(0, 1), shifted) < 0.7
    others = [("eye0", "eye0", "eye1"), ("eye1", "eye1", "eye0")]
    assert correlation("others", others) == pytest.approx(0, abs=0.1)


@both_modes
def test_the_references_are_the_given_view_and_another_eye(mode: str, real: Path, tmp_path: Path) -> None:
    scores = measure(real, write_drawn(tmp_path, real, mode, true_pairs(0, 2)))[mode]
    assert scores.view == {"cf2fa": "fa", "fa2cf": "cf"}[mode]
    assert list(scores.correlation.drawn_view) == ["train", "val"]
    entries = {pair.split: pair for pair in read_dataset(real) if pair.id in ("eye0", "eye2")}
    for split, pair in entries.items():
        given, other = scores.correlation.given_view[split], scores.correlation.mispaired[split]
        assert given
        assert other
        assert given.mean == pytest.approx(load_pair(pair).consistency(), abs=1e-6)
        assert other.mean == pytest.approx(0, abs=0.1)


def test_several_draws_of_one_view_count_as_one(real: Path, tmp_path: Path) -> None:
    pairs = [("eye0", "eye0", "eye1"), *true_pairs(0, 1)]
    scores = measure(real, write_drawn(tmp_path, real, "cf2fa", pairs))["cf2fa"]
    mean = scores.correlation.drawn_view["train"]
    assert mean
    assert (scores.matched, mean.n) == (3, 2)
    assert mean.mean == pytest.approx((0.5 + 1) / 2, abs=0.05)


def test_where_all_real_pairs_show_one_eye_there_is_no_other(real: Path, tmp_path: Path) -> None:
    [pair, *_] = read_dataset(real)
    generated = write_drawn(tmp_path, real, "cf2fa", true_pairs(0, 0))
    pairs = [pair, replace(pair, id="again")]
    correlation = measure_drawn_views(read_dataset(generated), pairs)["cf2fa"].correlation
    assert correlation.drawn_view["train"]
    assert correlation.mispaired == {"train": None}


# The same frame


@pytest.mark.parametrize(
    ("pairs", "given"),
    [
        pytest.param([("unknown", "eye0", "eye0")], unchanged, id="an id that no real pair has"),
        pytest.param([("eye1", "eye0", "eye0")], unchanged, id="the id of another eye"),
        pytest.param([("eye0", "eye0", "eye0")], shifted, id="the same photograph, cropped otherwise"),
    ],
)
def test_what_is_not_the_view_of_a_real_pair_is_counted_and_left_out(
    pairs: list[tuple[str, str, str]], given: Change, real: Path, tmp_path: Path
) -> None:
    scores = measure(real, write_drawn(tmp_path, real, "cf2fa", pairs, given=given))["cf2fa"]
    assert (scores.pairs, scores.matched, scores.unmatched) == (1, 0, 1)
    assert scores.correlation.drawn_view == {}
    [example] = scores.examples
    assert (example.id, example.true_id, example.drawn_view) == ("1", None, None)


@both_modes
@pytest.mark.parametrize("size", [64, 96, 256])
def test_a_given_view_of_another_size_is_the_same_view(mode: str, size: int, real: Path, tmp_path: Path) -> None:
    change = resized(size)
    scores = measure(real, write_drawn(tmp_path, real, mode, true_pairs(0, 1), change, change))[mode]
    assert (scores.matched, scores.unmatched) == (2, 0)


@pytest.mark.parametrize("flag", ["--generated", "--drawn_views"])
def test_a_drawn_view_of_another_size_is_named(flag: str, real: Path, tmp_path: Path, refused: Refused) -> None:
    folder = write_drawn(tmp_path / "drawn", real, "cf2fa", true_pairs(0), drawn=lambda view: view[:, :100])
    line = refused("evaluate", "--real", real, flag, folder, "--out", tmp_path / "out")
    assert line.path == read_dataset(folder)[0].cf


# How many


def test_of_many_pairs_some_of_each_source_are_compared(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn_views, "_MOST", 4)
    pairs = [*true_pairs(*([0, 1, 2, 3] * 3)), ("unknown", "eye0", "eye0")]
    scores = measure(real, write_drawn(tmp_path, real, "cf2fa", pairs))["cf2fa"]
    assert (scores.pairs, scores.matched, scores.unmatched) == (13, 4, 1)
    assert {example.true_id for example in scores.examples} == {"eye0", "eye1", "eye2", "eye3"}


def test_each_mode_is_scored_and_other_modes_are_not(real: Path, tmp_path: Path) -> None:
    folders = [write_drawn(tmp_path / mode, real, mode, true_pairs(0)) for mode in GIVEN_VIEWS]
    entries = [entry for folder in folders for entry in read_dataset(folder)]
    entries.append(replace(entries[0], mode="noise", source_id=None))
    scores = measure_drawn_views(entries, read_dataset(real))
    assert {mode: (one.view, one.pairs) for mode, one in scores.items()} == {"cf2fa": ("fa", 1), "fa2cf": ("cf", 1)}


# Several draws


@both_modes
def test_equal_draws_have_a_similarity_of_one_and_different_ones_less(mode: str, real: Path, tmp_path: Path) -> None:
    equal = measure(real, write_drawn(tmp_path / "equal", real, mode, true_pairs(0, 0, 0, 1)))[mode].draws
    assert equal
    assert (equal.n, equal.mean) == (1, pytest.approx(1)), "one view has several draws"
    pairs = [("eye0", "eye0", "eye0"), ("eye0", "eye0", "eye1")]
    different = measure(real, write_drawn(tmp_path / "different", real, mode, pairs))[mode].draws
    assert different
    assert different.mean < 0.9


def test_draws_of_different_views_are_not_compared(real: Path, tmp_path: Path) -> None:
    one_each = measure(real, write_drawn(tmp_path / "each", real, "cf2fa", true_pairs(0, 1)))["cf2fa"]
    assert one_each.draws is None
    same_id = [("eye0", "eye0", "eye0"), ("eye0", "eye1", "eye1")]
    assert measure(real, write_drawn(tmp_path / "id", real, "cf2fa", same_id))["cf2fa"].draws is None


# The command


def test_evaluate_and_generate_agree_on_the_given_view() -> None:
    assert {mode.name: mode.given for mode in MODES.values() if mode.given} == GIVEN_VIEWS


def test_scores_hang_on_the_sources_of_drawn_views(real: Path, tmp_path: Path) -> None:
    entries = read_dataset(write_drawn(tmp_path, real, "cf2fa", true_pairs(0)))
    assert pairs_sha256(entries) != pairs_sha256([replace(entries[0], source_id="eye1")])
    noise = replace(entries[0], mode="noise", source_id=None)
    assert pairs_sha256([noise]) == pairs_sha256([replace(noise, source_id="eye1")]), "as in earlier versions"


@pytest.fixture(scope="module")
def judged(once: Callable[[str, Fill], Path], real: Path) -> Path:
    """Real and drawn pairs, and what evaluate made of them; two of the three given views are of training pairs."""

    def fill(folder: Path) -> None:
        pairs = true_pairs(0, 1, 2, 0)
        write_drawn(folder / "drawn", real, "cf2fa", pairs)
        words = ["evaluate", "--real", real, "--generated", folder / "drawn", "--out", folder / "out"]
        assert main([str(word) for word in words]) == 0

    return once("drawn-judged", fill) / "out"


def test_a_pair_is_no_copy_because_its_given_view_is_a_training_view(judged: Path) -> None:
    scores = json.loads((judged / "scores.json").read_text())
    found = scores["memorisation"]
    assert (found["copies"], found["given"]) == ([], 3)
    [finding] = [one for one in scores["verdict"] if one["about"] == "copies"]
    assert finding["level"] == "look"
    assert finding["text"].startswith("Similar to a training pair (similarity 0.55 or more): 3 of 4 generated pairs.")
    assert "the given view of such a pair belongs to that training pair" in finding["text"]


def test_a_drawn_view_that_copies_the_training_view_of_another_eye_is_still_a_copy(real: Path, tmp_path: Path) -> None:
    pairs = [("eye2", "eye2", "eye0"), *true_pairs(0)]  # eye2 is a validation pair
    generated = write_drawn(tmp_path / "drawn", real, "cf2fa", pairs)
    assert main(["evaluate", "--real", str(real), "--generated", str(generated), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/scores.json").read_text())["memorisation"]
    assert (found["copies"], found["given"]) == (["1"], 1)


def test_the_report_shows_given_drawn_and_true_views(judged: Path) -> None:
    page = Page(judged / "report.html")
    assert "Drawn views" in page.text
    assert "given CF" in page.text
    alts = [image["alt"] for image in page.all("img")]
    assert alts.count("True FA of real pair eye2") == 1
    assert sum(alt.startswith("drawn FA of pair") for alt in alts) == 3, "one draw from each view"
    assert sum(slider["aria-label"].startswith("Border between given CF") for slider in page.all("input")) == 3


def test_drawn_views_can_be_judged_beside_pairs_of_another_mode(
    real: Path, judged: Path, tmp_path: Path, refused: Refused
) -> None:
    generated, drawn = write_generated(tmp_path / "noise", 2), judged.parent / "drawn"
    words = ["evaluate", "--real", real, "--generated", generated, "--out", tmp_path / "out"]
    assert main([str(word) for word in (*words, "--drawn_views", drawn)]) == 0
    scores = read_scores(tmp_path / "out")
    assert scores.sizes["generated"] == 2
    assert scores.drawn_views == read_scores(judged).drawn_views
    images = [image["alt"] for image in Page(tmp_path / "out/report.html").all("img")]
    assert sum(alt.startswith("drawn FA of pair") for alt in images) == 3
    again = [*words[:-1], tmp_path / "other"]
    assert refused(*again, "--drawn_views", generated).setting == "drawn_views"
    assert refused(*again[:4], drawn, *again[5:], "--drawn_views", drawn).setting == "drawn_views"
    assert refused(*again, "--drawn_views", tmp_path / "none").path == tmp_path / "none"


def test_sets_with_drawn_views_are_compared_with_each_other_and_with_other_sets(
    real: Path, judged: Path, tmp_path: Path, refused: Refused
) -> None:
    out, drawn = tmp_path / "out", judged.parent / "drawn"
    shutil.copytree(judged / "features", out / "features")
    moved = write_drawn(tmp_path / "moved", real, "cf2fa", true_pairs(0, 1, 2), drawn=shifted)
    noise = write_generated(tmp_path / "noise", 2)
    words = ["evaluate", "--real", real, "--generated", drawn, moved, noise, "--out", out]
    assert main(list(map(str, words))) == 0
    compared = read_compared_scores(out)
    assert compared.names == ("drawn", "moved", "noise")
    assert compared.sets["drawn"].drawn_views == read_scores(judged).drawn_views
    assert compared.sets["noise"].drawn_views == {}
    [row] = [row for row in compared.comparison if row.name == "drawn_fa_val"]
    exact, off, none = row.values
    assert exact
    assert off
    assert exact.mean > off.mean + 0.1
    assert none is None
    assert check_figures(out, "scores/1/drawn_views") > 15
    line = refused(*words[:-1], tmp_path / "other", "--drawn_views", drawn)
    assert line.setting == "drawn_views"
    assert not (tmp_path / "other").exists()


def test_every_figure_of_the_section_is_a_score(judged: Path) -> None:
    assert check_figures(judged, "drawn_views/") > 15


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_section_opens_in_chromium(judged: Path, tmp_path: Path, width: int) -> None:
    check_opens(judged / "report.html", tmp_path, width)


def test_the_report_of_other_modes_has_no_such_section(evaluated: Evaluated) -> None:
    assert json.loads((evaluated.out / "scores.json").read_text())["drawn_views"] == {}
    assert "Drawn views" not in (evaluated.out / "report.html").read_text()
