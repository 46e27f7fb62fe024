"""The real page in headless Chromium: upload, draw, review by keyboard, reload; nothing is asked of other machines."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from msgspec.structs import replace

import retipair
from browser import Browser, free_port
from conftest import VIEW
from eyes import draw_pair
from generating import draw
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.pair import save_image, synthetic_mark_of
from retipair.data.review import REVIEW_NAME

pytestmark = pytest.mark.browser
pytest.importorskip("gradio", reason="needs pip install 'retipair[app]'")

Line = tuple[str, str | None]


class Server:
    """A running `retipair app`."""

    def __init__(self, folder: Path, words: list[object]) -> None:
        self.port, self._log, self.temporary = free_port(), folder / "log", folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(retipair.__file__).parent.parent),
            "TMPDIR": str(self.temporary),
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-m", "retipair", "app", *map(str, words), "--port", str(self.port)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=environment, cwd=folder)
        self.url = f"http://127.0.0.1:{self.port}"
        end = time.monotonic() + 120
        while self.url not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.1)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(folder: Path, *words: object) -> Iterator[Server]:
    server = Server(folder, list(words))
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(30)


@pytest.fixture
def pairs(trained: Callable[[str], Path], tmp_path: Path) -> Path:
    return draw(trained("sdxl"), tmp_path / "new pairs")


@pytest.fixture
def adapter(trained: Callable[[str], Path]) -> Path:
    return trained("sdxl") / "out_joint_sdxl_cffa_pairs/exp"


def lines(pairs: Path) -> list[Line]:
    text = (pairs / REVIEW_NAME).read_text()
    return [(line["id"], line["decision"]) for line in map(json.loads, text.splitlines())]


def id_shown(browser: Browser) -> str:
    browser.wait("document.querySelector('#status .status')")
    return browser.value("document.querySelector('#status .status').innerText.match(/: (.*?) \\(/)[1]")


def press(browser: Browser, key: str, position: int) -> None:
    """Press a key of the review, and wait until the pair at this position is shown."""
    browser.key(key)
    browser.wait(f"document.querySelector('#status .status')?.innerText.startsWith('Pair {position} of')")


def test_review_by_keyboard_survives_reload_and_kill(pairs: Path, prepared: Path, tmp_path: Path) -> None:
    with serving(tmp_path, pairs, "--real", prepared) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("document.querySelectorAll('#pair img').length >= 4")
        assert "Nearest training pair" in browser.text() or "Copy of training pair" in browser.text()
        first = id_shown(browser)
        press(browser, "r", 2)
        second = id_shown(browser)
        press(browser, "k", 3)
        assert lines(pairs) == [(first, "reject"), (second, "keep")]
        press(browser, "b", 2)
        assert lines(pairs)[-1] == (second, None)
        press(browser, "ArrowRight", 3)
        press(browser, "ArrowLeft", 2)
        browser.fill("#folder input, #folder textarea", "krb")  # typing decides nothing
        for key in "krb":
            browser.key(key)
        browser.value("document.activeElement.blur()")
        time.sleep(1)
        assert len(lines(pairs)) == 3
        browser.reload()
        browser.wait_text("Pair 2 of 4")
        assert id_shown(browser) == second
        press(browser, "r", 3)
        server.end(signal.SIGKILL)
    assert lines(pairs)[-1] == (second, "reject")
    with serving(tmp_path, pairs) as server, Browser(tmp_path / "profile2") as browser:
        browser.open(server.url)
        browser.wait_text("2 of 4 reviewed, 2 rejected")
        browser.fill("#folder input, #folder textarea", str(tmp_path / "nowhere"))
        browser.click("#open")
        browser.wait_text("nowhere: ")
        real = Path(shutil.copytree(prepared, tmp_path / "real"))
        browser.fill("#folder input, #folder textarea", str(real))
        browser.click("#open")
        browser.wait_text("Pair 1 of 5")
        assert browser.complaints == []
        with Browser(tmp_path / "profile3") as other:  # another window opens another folder
            other.open(server.url)
            other.wait_text("Pair 1 of 5")
            other.fill("#folder input, #folder textarea", str(pairs))
            other.click("#open")
            other.wait_text("Pair 3 of 4")
            first = id_shown(browser)
            browser.value("document.activeElement.blur()")
            press(browser, "k", 2)
        own = real / REVIEW_NAME
        assert json.loads(own.read_text()) == {"id": first, "decision": "keep"}


def test_a_damaged_pair_is_shown_as_such_and_a_folder_made_again_is_read_again(pairs: Path, tmp_path: Path) -> None:
    records = list(read_manifest(pairs))
    worst = min(records, key=lambda record: record.consistency)
    view = (pairs / worst.fa).read_bytes()
    (pairs / worst.fa).write_bytes(b"cut")
    with serving(tmp_path, pairs) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait_text(f"Cannot be used: {pairs / worst.fa}")
        browser.wait("document.querySelector('#next')?.offsetParent")
        press(browser, "ArrowRight", 2)
        assert id_shown(browser) != worst.id
        (pairs / worst.fa).write_bytes(view)
        write_manifest(pairs, [replace(record, consistency=0.77) for record in records])
        browser.reload()
        browser.wait_text("0.77, as in real pairs")
        write_manifest(pairs, [replace(record, consistency=0.66) for record in records])
        browser.key("r")
        browser.wait_text("0.66, as in real pairs")
        assert not (pairs / REVIEW_NAME).exists()  # the person saw another pair
        press(browser, "r", 2)
        assert len(lines(pairs)) == 1


def test_each_comparison_shows_its_images_and_fits_the_window(pairs: Path, tmp_path: Path) -> None:
    with serving(tmp_path, pairs) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("document.querySelectorAll('#pair img').length == 4")
        browser.wait("document.querySelector('[data-choose=side]').getAttribute('aria-pressed') == 'true'")
        shown = {
            "1": ("side", "cf fa"),
            "2": ("swipe", "cf fa"),
            "3": ("flicker", "cf fa"),
            "4": ("checkerboard", "checkerboard"),
            "5": ("vessels", "vessels"),
        }
        visible = "[...document.querySelectorAll('#pair .frame')].filter(f => f.offsetParent).map(f => f.classList[1])"
        for width in (1280, 400):
            browser.resize(width)
            for key, (name, kinds) in shown.items():
                browser.key(key)
                browser.wait(f"document.body.dataset.comparison == '{name}'")
                assert browser.value(visible) == kinds.split()
                assert browser.overflow() <= 0, (width, name)
                least = min(300, 0.4 * width)
                assert browser.value("document.querySelector('#pair .frames').offsetWidth") >= least
        browser.click("[data-choose=swipe]")
        browser.value(
            "(bar => { bar.value = 25; bar.dispatchEvent(new Event('input', {bubbles: true})); })"
            "(document.querySelector('#pair .swipe-at'))"
        )
        assert "25%" in browser.value("getComputedStyle(document.querySelector('#pair .frame.fa')).clipPath")
        press(browser, "ArrowRight", 2)
        assert browser.value("document.body.dataset.comparison") == "swipe"  # it stays for the next pair
        assert browser.complaints == []


def saved(browser: Browser, name: str, path: Path) -> Path:
    """Save the bytes that a download link gives, by the end of its file name."""
    link = f"[...document.querySelectorAll('a[download]')].find(a => a.download.endsWith('{name}'))"
    browser.wait(link)
    browser.value(f"{link}.click()")
    data = browser.value(f"fetch({link}.href).then(r => r.arrayBuffer()).then(b => [...new Uint8Array(b)])")
    path.write_bytes(bytes(data))
    return path


def run_shown(browser: Browser, name: str, folder: Path) -> Path:
    """Run the command that the page shows below the drawn pairs, and return the folder that it wrote."""
    words = shlex.split(browser.value(f"document.querySelector('#{name}-command code').textContent"))
    environment = {**os.environ, "PYTHONPATH": str(Path(retipair.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", *words], check=True, env=environment, cwd=folder)
    return folder / words[-1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_draw_pairs_and_the_angiogram_of_an_upload(language: str, adapter: Path, tmp_path: Path) -> None:
    draw_tab, angiogram_tab, refusal, ending = {
        "en": ("Draw pairs", "Draw angiograms", "Cannot be used: fa.png: has no colour", signal.SIGINT),
        "zh": ("生成图像对", "生成造影", "无法使用： fa.png: has no colour", signal.SIGHUP),
    }[language]
    cf, fa = draw_pair(3, VIEW)
    photograph = tmp_path / "left eye's 1:2 $photo.png"  # gradio removes : and $
    save_image(photograph, cf)
    save_image(tmp_path / "fa.png", fa)
    words = ["--adapter", adapter, "--language", language, "--device", "cpu"]
    with serving(tmp_path, *words) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.click_tab(draw_tab)
        browser.fill("#pairs-steps input[type=number]", "2")
        browser.fill("#pairs-seed input", "5")
        browser.key("Enter")
        browser.click("#pairs-draw")
        path = saved(browser, "pair_5_4_fa.png", tmp_path / "pair.png")
        assert synthetic_mark_of([path])["Seed"] == "5, pair 4"
        browser.wait_text("--amount 4 --seed 5 --steps 2")
        written = run_shown(browser, "pairs", tmp_path)
        assert path.read_bytes() == (written / "4/fa.png").read_bytes()

        browser.click_tab(angiogram_tab)
        browser.fill("#angiograms-steps input[type=number]", "2")
        browser.key("Enter")
        browser.upload("#photograph input[type=file]", tmp_path / "fa.png")
        browser.wait("document.querySelector('#photograph').innerText.includes('fa')")
        browser.click("#angiograms-draw")
        browser.wait_text(refusal)
        assert "Traceback" not in browser.text()
        assert str(server.temporary) not in browser.text()
        browser.click("#photograph button[aria-label]")
        browser.upload("#photograph input[type=file]", photograph)
        browser.wait("document.querySelector('#photograph').innerText.includes('photo')")
        browser.click("#angiograms-draw")
        path = saved(browser, "photo_0_1_fa.png", tmp_path / "drawn.png")
        assert "Synthetic" in synthetic_mark_of([path])
        given = saved(browser, "photo_0_1_cf.png", tmp_path / "given.png")
        assert synthetic_mark_of([given]) == {}
        browser.wait_text(f"--mode cf2fa --data {shlex.quote(photograph.name)} --per_view 1 --seed 0 --steps 2")
        written = run_shown(browser, "angiograms", tmp_path)
        assert path.read_bytes() == (written / "1/fa.png").read_bytes()
        in_photograph = saved(browser, "photo_0_1_fa_in_photograph.png", tmp_path / "in_photograph.png")
        assert in_photograph.read_bytes() == (written / "1/fa_in_source.png").read_bytes()
        for width in (1280, 400):
            browser.resize(width)
            assert browser.overflow() <= 0
        assert browser.value("document.documentElement.lang") == {"en": "en", "zh": "zh-CN"}[language]
        assert browser.hosts() == {f"127.0.0.1:{server.port}"}
        assert not re.search(r"google|huggingface|gradio\.app", " ".join(browser.requests))
        assert browser.complaints == []
        assert any(server.temporary.rglob("*photo.png"))
        assert server.end(ending) == 128 + ending
    assert "retipair: stopped" in server.said
    assert "Traceback" not in server.said
    assert not list(server.temporary.glob("retipair-app-*"))  # uploads are deleted at the end


def test_stop_ends_the_drawing_of_its_own_window(adapter: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--adapter", adapter, "--device", "cpu") as server,
        Browser(tmp_path / "profile") as browser,
        Browser(tmp_path / "profile2") as other,
    ):
        for window in (browser, other):
            window.open(server.url)
            window.click_tab("Draw pairs")
        browser.fill("#pairs-steps input[type=number]", "5")
        browser.key("Enter")
        browser.click("#pairs-draw")
        browser.wait_text("1 of 4 drawn; the next one")
        other.click("#pairs-stop")
        browser.wait_text("4 of 4 drawn.")
        browser.fill("#amount input[type=number]", "12")
        browser.key("Enter")
        browser.click("#pairs-draw")
        browser.wait_text("1 of 12 drawn; the next one")
        browser.click("#pairs-stop")
        browser.wait_text("Stopped: ")


def test_the_page_answers_on_this_machine_only(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        sockets = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        listening = re.findall(rf"([0-9A-F]+):{server.port:04X} [0-9A-F]+:0000 0A", sockets)
        assert listening == ["0100007F"]
        assert urlopen(server.url).status == 200
        with pytest.raises(HTTPError) as refused:  # a name of a web page elsewhere that points to this machine
            urlopen(Request(server.url, headers={"Host": f"elsewhere.example:{server.port}"}))
        assert refused.value.code == 400
        assert server.end(signal.SIGTERM) == 143
    shutil.rmtree(server.temporary)
