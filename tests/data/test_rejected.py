"""The list of rejected pairs: one reader that every command obeys; a pair that is deleted by hand is rejected too."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import pytest
from msgspec.structs import replace

from conftest import prepared_record, write_prepared
from judging import write_generated
from refusals import raises_file
from retipair.data.dataset import content_sha256, pair_sha256, read_dataset, read_folder
from retipair.data.folders import has_files
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.rejected import REJECTED_NAME, add_rejected, read_rejected
from retipair.runtime.errors import DamagedError, MissingError, UserError

Form = Literal["NFC", "NFD"]
SPLITS = ["train", "val", "train", "test", "train"]
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "prepared": lambda folder: write_prepared(folder, SPLITS),
    "generated": lambda folder: write_generated(folder, 5),
}
both_kinds = pytest.mark.parametrize("kind", FOLDERS)


def ids(folder: Path) -> list[str]:
    return [entry.id for entry in read_dataset(folder)]


def delete_pair(folder: Path, id: str) -> None:
    """As a user would: a generated pair's numbered folder, or a prepared pair's three files."""
    shutil.rmtree(folder / id, ignore_errors=True)
    for view in ("cf", "fa", "mask"):
        (folder / view / f"{id}.png").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "text",
    [
        b"eye1\neye4\n",
        b"eye1\neye4",
        b"eye1\r\neye4\r\n",
        b"eye1\reye4\r",
        b"\xef\xbb\xbfeye1\r\n\r\neye4",
        b"# double exposure\neye1\n\n  eye4  \n# eye2\n",
        b"eye4\neye1\neye4\n",
        "eye1\r\neye4\r\n".encode("utf-16"),
    ],
)
def test_listed_pairs_are_left_out_however_the_list_was_saved(text: bytes, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, SPLITS)
    (folder / REJECTED_NAME).write_bytes(text)
    assert ids(folder) == ["eye0", "eye2", "eye3"]


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_the_unicode_form_of_an_id_does_not_matter(listed: Form, named: Form, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, ["train", "val"])
    umlaut = replace(prepared_record("eye1", "val"), id=normalize(named, "Müller"))
    write_manifest(folder, [prepared_record("eye0", "train"), umlaut])
    (folder / REJECTED_NAME).write_text(normalize(listed, "Müller\n"), encoding="utf-8")
    assert ids(folder) == ["eye0"]


@both_kinds
@pytest.mark.parametrize(("text", "line"), [("12\n", 1), ("# all\n\n{0}\nEye1\n", 4), ("{0} {0}\n", 1)])
def test_an_unknown_id_is_refused_with_its_line(kind: str, text: str, line: int, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    (folder / REJECTED_NAME).write_text(text.format(ids(folder)[0]))
    with raises_file(folder / REJECTED_NAME, line=line):
        read_dataset(folder)


@pytest.mark.parametrize("content", [b"\xe9ye1", None], ids=["latin-1", "folder"])
def test_a_list_that_is_no_text_is_named(content: bytes | None, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, SPLITS)
    (folder / REJECTED_NAME).mkdir() if content is None else (folder / REJECTED_NAME).write_bytes(content)
    with raises_file(tmp_path / REJECTED_NAME, DamagedError):
        read_dataset(folder)


@both_kinds
def test_a_pair_without_any_file_is_rejected_and_reported_once(kind: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    gone, listed, *kept = ids(folder)
    (folder / REJECTED_NAME).write_text(f"{listed}\n")
    delete_pair(folder, gone)
    lines: list[str] = []
    assert [entry.id for entry in read_dataset(folder, lines.append)] == kept
    [line] = lines
    assert f"1 listed in rejected.txt ({listed})" in line
    assert f"1 whose files were deleted ({gone})" in line


def test_of_many_pairs_the_line_names_the_first(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, ["train"] * 6)
    for number in range(5):
        delete_pair(folder, f"eye{number}")
    assert "5 whose files were deleted (eye0, eye1, eye2, ...)" in read_folder(folder).note


def test_nothing_is_reported_where_nothing_is_left_out(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, SPLITS)
    (folder / REJECTED_NAME).write_text("# none yet\n")
    assert ids(folder) == [f"eye{number}" for number in range(5)]
    assert read_folder(folder).note == ""


@pytest.mark.parametrize(
    ("kind", "view"), [*((kind, view) for kind in FOLDERS for view in ("cf", "fa")), ("prepared", "mask")]
)
def test_a_pair_with_some_files_missing_is_an_error_that_names_the_file(kind: str, view: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    path = getattr(read_dataset(folder)[1], view)
    path.unlink()
    with raises_file(path, MissingError):
        [pair_sha256(entry) for entry in read_dataset(folder)]


def test_a_link_to_nowhere_is_not_a_deleted_file(tmp_path: Path) -> None:
    """As a data set under version control has them before its content is there."""
    folder = write_prepared(tmp_path, SPLITS)
    for view in ("cf", "fa", "mask"):
        path = folder / view / "eye1.png"
        path.unlink()
        path.symlink_to(tmp_path / "nowhere.png")
    assert "eye1" in ids(folder)


def test_a_path_that_cannot_be_looked_at_is_not_a_deleted_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert has_files(tmp_path, ["gone.png", "x" * 300])
    assert not has_files(tmp_path, ["gone.png", None, "gone/gone.png", "file/gone.png"])


@both_kinds
@pytest.mark.parametrize("how", ["listed", "deleted"])
def test_where_all_are_rejected_it_is_said(kind: str, how: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    every = ids(folder)
    if how == "listed":
        (folder / REJECTED_NAME).write_text("\n".join(every))
    else:
        for id in every:
            delete_pair(folder, id)
    with pytest.raises(UserError, match=r"5 (listed|whose).*no pair is left"):
        read_dataset(folder)


@both_kinds
@pytest.mark.parametrize("how", ["listed", "deleted"])
def test_the_others_keep_their_side_of_the_split_and_the_fingerprint_follows(
    kind: str, how: str, tmp_path: Path
) -> None:
    folder = FOLDERS[kind](tmp_path)
    before = read_dataset(folder)
    fingerprint = content_sha256(before)
    for out in before:
        if how == "listed":
            (folder / REJECTED_NAME).write_text(out.id)
            after = read_dataset(folder)
            assert after == [entry for entry in before if entry.id != out.id]
            assert content_sha256(after) != fingerprint
    if how == "deleted":
        delete_pair(folder, before[0].id)
        assert read_dataset(folder) == before[1:]


def test_ids_are_added_once_and_the_users_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / REJECTED_NAME
    path.write_bytes(b"\xef\xbb\xbf# mine\r\n3\r\n7")
    add_rejected(tmp_path, ["7", "9", "4"], "copies")
    assert path.read_text(encoding="utf-8-sig") == "# mine\n3\n7\n# copies\n9\n4\n"
    before = path.read_bytes()
    add_rejected(tmp_path, ["9", "3"], "copies")
    assert path.read_bytes() == before
    assert set(read_rejected(tmp_path).lines) == {"3", "4", "7", "9"}
    add_rejected(tmp_path / "new", [], "copies")
    assert not (tmp_path / "new").exists()


def test_the_lists_of_the_manifest_stay_as_they_are(tmp_path: Path) -> None:
    """Nothing but the list says what is rejected: without it all pairs are back."""
    folder = write_prepared(tmp_path, SPLITS)
    manifest = list(read_manifest(folder))
    add_rejected(folder, ["eye2"], "blurred")
    assert ids(folder) == ["eye0", "eye1", "eye3", "eye4"]
    (folder / REJECTED_NAME).unlink()
    assert ids(folder) == [record.id for record in manifest]


@both_kinds
@pytest.mark.parametrize("name", ["Rejected.txt", "REJECTED.TXT", "rejected.csv", "rejected.txt.txt", "rejected.xlsx"])
def test_a_list_under_nearly_the_same_name_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    first = ids(folder)[0]
    (folder / name).write_text(f"{first}\n")
    with raises_file(folder / name):
        read_dataset(folder)
    (folder / REJECTED_NAME).write_text(f"{first}\n")  # of which it is a copy
    assert first not in [entry.id for entry in read_dataset(folder)]


@both_kinds
def test_a_list_that_is_a_link_to_nothing_is_refused(kind: str, tmp_path: Path) -> None:
    folder = FOLDERS[kind](tmp_path)
    (folder / REJECTED_NAME).symlink_to("gone")
    with raises_file(tmp_path / REJECTED_NAME, DamagedError):
        read_dataset(folder)
