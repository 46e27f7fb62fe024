"""What the page draws is what the command that it shows writes, byte for byte."""

import shlex
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest
from safetensors.torch import load_file, save_file

from compare import contents
from conftest import VIEW
from eyes import draw_pair
from retipair.config import AppConfig
from retipair.data.dataset import PairRecord
from retipair.data.pair import save_image
from retipair.interfaces.app import drawing
from retipair.interfaces.app.drawing import Drawer
from retipair.interfaces.cli import main
from retipair.runtime.errors import UserError

_SIZE = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
HEADER_OF_400_MEGAPIXELS = b"\x89PNG\r\n\x1a\n\0\0\0\r" + _SIZE + struct.pack(">I", crc32(_SIZE)) + b"\0\0\0\0IDAT"
Pairs = Iterator[tuple[PairRecord, float]]


@pytest.fixture
def drawer(trained: Callable[[str], Path], tmp_path: Path) -> Drawer:
    run = trained("sd15") / "out_joint_sd15_cffa_pairs/exp"
    return Drawer(AppConfig(adapter=run, device="cpu"), tmp_path)


def files(pairs: Pairs) -> dict[str, dict[str, bytes]]:
    """The files of each pair, by its id, read before they are deleted."""
    return {record.id: contents(record.cf.parent) for record, _ in pairs}


def written_by(command: str) -> dict[str, dict[str, bytes]]:
    words = shlex.split(command)
    assert words[0] == "retipair"
    assert main(words[1:]) == 0
    return {path.name: contents(path) for path in Path(words[-1]).iterdir() if path.is_dir()}


def test_the_command_that_is_shown_writes_the_same_pairs(
    drawer: Drawer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the weights were loaded for other settings, and for a photograph with a name that needs quotes."""
    loads = []
    original = drawing.load_generator
    monkeypatch.setattr(drawing, "load_generator", lambda *given: loads.append(given) or original(*given))
    monkeypatch.chdir(tmp_path)
    photograph = tmp_path / "left eye's photo.png"
    save_image(photograph, draw_pair(7, VIEW)[0])
    pairs = files(drawer.pairs(2, seed=5, steps=2))
    angiograms = files(drawer.angiograms(photograph, 2, seed=3, steps=3))
    assert files(drawer.pairs(1, seed=5, steps=2)) == {"1": pairs["1"]}
    assert len(loads) == 1  # the weights stay loaded
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []  # nothing is kept
    assert sorted(pairs["1"]) == ["cf.png", "cf_fa_chessboard.png", "fa.png", "joint.png"]
    assert written_by(drawer.pairs_command(2, 5, 2)) == pairs
    assert written_by(drawer.angiograms_command(photograph.name, 2, 3, 3)) == angiograms


def test_an_adapter_that_a_training_wrote_again_is_loaded_again(
    trained: Callable[[str], Path], base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Else the page would draw with the earlier weights, and record the new ones."""
    run = trained("sd15") / "out_joint_sd15_cffa_pairs/exp"
    adapter = Path(shutil.copytree(run / "best_checkpoint/unet_lora", tmp_path / "unet_lora"))
    drawer = Drawer(AppConfig(adapter=adapter, base=str(base_folder("sd15")), device="cpu"), tmp_path)
    before = files(drawer.pairs(1, seed=0, steps=1))
    [weights] = adapter.glob("adapter_model.safetensors")
    tensors = {name: 3 * tensor + 0.1 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    assert files(drawer.pairs(1, seed=0, steps=1))["1"]["fa.png"] != before["1"]["fa.png"]
    command = drawer.pairs_command(1, 0, 1).replace("--out pairs_0", f"--out {tmp_path / 'pairs_0'}")
    assert written_by(command) == files(drawer.pairs(1, seed=0, steps=1))


def test_a_base_alone_draws_too(tmp_path: Path, base_folder: Callable[[str], Path]) -> None:
    drawer = Drawer(AppConfig(base=str(base_folder("sd15")), device="cpu"), tmp_path)
    assert drawer.is_ready
    [(record, consistency)] = drawer.pairs(1, seed=0, steps=1)
    assert record.mode == "noise"
    assert -1 <= consistency <= 1


def test_a_cancelled_drawing_ends_and_the_next_one_starts(drawer: Drawer) -> None:
    pairs = drawer.pairs(3, seed=0, steps=1)
    next(pairs)
    drawer.cancel()
    assert list(pairs) == []
    assert len(list(drawer.pairs(2, seed=0, steps=1))) == 2


def test_a_window_stops_its_own_drawing_only(drawer: Drawer) -> None:
    pairs = drawer.pairs(3, seed=0, steps=1, window="a")
    next(pairs)
    drawer.cancel("b")
    next(pairs)
    drawer.cancel("a")
    assert list(pairs) == []


def test_nothing_is_drawn_after_the_end(drawer: Drawer) -> None:
    pairs = drawer.pairs(3, seed=0, steps=1)
    next(pairs)
    drawer.close()
    assert list(pairs) == []
    assert list(drawer.pairs(1, seed=0, steps=1)) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("notes.png", b"no image at all", "unsupported image format"),
        ("cut.png", None, "cannot be read as an image"),
        ("vast.png", HEADER_OF_400_MEGAPIXELS, "more than 200 megapixels"),
        ("photo.dcm", b"\0" * 128 + b"DICM" + b"\0" * 64, "DICOM"),
        ("notes.txt", b"left eye", "notes.txt"),
    ],
)
def test_a_file_that_is_no_photograph_is_refused_by_name(
    name: str, content: bytes | None, problem: str, drawer: Drawer, tmp_path: Path
) -> None:
    path = tmp_path / name
    save_image(path.with_suffix(".png"), draw_pair(0, VIEW)[0])
    path.write_bytes(path.with_suffix(".png").read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=problem) as error:
        list(drawer.angiograms(path, 1, seed=0, steps=1))
    assert name in str(error.value)


def test_an_angiogram_is_refused_as_a_photograph(drawer: Drawer, tmp_path: Path) -> None:
    path = tmp_path / "fa.png"
    save_image(path, draw_pair(0, VIEW)[1])
    with pytest.raises(UserError, match="has no colour"):
        list(drawer.angiograms(path, 1, seed=0, steps=1))
