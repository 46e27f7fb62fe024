"""`retipair demo`: every stage is the command it prints, what is there is used again, and the page shows it all."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conftest import write_prepared
from retipair import cli, demo
from retipair.cli import main
from retipair.config import DemoConfig
from retipair.data.dataset import load_pair, read_dataset
from retipair.data.pair import load_image, save_image
from retipair.data.phantom.cameras import BASE_CAMERAS
from retipair.vision.field_of_view import field_of_view

USUAL = demo.SETTINGS
QUICK = replace(
    USUAL,
    bases={"sdxl": "random:tiny-sdxl", "sd15": "random:tiny-sd15"},
    steps=dict.fromkeys(("sdxl", "sd15"), demo.Steps(3, 2)),
    phantoms=replace(USUAL.phantoms, amount=3, size=192, seed=3),
    training=replace(
        USUAL.training,
        **{"batch_size": 1, "val_every": 2, "log_every": 1, "augment_variants": 2, "unet_lora_rank": 4},
    ),
    amounts={"noise": 2, "from_data": 2},
)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SETTINGS", QUICK)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo leaves; read only."""
    out = tmp_path_factory.mktemp("demo") / "<b>a & b"
    assert main(["demo", str(out)]) == 0
    return out


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


def written(out: Path) -> dict[str, int]:
    """When each picture and each adapter in a folder was written."""
    files = [path for path in out.rglob("*") if path.suffix in (".png", ".safetensors")]
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in files if "sheet" not in path.name}


# The page


def test_the_page_shows_every_stage(made: Path) -> None:
    page = Page(made / "index.html")
    kept = len(read_dataset(made / "pairs"))
    assert len(page.all("img")) == 2 * kept + 2 + 2  # before and after, new, varied
    assert len(page.all("svg")) == 1
    for kind in ("training", "validation", "mean squared error"):
        assert kind in page.text
    row = r'<th scope="row">.*(aligned|from noise|from data)</th><td>(\d+)</td>\s(?:<td>-?0\.\d\d</td>\s?){4}'
    rows = re.findall(row, (made / "index.html").read_text())
    assert rows == [("aligned", str(kept)), ("from noise", "2"), ("from data", "2")]
    for stage in demo.stages_of(DemoConfig(out=made), 128):
        assert stage.command in page.text
    assert demo.NEXT in page.text


def test_the_page_says_what_it_is_and_needs_nothing_else(made: Path) -> None:
    page = Page(made / "index.html")
    assert "Everything on this page is synthetic." in page.text
    assert "For research only" in page.text
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("title")
    assert not page.all("script")
    assert all(image["alt"] for image in page.all("img"))
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("data:image/jpeg;base64,", "#")) or (made / target).is_file(), (tag, target[:80])
    assert "url(http" not in (made / "index.html").read_text()


def test_what_a_user_typed_is_text_on_the_page(made: Path) -> None:
    page = Page(made / "index.html")
    assert made.name in page.text
    assert not page.all("b")


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


def test_a_second_time_uses_what_is_there_and_the_other_base_shares_the_pairs(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made, tmp_path / "out")
    before = written(tmp_path / "out")
    assert main(["demo", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert written(tmp_path / "out") == before
    assert len(said.out.splitlines()[-2:]) == 2
    assert str(tmp_path / "out/index.html") in said.out.splitlines()[-2]
    assert demo.NEXT in said.out.splitlines()[-1]
    assert main(["demo", str(tmp_path / "out"), "--system", "sd15"]) == 0
    after = written(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert all("sd15" in name for name in set(after) - set(before))
    assert "random:tiny-sd15, squeezed" in Page(tmp_path / "out/index-sd15.html").text
    assert b"random:tiny-sdxl, side by side" in (tmp_path / "out/index.html").read_bytes()


# Refused


def test_out_must_be_a_demos(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: is a file" in refused("demo", tmp_path / "file")
    assert f"{tmp_path}: holds other files" in refused("demo", tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    assert "holds other files" in refused("demo", tmp_path / "site")
    assert (tmp_path / "site" / "index.html").read_text() == "mine"


def test_a_missing_base_is_known_before_anything_is_drawn(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SETTINGS", replace(QUICK, bases={"sdxl": "tiny-nothing"}))
    assert "tiny-nothing" in refused("demo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_demo_that_was_begun_otherwise_is_left_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SETTINGS", replace(QUICK, training=replace(QUICK.training, learning_rate=0.5)))
    before = written(made)
    assert main(["demo", str(made)]) == 2
    assert "or start afresh with another OUT" in capsys.readouterr().err.splitlines()[-1]
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
    drawn = read_dataset(demo._drawn(DemoConfig(out=made), "noise"))[0]
    assert drawn.mask is None
    pair = load_pair(drawn)
    assert (pair.mask == (field_of_view(pair.cf) & field_of_view(pair.fa))).all()


# In a browser

PROBE = """<script>addEventListener("load", () => document.body.append(
    "broken: " + [...document.images].filter(image => !image.naturalWidth).length,
    " overflow: " + (document.documentElement.scrollWidth - document.documentElement.clientWidth)))</script>"""


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


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_opens_in_chromium(made: Path, tmp_path: Path, width: int) -> None:
    shutil.copytree(made, tmp_path / "out")
    page = tmp_path / "out" / "index.html"
    page.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    shown, said = opened(page, width)
    assert "CONSOLE" not in said
    assert "broken: 0 overflow: 0" in shown


@pytest.mark.browser
def test_a_broken_page_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><body><img src=none.png><script>console.error('oh')</script>{PROBE}")
    shown, said = opened(page)
    assert "CONSOLE" in said
    assert "broken: 1" in shown
