"""The report: every number is a score, the page is self-contained, and a browser opens it without errors."""

import json
import re
from pathlib import Path

import pytest

from conftest import write_prepared
from judging import Evaluated
from pages import PROBE, Page, check_figures, check_needs_nothing, check_opens, opened
from retipair.interfaces.cli import main


@pytest.fixture(scope="module")
def out(evaluated: Evaluated) -> Path:
    return evaluated.out


def test_every_figure_on_the_page_is_the_score_that_it_names(out: Path) -> None:
    assert check_figures(out) > 120


def test_no_figure_comes_onto_the_page_in_another_way(out: Path) -> None:
    """Except in table heads, plots and the sentences of the verdict, which are copied from scores.json."""
    scores = json.loads((out / "scores.json").read_text())
    text = re.sub(r"<(style|svg|caption|figcaption|head)\b.*?</\1>", "", (out / "report.html").read_text(), flags=re.S)
    text = re.sub(r"<span data-score.*?</span>", "", text)
    for finding in scores["verdict"]:
        assert finding["about"] in text
    assert not re.findall(r"<td>[^<]*\d", text)


def test_each_part_is_there(out: Path) -> None:
    page = Page(out / "report.html")
    assert [level for level in ("OK", "Check", "Problem") if level in page.text]
    assert len(page.all("svg")) == 10  # agreement, likeness; of each view: spectrum, detail, thin vessels, training
    assert len(page.all("input")) == 3, "the best, the middle and the worst pair, each with a slider"
    images = 3 * 3 + 2 * 6 + 2
    assert len(page.all("img")) == images, "views and checkerboards, the closest with their training pairs, samples"
    assert [image["alt"] for image in page.all("img")][-2:] == ["Sample pair at step 0", "Sample pair at step 4"]
    for word in ("Generated pairs are synthetic", "For research only", "after the autoencoder", "squeezed"):
        assert word in page.text


def test_the_page_needs_nothing_else(out: Path) -> None:
    check_needs_nothing(out / "report.html")


@pytest.mark.nightly
def test_real_pairs_alone_have_a_report_too(tmp_path: Path) -> None:
    real = write_prepared(tmp_path / "real", ["train", "val"])
    assert main(["evaluate", "--real", str(real), "--out", str(tmp_path / "out")]) == 0
    page = Page(tmp_path / "out/report.html")
    assert "Check of real pairs" in page.text
    assert "No problems found in the real pairs." in page.text
    assert "synthetic" not in page.text


# In a browser


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_opens_in_chromium(out: Path, tmp_path: Path, width: int) -> None:
    check_opens(out / "report.html", tmp_path, width)


@pytest.mark.browser
def test_a_broken_page_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><body><img src=none.png><script>console.error('oh')</script>{PROBE}")
    shown, said = opened(page)
    assert "CONSOLE" in said
    assert "broken: 1" in shown
