"""Input that lies: refused in a line that names the file, or read right; nothing else is touched or half-written."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from eyes import write_raw
from image_files import chunk
from retipair.data.manifest import read_manifest
from retipair.data.pair import load_image
from retipair.interfaces.cli import main
from retipair.runtime.errors import UserError

SIZE = 64
PATIENCE = 10.0
"""Seconds of this process: others on the machine do not count."""
FUZZED = settings(
    max_examples=40,
    deadline=None,  # ours is PATIENCE: the first call loads libraries
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder, n=3, size=96, jitter=0.3)
    return folder


Check = Callable[..., str]


@pytest.fixture
def refused(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """(name, content) -> what is said when that file of the raw folder has that content."""
    bad = tmp_path / "bad"
    shutil.copytree(raw, bad)

    def check(name: str, content: bytes, named: str | None = None, may_work: bool = False) -> str:
        path = bad / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        began = time.process_time()
        try:
            status = main(["prepare", str(bad), str(tmp_path / "out"), "--size", str(SIZE), "--workers", "1"])
        finally:
            path.unlink() if before is None else path.write_bytes(before)
        assert time.process_time() - began < PATIENCE
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "internal error" not in said
        if status == 0 and may_work:
            assert len(list(read_manifest(tmp_path / "out"))) >= 2
            shutil.rmtree(tmp_path / "out")
            return ""
        assert status == 2, said
        line = said.splitlines()[-1]
        assert (named or name) in line, line
        assert {one.name for one in tmp_path.iterdir()} == {"bad"}  # nothing is written, here or beside
        return line

    return check


def encoded(image: Image.Image, kind: str, **more: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def pictures(kind: str) -> bytes:
    first, *others = [Image.new("RGB", (96, 96), (200, 80, shade)) for shade in (0, 100, 200)]
    return encoded(first, kind, save_all=True, append_images=others)


# Images

GOOD = encoded(Image.new("RGB", (96, 96), (200, 80, 20)), "PNG")
IMAGES = {
    "empty": b"",
    "text": b"hello\n",
    "a PDF": b"%PDF-1.7\n",
    "a zip": b"PK\x03\x04" + b"\0" * 100,
    "half a PNG": GOOD[: len(GOOD) // 2],
    "a PNG header": GOOD[:33],
    "an image of one pixel": encoded(Image.new("RGB", (1, 1), (200, 80, 20)), "PNG"),
    "an image of 31 rows": encoded(Image.new("RGB", (96, 31), (200, 80, 20)), "PNG"),
    "ten gigapixels": bomb(100_000, 100_000),
    "the widest PNG": bomb(2**31 - 1, 2**31 - 1),
    "a PNG without a width": bomb(0, 96),
    "several pages": pictures("TIFF"),
    "an animated PNG": pictures("PNG"),
    "an animated GIF": pictures("GIF"),
    "all black": encoded(Image.new("RGB", (96, 96)), "PNG"),
    "floating point, not a number": encoded(Image.fromarray(np.full((96, 96), np.nan, np.float32)), "TIFF"),
    "floating point, neither": encoded(Image.fromarray(np.full((96, 96), 3.5, np.float32)), "TIFF"),
    "a JPEG cut off": encoded(Image.new("RGB", (96, 96), (200, 80, 20)), "JPEG")[:300],
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_cannot_be_used_are_named(kind: str, refused: Check) -> None:
    line = refused("002/002_01.png", IMAGES[kind])
    if "giga" in kind:
        assert "--max_megapixels" in line


@FUZZED
@given(st.data())
def test_whatever_is_done_to_an_image(raw: Path, refused: Check, data: st.DataObject) -> None:
    content = bytearray((raw / "002/002_01.png").read_bytes())
    at = st.integers(0, len(content) - 1)
    how = data.draw(st.sampled_from(["cut", "set", "insert", "header", "swap"]))
    if how == "cut":
        del content[data.draw(at) :]
    elif how == "set":
        for place in data.draw(st.lists(at, min_size=1, max_size=8)):
            content[place] = data.draw(st.integers(0, 255))
    elif how == "insert":
        place = data.draw(at)
        content[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    elif how == "header":
        content[8:33] = chunk(b"IHDR", data.draw(st.binary(min_size=13, max_size=13)))
    else:
        place = data.draw(at)
        content = content[place:] + content[:place]
    # What is still a picture may still be of the eye, or not match its partner.
    refused("002/002_01.png", bytes(content), named="002", may_work=True)


# Points

POINTS = {
    "a header": "x y\n1 2\n3 4\n50 60\n70 8\n",
    "three columns": "1 2 3\n" * 20,
    "one column": "1\n" * 20,
    "no numbers": "a b\n" * 20,
    "not a number": "nan 3\n" * 20,
    "infinite": "inf 3\n" * 20,
    "too few": "10 10\n20 30\n60 20\n",
    "fewer than its partner": "10 10\n20 30\n60 20\n70 70\n",
    "outside": "1000 1000\n" * 20,
    "on one line": "".join(f"{n * 4} {n * 4}\n" for n in range(20)),
    "one place": "48 48\n" * 20,
    "empty": "",
    "numbers beyond all": "1e400 1\n" * 20,
    "a NUL": "1\0 2\n" * 20,
}


@pytest.mark.parametrize("kind", POINTS)
def test_points_that_cannot_be_used_are_named(kind: str, refused: Check) -> None:
    refused("002/002_01.txt", POINTS[kind].encode())


def test_points_in_other_encodings_are_named(refused: Check) -> None:
    refused("002/002_01.txt", "1 2\n".encode("utf-16") * 20)
    refused("002/002_01.txt", "1 2 é\n".encode("latin-1") * 20)


def _lines() -> st.SearchStrategy[str]:
    number = st.one_of(
        st.floats().map(str), st.integers(-10, 120).map(str), st.text(max_size=5), st.just("1e999"), st.just("-0")
    )
    between = st.sampled_from([" ", ",", ";", "\t", ", ", ""])
    line = st.lists(st.tuples(number, between).map("".join), max_size=4).map("".join)
    return st.lists(line, max_size=25).flatmap(
        lambda rows: st.sampled_from(["\n", "\r\n", "\r"]).map(lambda e: e.join(rows))
    )


@FUZZED
@given(text=_lines(), mark=st.booleans())
def test_whatever_stands_among_the_points(refused: Check, text: str, mark: bool) -> None:
    content = text.encode("utf-8-sig" if mark else "utf-8", errors="surrogatepass")
    refused("002/002_01.txt", content, named="002", may_work=True)


@pytest.mark.nightly
def test_points_as_programs_write_them_are_read(raw: Path, refused: Check) -> None:
    text = (raw / "002/002_01.txt").read_text()
    for other in (
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        text.replace(" ", ","),
        text.replace(" ", "\t") + "\n\n",
    ):
        assert refused("002/002_01.txt", other.encode(), may_work=True) == ""


# Tables

TABLES = {
    "empty.csv": "",
    "no_lines.csv": "cf,fa\n",
    "missing.csv": "cf\n001/001_01.png\n",
    "extra.csv": "cf,fa,colour\na,b,c\n",
    "twice.csv": "cf,fa,cf\na,b,c\n",
    "long.csv": "cf,fa\na,b,c\n",
    "open_quote.csv": 'cf,fa\n"a,b\n',
    "nowhere.csv": "cf,fa\nnot/here.png,../../../etc/passwd\n",
    "split.csv": "cf,fa,split\n001/001_01.png,001/001_02.png,middle\n",
    "script.csv": "id,cf,fa\n<script>,001/001_01.png,001/001_02.png\n",
    "up.csv": "id,cf,fa\n../../x,001/001_01.png,001/001_02.png\n",
    "dash.csv": "id,cf,fa\n--help,001/001_01.png,001/001_02.png\n",
    "long_id.csv": f"id,cf,fa\n{'x' * 255},001/001_01.png,001/001_02.png\n",
    "case.csv": "id,cf,fa\na,001/001_01.png,001/001_02.png\nA,002/002_01.png,002/002_02.png\n",
    "deep.jsonl": "[" * 100_000,
    "list.jsonl": "[1]\n",
    "torn.jsonl": '{"cf": "001/001_01.png", "fa"',
    "number.jsonl": '{"cf": 3, "fa": [1]}\n',
    "huge.jsonl": '{"cf": ' + "9" * 10_000 + ', "fa": "x"}\n',
    "half.jsonl": '{"cf": "001/001_01.png", "fa": "001/001_02.png", "caption": "\\ud800"}\n',
    "half_id.jsonl": '{"id": "\\ud800", "cf": "001/001_01.png", "fa": "001/001_02.png"}\n',
    "table.xlsx": "PK",
}


def tabled(raw: Path, name: str, content: bytes, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a table in a folder of raw views."""
    (raw / name).write_bytes(content)
    began = time.process_time()
    try:
        status = main(["prepare", str(raw / name), str(out), "--size", str(SIZE), "--workers", "1"])
    finally:
        (raw / name).unlink()
    said = capsys.readouterr().err
    assert time.process_time() - began < PATIENCE
    assert "Traceback" not in said
    assert "internal error" not in said
    assert status == 2, said
    assert not out.exists()
    return said.splitlines()[-1]


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_cannot_be_used_are_named(
    name: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = tabled(raw, name, TABLES[name].encode(), tmp_path / "out", capsys)
    assert name in line or "001_01.png" in line or "not/here.png" in line


@FUZZED
@given(
    content=st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda text: f"cf,fa\n{text}".encode(errors="replace"))
    )
)
@example(content=b"cf,fa\n\xff\xfe\n")
@example(content="cf,fa\n1,2".encode("utf-16"))
def test_whatever_stands_in_a_table(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    assert str(raw) in tabled(raw, "table.csv", content, tmp_path / "out", capsys)
    assert str(raw) in tabled(raw, "table.jsonl", content, tmp_path / "out", capsys)


# Names and folders


def test_names_that_make_trouble(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A symlink that leads to itself, a name as long as it may be, half a character."""
    cases = {}
    for number, make in enumerate((_loop, _long, _undecodable)):
        folder = tmp_path / f"bad{number}"
        shutil.copytree(raw, folder)
        cases[folder] = make(folder)
    for folder, named in cases.items():
        assert main(["prepare", str(folder), str(tmp_path / "out"), "--size", str(SIZE), "--workers", "1"]) == 2
        assert named in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def _loop(folder: Path) -> str:
    path = folder / "002/002_01.png"
    path.unlink()
    path.symlink_to(path)
    return "002_01"


def _long(folder: Path) -> str:
    for view in ("01", "02"):
        shutil.copy(folder / f"001/001_{view}.png", folder / f"001/{'x' * 245}_{view}.png")
    return "too long"


def _undecodable(folder: Path) -> str:
    for view in ("01", "02"):
        shutil.copy(
            folder / f"001/001_{view}.png", bytes(folder) + f"/001/a_{view}.png".encode().replace(b"a", b"\xff")
        )
    return "not a safe file name"


def test_spaces_and_other_scripts_in_paths_are_fine(raw: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(raw, tmp_path / "眼底 images -x")
    assert main(["prepare", str(folder), str(tmp_path / "out put"), "--size", str(SIZE), "--workers", "1"]) == 0


@pytest.mark.nightly
def test_forms_that_cameras_write_are_read_alike(raw: Path, tmp_path: Path, refused: Check) -> None:
    with Image.open(raw / "002/002_01.png") as image:
        view = image.convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # on its side
    for content in (
        encoded(view.convert("CMYK"), "TIFF"),
        encoded(view.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        encoded(view.convert("RGBA"), "PNG"),
        encoded(view.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=98, exif=exif),
        encoded(view, "BMP"),
        encoded(view, "JPEG", quality=98, progressive=True),
    ):
        assert refused("002/002_01.png", content, may_work=True) == ""


# Which pairs go on


def harmed(raw: Path, folder: Path) -> Path:
    """Six pairs, of which three cannot be used, and an eyes.csv of all."""
    shutil.copytree(raw, folder)
    (folder / "001/001_02.png").write_bytes(b"")
    (folder / "003/003_01.txt").write_text("x y\n")
    write_raw(folder / "more", n=5, size=96, jitter=0.3)
    for name in ("004", "005"):
        shutil.move(folder / "more" / name, folder / name)
    shutil.rmtree(folder / "more")
    shutil.copytree(folder / "005", folder / "006")
    (folder / "006/005_02.png").unlink()
    for path in (folder / "006").iterdir():
        path.rename(path.with_name(path.name.replace("005", "006")))
    (folder / "eyes.csv").write_text("id,eye\n" + "".join(f"00{n},{n}\n" for n in range(1, 7)))
    return folder


@pytest.mark.nightly
def test_all_that_cannot_be_used_are_listed_and_left_out_where_that_is_asked(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = harmed(raw, tmp_path / "bad")
    command = ["prepare", str(folder), str(tmp_path / "out"), "--size", str(SIZE), "--workers", "1"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "006_01.png: its partner 006_02 is missing" in said.splitlines()[-1]
    assert "2 more pairs or images cannot be used" in said.splitlines()[-1]
    assert "001_02.png" in said
    assert "003_01.txt" in said
    assert not (tmp_path / "out").exists()
    assert main([*command, "--skip_bad"]) == 0
    kept = {record.id for record in read_manifest(tmp_path / "out")}
    assert kept
    assert kept.isdisjoint({"001", "003", "006"})
    listed = (tmp_path / "out/skipped.txt").read_text().splitlines()
    bad = ("006_01.png", "001_02.png", "003_01.txt")
    assert [name in line for name, line in zip(bad, listed, strict=True)] == [True] * 3


def test_lines_of_a_table_without_files_are_left_out_where_that_is_asked(raw: Path, tmp_path: Path) -> None:
    files = ("01.png", "02.png", "01.txt", "02.txt")
    lines = [f"00{n},{','.join(f'00{n}/00{n}_{name}' for name in files)}\n" for n in range(1, 4)]
    strange = "gone,not/here.png,001/001_02.png,,\n<b>,001/001_01.png,001/001_02.png,,\n"
    (raw / "t.csv").write_text(f"id,cf,fa,cf_points,fa_points\n{''.join(lines)}{strange}")
    command = ["prepare", str(raw / "t.csv"), str(tmp_path / "out"), "--size", str(SIZE), "--workers", "1"]
    try:
        assert main(command) == 2
        assert main([*command, "--skip_bad"]) == 0
    finally:
        (raw / "t.csv").unlink()
    listed = (tmp_path / "out/skipped.txt").read_text()
    assert "here.png does not exist" in listed
    assert "'<b>' is not a safe file name" in listed
    assert {record.id for record in read_manifest(tmp_path / "out")} == {"001", "002", "003"}


def test_stray_images_and_folders_are_listed_and_left_out_where_that_is_asked(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some of their names are not UTF-8, which no list can hold as they are."""
    folder = shutil.copytree(raw, tmp_path / "bad")
    (folder / "notes").mkdir()
    (folder / "@eaDir").mkdir()
    for place in (b"001/overview.png", b"beach/holiday.png", b"\xff.png", b"\xff_01.png", b"\xff_02.png"):
        path = Path(os.fsdecode(bytes(folder) + b"/" + place))
        path.parent.mkdir(exist_ok=True)
        shutil.copy(raw / "002/002_01.png", path)
    command = ["prepare", str(folder), str(tmp_path / "out"), "--size", str(SIZE), "--workers", "1"]
    assert main(command) == 2
    said = capsys.readouterr().err
    names = ("overview.png", "holiday.png", r"\udcff.png", r"\udcff_01.png")
    assert all(name in said for name in names)
    assert "3 more pairs or images cannot be used" in said.splitlines()[-1]
    assert main([*command, "--skip_bad"]) == 0
    assert "skipped folders without images: notes\n" in capsys.readouterr().err
    listed = (tmp_path / "out/skipped.txt").read_text()
    assert all(name in listed for name in (*names, "bad/notes: no images in it"))
    assert len(listed.splitlines()) == 5
    assert {record.id for record in read_manifest(tmp_path / "out")} == {"001", "002", "003"}


# As real processes


def _commands(folder: Path) -> Iterator[tuple[list[str], str]]:
    """(arguments, what must be named), each with something wrong."""
    (folder / "bomb.png").write_bytes(bomb(100_000, 100_000))
    (folder / "pickle.ckpt").write_bytes(b"\x80\x02cos\nsystem\n(S'touch owned'\ntR.")
    (folder / "manifest").mkdir()
    line = {"schema": "retipair.generated/1", "cf": "../../x"}
    (folder / "manifest/manifest.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "t.csv").write_text("id,cf,fa\na,bomb.png,bomb.png\nb,bomb.png,bomb.png\n")
    yield ["prepare", str(folder / "t.csv"), str(folder / "out")], "bomb.png"
    yield ["prepare", str(folder / "nowhere"), str(folder / "out")], "nowhere"
    yield ["train", "-n", "x", "--base", "tiny-sd15", "--data", str(folder / "manifest")], "manifest.jsonl"
    yield ["train", "-n", "../x", "--data", str(folder)], "--name"
    yield ["train", "-n", "x", "--data", str(folder / "manifest"), "--base", str(folder / "pickle.ckpt")], "pickle.ckpt"
    yield ["generate", "-n", "x", "--amount", "1"], "'x'"
    yield ["generate", "--checkpoint", str(folder), "--out", str(folder / "out")], str(folder)
    yield ["generate", "-n", "x", "--amount", "many"], "--amount"
    yield ["evaluate", "--real", str(folder / "manifest")], "manifest.jsonl"
    yield ["evaluate", "--real", str(folder)], str(folder)
    yield ["phantom", str(folder / "t.csv")], "t.csv"
    yield ["bench", "dance"], "dance"
    yield ["dance"], "dance"


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.nightly)])
def test_bad_input_to_a_real_process_is_one_line_and_writes_nothing(tmp_path: Path, every: int) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    work = tmp_path / "work"
    work.mkdir()
    for arguments, named in islice(_commands(inputs), 0, None, every):
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        done = subprocess.run(
            [sys.executable, "-m", "retipair", *arguments], cwd=work, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        lines = done.stderr.splitlines()
        is_parser_box = lines[0].startswith("╭")
        assert named in (done.stderr if is_parser_box else lines[-1]), (arguments, done.stderr)
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before  # nothing is written, nor run


# What a fuzzer begins with, and what it has found

CORPUS = sorted((Path(__file__).parent / "fuzz/corpus/image").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=[path.name for path in CORPUS])
def test_seeds_are_read_or_refused(path: Path) -> None:
    refusals = {"pages.tif": "several images", "second_page_without_size.tif": "several images"}
    if path.name in refusals:
        with pytest.raises(UserError, match=refusals[path.name]):
            load_image(path, "RGB")
    else:
        assert load_image(path, "RGB").shape == (8, 8, 3)
