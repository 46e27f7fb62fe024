"""`retipair merge`: put the pairs that `generate --shard` wrote into several folders into one folder."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from retipair.config import MergeConfig
from retipair.data.manifest import MANIFEST_NAME, GeneratedPair, read_manifest
from retipair.data.rejected import REJECTED_NAME, add_rejected, read_rejected
from retipair.data.review import append_review, read_review
from retipair.generation.filters import REJECTION_LOG_NAME, read_rejection_log
from retipair.generation.output import check_folder, scan_output, settings_difference
from retipair.runtime.atomic_io import atomic_write, atomic_write_dir, read_json
from retipair.runtime.console import console, track
from retipair.runtime.errors import FileError, MissingError, OccupiedError, SettingError
from retipair.runtime.jsonl import shard_path
from retipair.runtime.lock import directory_lock

_SETTINGS_NAME = "settings.json"
Pairs = dict[int, tuple[Path, GeneratedPair]]
"""The index of each pair -> the folder that contains it, and its manifest record."""


def merge(config: MergeConfig) -> Path:
    """Copy the pairs of all parts into OUT, merge their manifests and logs, and return OUT.

    The result has the files that one `generate` command writes; the environment in settings.json is that of the first
    part. Pairs that OUT already lists are not copied again, so the command can be repeated after a kill, or when more
    parts are finished. Raises UserError, before any file is copied, if a folder was not written by `generate`, if the
    settings differ, if no part has a pair, if two different pairs have one index, or if the manifests of the processes
    of a part were not merged yet.
    """
    # Check
    if not config.parts:
        raise SettingError("parts", None, "give at least one folder")
    for folder in config.parts:
        _check_written(folder, config.out)
    settings = read_json(config.parts[0] / _SETTINGS_NAME)
    for folder in config.parts:
        if difference := settings_difference(folder, settings):
            problem = f"was made with {difference} as in {config.parts[0]}"
            raise FileError(folder, f"{problem}; merge parts of one generation")
    pairs = _read_parts(config.parts)

    # Copy
    with directory_lock(config.out):
        check_folder(config.out, settings)
        _start(config.out, config.parts[0])
        listed = {record.index for record in read_manifest(config.out) if isinstance(record, GeneratedPair)}
        missing = sorted(pairs.keys() - listed)
        for index in track("Copying pairs", missing, len(missing)):
            _copy_pair(*pairs[index], config.out)

        # Merge
        for number, folder in enumerate(config.parts, start=1):
            _copy_lines(folder, config.out, number)
        done = scan_output(config.out, max(pairs))
        read_rejection_log(config.out)
    console.print(f"{len(done.consistencies)} synthetic pairs: {config.out}")
    if absent := max(done.indices) - len(done.indices):
        console.print(
            f"{absent} numbers up to {max(done.indices)} have no pair: given up by the filter, or in a part that is "
            "missing or not finished; repeat this command when all parts are finished"
        )
    return config.out


def _check_written(folder: Path, out: Path) -> None:
    """Raise UserError unless a part is a folder that `generate` wrote, with one merged manifest, and is not OUT."""
    if not (folder / _SETTINGS_NAME).is_file():
        raise MissingError(folder, f"no {_SETTINGS_NAME} here; give folders that `retipair generate` wrote")
    if folder.resolve() == out.resolve():
        raise OccupiedError(folder, "is OUT too; choose another OUT")
    if unmerged := sorted(folder.glob(f"{Path(MANIFEST_NAME).stem}.*{Path(MANIFEST_NAME).suffix}")):
        raise FileError(unmerged[0], "its generation was interrupted; repeat the command that wrote the folder")


def _read_parts(folders: Sequence[Path]) -> Pairs:
    """Return all pairs by their index. Raises UserError if two different pairs have one index."""
    pairs: Pairs = {}
    for folder in folders:
        for number, record in enumerate(read_manifest(folder), start=1):
            if not isinstance(record, GeneratedPair):
                raise FileError(folder / MANIFEST_NAME, f"{record.id!r} is not a generated pair; remove it", number)
            earlier, same = pairs.setdefault(record.index, (folder, record))
            if same != record:
                raise FileError(
                    folder / MANIFEST_NAME, f"{earlier} has another pair {record.id}; remove one of them", number
                )
    if not pairs:
        raise MissingError(folders[0], "its manifest is empty; generate the pairs first")
    return pairs


def _start(out: Path, first: Path) -> None:
    """Write the settings and an empty manifest, unless they exist."""
    if not (out / _SETTINGS_NAME).is_file():
        with atomic_write(out / _SETTINGS_NAME) as stream:
            stream.write((first / _SETTINGS_NAME).read_bytes())
    (out / MANIFEST_NAME).touch()


def _copy_pair(folder: Path, record: GeneratedPair, out: Path) -> None:
    """Copy the folder of a pair, unless it was copied before, or the user has deleted it."""
    place = Path(record.cf).parent
    if (folder / place).is_dir() and not (out / place).exists():
        atomic_write_dir(out / place, partial(shutil.copytree, folder / place, dirs_exist_ok=True))


def _copy_lines(folder: Path, out: Path, number: int) -> None:
    """Copy the manifest and the log of a part, as files of process `number`, and its rejections and review."""
    for name in (MANIFEST_NAME, REJECTION_LOG_NAME):
        if (folder / name).is_file():
            with atomic_write(shard_path(out / name, number)) as stream:
                stream.write((folder / name).read_bytes())
    add_rejected(out, read_rejected(folder).lines, f"from the {REJECTED_NAME} of merged folders")
    decided = read_review(out).decisions
    for id, decision in read_review(folder).decisions.items():
        if id not in decided:
            append_review(out, id, decision)
