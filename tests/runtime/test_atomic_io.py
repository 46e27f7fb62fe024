"""Files and folders appear whole or not at all, and say when they are not what was written."""

import os
from pathlib import Path

import pytest

from retipair.runtime.atomic_io import (
    append_line,
    atomic_write,
    atomic_write_dir,
    is_leftover,
    recover_dir,
    shareable_name,
    temp_path,
    verify_checksums,
    write_checksums,
    write_json,
)


class FullError(OSError):
    """A disk that is full."""


def test_a_file_that_cannot_be_finished_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})
    before = path.read_bytes()

    def fail() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise FullError

    with pytest.raises(FullError):
        fail()
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["f.json"]


def test_what_a_kill_left_is_known_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    temp_path(path).write_bytes(b"half of something long")
    assert is_leftover(temp_path(path))
    assert not is_leftover(path)
    write_json(path, {})
    assert path.read_text() == "{}\n"
    assert [one.name for one in tmp_path.iterdir()] == ["f.json"]


def test_all_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may lose what was not synced: content before the name, then the name itself."""
    told: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        told.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        told.append(f"name {target.name}")
        return rename(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("only Linux has /proc, which tells what is synced")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_json(tmp_path / "f", 1)
    assert told == ["sync .f.partial", "name f", f"sync {tmp_path.name}"]
    told.clear()
    atomic_write_dir(tmp_path / "d", lambda folder: (folder / "content").write_text("x") and None)
    assert told == ["sync content", "sync .d.partial", "name d", f"sync {tmp_path.name}"]
    told.clear()
    append_line(tmp_path / "log", "line\n")
    assert told == ["sync log"]


# Folders


def filled(folder: Path, text: str) -> Path:
    def fill(partial: Path) -> None:
        (partial / "sub").mkdir()
        (partial / "sub/f.txt").write_text(text)
        write_checksums(partial)

    return atomic_write_dir(folder, fill)


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        assert (filled(tmp_path / "d", text) / "sub/f.txt").read_text() == text
        assert [one.name for one in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_a_folder_are_readable_as_the_umask_allows(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        atomic_write_dir(tmp_path / "f", lambda folder: (folder / "weights").touch(0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "f/weights").stat().st_mode & 0o777 == mode


def test_a_folder_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    filled(tmp_path / "d", "one")

    def fail(partial: Path) -> None:
        (partial / "half").write_text("x")
        raise FullError

    with pytest.raises(FullError):
        atomic_write_dir(tmp_path / "d", fail)
    assert (tmp_path / "d/sub/f.txt").read_text() == "one"
    assert verify_checksums(tmp_path / "d") is None
    assert [one.name for one in tmp_path.iterdir()] == ["d"]


def test_whenever_the_names_are_changed_one_of_both_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "d", "one")
    rename = Path.replace
    calls = 0

    def killed(self: Path, target: Path) -> Path:  # as by SIGKILL: nothing runs any more, no renaming back either
        nonlocal calls
        calls += self.name.startswith((".d", "d"))
        if calls >= 2 and self.name.startswith((".d", "d")):
            raise FullError
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(FullError):
        filled(tmp_path / "d", "two")
    monkeypatch.undo()
    assert not (tmp_path / "d").exists()
    recover_dir(tmp_path / "d")
    assert (tmp_path / "d/sub/f.txt").read_text() == "one"
    recover_dir(tmp_path / "d")
    assert (tmp_path / "d/sub/f.txt").read_text() == "one"


@pytest.mark.parametrize("harm", ["bit", "cut", "gone", "seal"])
def test_damage_is_named(harm: str, tmp_path: Path) -> None:
    folder = filled(tmp_path / "d", "content")
    assert verify_checksums(folder) is None
    path = folder / "sub/f.txt"
    if harm == "bit":
        path.write_text("contenu")
    elif harm == "cut":
        path.write_text("conten")
    elif harm == "gone":
        path.unlink()
    else:
        (folder / "checksums.json").write_text("{")
    found = verify_checksums(folder)
    assert found is not None
    assert ("checksums.json" if harm == "seal" else "sub/f.txt") in found


def test_only_the_last_part_of_a_path_is_shared(tmp_path: Path) -> None:
    assert shareable_name(str(tmp_path)) == tmp_path.name
    assert shareable_name("/clinic/Doe_Jane/base") == "base"  # of another machine
    assert shareable_name("owner/model") == "owner/model"
