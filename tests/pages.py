"""Pages as tests look at them: what they consist of, and what a browser says of them."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest


class Page(HTMLParser):
    """What a page consists of: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_figures(out: Path, start: str = "") -> int:
    """Every figure of a report whose path begins so is the score at this path. Return the number of these figures."""
    scores, text = json.loads((out / "scores.json").read_text()), (out / "report.html").read_text()
    found = re.findall(rf'<span data-score="({start}[^"]+)">([^<]*)</span>', text)
    for path, shown in found:
        value = scores
        for key in path.split("/"):
            value = value[int(key)] if isinstance(value, list) else value[key]
        digits = len(shown.partition(".")[2])
        assert float(shown) == pytest.approx(value, abs=0.501 * 10**-digits), path
    return len(found)


def check_needs_nothing(report: Path) -> None:
    """The page is complete in itself: no script, and nothing that a browser would fetch."""
    page = Page(report)
    assert page.all("html")[0]["lang"] == "en"
    assert not page.all("script")
    assert all(image["alt"] for image in page.all("img"))
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("data:image/jpeg;base64,", "#")), (tag, target[:80])
    assert "url(http" not in report.read_text()


PROBE = """<script>addEventListener("load", () => document.body.append(
    "broken: " + [...document.images].filter(image => !image.naturalWidth).length,
    " overflow: " + (document.documentElement.scrollWidth - document.documentElement.clientWidth)))</script>"""
"""Added to a page, it says what is wrong with it."""


def opened(page: Path, width: int = 1200) -> tuple[str, str]:
    """(the page's DOM after loading, what Chromium said of it)."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no Chromium here: apt install chromium"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    own = [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run([browser, *flags, *own, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def check_opens(report: Path, folder: Path, width: int) -> None:
    """Open a copy of a report in Chromium: nothing is broken, wider than the window or complained of."""
    page = folder / "report.html"
    page.write_text(report.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    shown, said = opened(page, width)
    assert "CONSOLE" not in said
    assert "broken: 0 overflow: 0" in shown
