"""`retipair prepare RAW OUT`: raw views, with or without key points -> aligned pairs, their manifest, a contact sheet.

Every input is read and checked before anything is written. Workers then write into OUT/.partial; only when all is done
do the views move to their places, the manifest last. What each view was made from is kept in OUT/.prepare.json, so
that the next run redoes only what changed.
"""

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from retipair.config import PrepareConfig
from retipair.data.anonymize import anonymous, hashed, read_key, write_names
from retipair.data.dataset import has_files
from retipair.data.duplicates import group_by_views
from retipair.data.manifest import MANIFEST_NAME, Split
from retipair.data.rejected import add_rejected, read_rejected
from retipair.data.sources import RawPair, find_pairs, scan_pairs
from retipair.data.splits import split_pairs
from retipair.preparation.alignment import ALIGNMENT_VERSION, AlignmentTask, align_pairs, alignment_task, limits_of
from retipair.preparation.reading import ReadPair, files_sha256, read_pairs
from retipair.preparation.state import (
    STAGING,
    STATE_NAME,
    VIEWS,
    AlignmentResult,
    load_previous_results,
    load_staged_results,
    reusable_result,
    view_file,
    write_state,
)
from retipair.preparation.summary import print_table, write_summary
from retipair.runtime.atomic_io import check_folder_place, fsync, is_leftover, write_text
from retipair.runtime.console import console
from retipair.runtime.errors import UserError, printable
from retipair.runtime.lock import directory_lock
from retipair.runtime.schema import json_sha256
from retipair.runtime.text_files import nfc

SKIPPED_NAME = "skipped.txt"
_LARGEST = 4096  # px: above any camera's
_WORD = re.compile(r"\w(?:[\w.+-]*\w)?")


def prepare(config: PrepareConfig) -> Path:
    """Align every raw pair, write the prepared folder and print what to do next; returns the folder.

    Raises UserError as `prepare_pairs`.
    """
    out = prepare_pairs(config)
    print(f"Next: retipair train -n first --data {out}")
    return out


def prepare_pairs(config: PrepareConfig) -> Path:
    """Align every raw pair and write the prepared folder; returns it.

    Raises UserError, before anything is written, for settings or inputs that cannot work, or when too few pairs
    could be aligned.
    """
    # Check everything
    _check_settings(config)
    pairs, unusable = scan_pairs(config.raw)
    _check_out(config.raw, config.out, pairs)
    read, skipped = read_pairs(pairs, [one.why for one in unusable if not one.empty], config)
    if empty := [one for one in unusable if one.empty]:
        console.print(f"passed over, no images in: {printable(', '.join(one.id for one in empty))}")
        skipped += [one.why for one in empty] if config.skip_bad else []
    read = _same_view_same_eye(read)
    _check_split([one.pair for one in read], skipped, config)
    if config.anonymise:
        _check_rejected_names_nobody(config.out, [one.pair for one in read])
        read = _anonymous(read, config.anonymise)
    read_rejected(config.out).check({nfc(one.pair.id) for one in read})
    tasks = [alignment_task(seen, config) for seen in read]
    with directory_lock(config.out):
        try:
            _prepare_tasks(tasks, [] if config.anonymise else skipped, config)  # which names files
        except UserError:  # killed or told to stop, what is aligned stays for the next run
            shutil.rmtree(config.out / STAGING, ignore_errors=True)
            raise
    return config.out


def _prepare_tasks(tasks: Sequence[AlignmentTask], skipped: Sequence[str], config: PrepareConfig) -> None:
    # Align what is new or changed
    earlier, staged = load_previous_results(config.out), load_staged_results(config.out)
    _reject_deleted(config.out, [earlier[task.pair.id] for task in tasks if task.pair.id in earlier])
    known = [(staged, config.out / STAGING), (earlier, config.out)]
    current = {task.pair.id: one for task in tasks if (one := reusable_result(task.pair.id, task.key, known))}
    redo = [task for task in tasks if task.pair.id not in current]
    if replaced := sum(task.pair.id in earlier for task in redo):
        print(f"{replaced} pairs of an earlier call are aligned anew, because their files or the settings changed")
    current |= {outcome.id: outcome for outcome in align_pairs(redo, config.workers)}
    outcomes = [current[task.pair.id] for task in tasks]

    # Say what became of them, and keep what can be used
    sides = _say_and_split([task.pair for task in tasks], outcomes, config)
    _move_into_place(config.out, outcomes)
    _list_skipped(config.out, skipped)
    write_summary(config, [task.pair for task in tasks], outcomes, sides)
    if skipped:
        print(f"{len(skipped)} more were left out, for reasons in {config.out / SKIPPED_NAME}")


def is_prepared(folder: Path) -> bool:
    """Whether `folder` holds pairs that are ready to train on."""
    return (folder / MANIFEST_NAME).is_file()


def fingerprint(config: PrepareConfig) -> str:
    """A hash of all that the prepared folder depends on: the raw files' content, their tables and the settings.

    Neither where the raw files lie, nor OUT, nor the number of workers. Raises UserError like `find_pairs`.
    """
    known = [
        [pair.id, pair.eye, pair.patient, pair.split, pair.caption, pair.views_named, files_sha256(pair)]
        for pair in find_pairs(config.raw)
    ]
    settings = [config.size, config.register, asdict(limits_of(config))]
    split = [config.val_fraction, config.test_fraction, config.seed]
    return json_sha256([ALIGNMENT_VERSION, settings, split, known])


# --- Checks


def _check_settings(config: PrepareConfig) -> None:
    if config.size % 64 or not 64 <= config.size <= _LARGEST:
        raise UserError(f"--size {config.size}: must be a multiple of 64 px, from 64 to {_LARGEST}")
    if not 0 < config.max_residual_px < math.inf:
        raise UserError(f"--max_residual_px {config.max_residual_px:g}: must be a number of px above 0")
    if config.min_consistency is not None and not -1 <= config.min_consistency <= 1:
        raise UserError(f"--min_consistency {config.min_consistency:g}: must be from -1 to 1")
    if config.workers < 0:
        raise UserError(f"--workers {config.workers}: must be 0 (every core) or more")
    if config.anonymise and {config.out.resolve(), config.raw.resolve()} & set(config.anonymise.resolve().parents):
        raise UserError(f"--anonymise {config.anonymise}: lies in RAW or OUT; keep the key apart from the pairs")
    if config.max_megapixels < 1:
        raise UserError(f"--max_megapixels {config.max_megapixels}: must be 1 or more")
    val, test = config.val_fraction, config.test_fraction
    if not (val > 0 and test >= 0 and val + test < 1):
        raise UserError(
            f"--val_fraction {val:g} --test_fraction {test:g}: validation needs a share above 0, training too"
        )


def _check_out(raw: Path, out: Path, pairs: Sequence[RawPair]) -> None:
    """OUT is new, empty or ours, not among the raw views, and none of them in it: they would be replaced."""
    folder = raw.resolve() if raw.is_dir() else None
    if folder and (out.resolve() == folder or folder in out.resolve().parents):
        raise UserError(f"{out}: lies in the folder of the raw views; choose another OUT")
    files = (file for pair in pairs for file in pair.files)
    # Not `resolve`, which raises for a link that leads to itself.
    if within := next((file for file in files if out.resolve() in Path(os.path.realpath(file)).parents), None):
        raise UserError(f"{within}: lies in OUT ({out}), where it would be replaced; choose another OUT")
    for place in (STAGING, *VIEWS):
        check_folder_place(out / place)
    if out.is_dir() and not all(map(is_leftover, out.iterdir())) and not (out / STATE_NAME).is_file():
        raise UserError(f"{out}: holds other files; choose a new or empty folder for OUT")


def _check_split(pairs: Sequence[RawPair], skipped: Sequence[str], config: PrepareConfig) -> None:
    """Raise UserError before anything is aligned if the eyes are too few for the sides of a split."""
    try:
        split_pairs(pairs, config.val_fraction, config.test_fraction, config.seed)
    except UserError as error:
        if not skipped:
            raise
        raise UserError(f"{config.raw}: {len(skipped)} pairs or images were left out, and {error}") from None


def _list_skipped(out: Path, skipped: Sequence[str]) -> None:
    if skipped:
        write_text(out / SKIPPED_NAME, "".join(f"{printable(text)}\n" for text in skipped))
    else:
        (out / SKIPPED_NAME).unlink(missing_ok=True)


def _same_view_same_eye(read: Sequence[ReadPair]) -> list[ReadPair]:
    """Give pairs that share a view one eye, and print which: otherwise it could end on two sides of the split."""
    pairs = [one.pair for one in read]
    grouped, groups = group_by_views(pairs, [one.views for one in read])
    if groups:
        listed = "; ".join(" + ".join(group) for group in groups)
        print(f"pairs that share a view (equal pixels) are of one eye and stay on one side of the split: {listed}")
    return [replace(one, pair=pair) for one, pair in zip(read, grouped, strict=True)]


def _anonymous(read: Sequence[ReadPair], path: Path) -> list[ReadPair]:
    """Under other names, in their order, so that not even that tells who was first."""
    key = read_key(path)
    names = path.with_name(f"{path.name}.csv")
    write_names(names, key, [one.pair for one in read])
    print(f"ids are hashed with the key in {path}; which is whose stands in {names}: keep both apart")
    if any(one.pair.caption for one in read):
        console.print(
            "warning: captions stay as they are, and adapters and generated PNGs hold them: do they name anybody?"
        )
    others = [replace(one, pair=anonymous(one.pair, key), sha256=hashed(key, "files", one.sha256)) for one in read]
    return sorted(others, key=lambda one: one.pair.id)


def _check_rejected_names_nobody(out: Path, pairs: Sequence[RawPair]) -> None:
    """Its comments stay as they are: they must not hold names of before."""
    names = {name for pair in pairs for name in (pair.id, pair.eye, pair.patient) if name}
    read = read_rejected(out)
    for number, line in read.comments.items():
        if found := sorted(names & {line.strip("# "), *_WORD.findall(line)}):
            raise UserError(f"{read.path}, line {number}: a comment names {found[0]!r}; remove the line")


# --- Work, in parallel


# --- Results


def _say_and_split(
    pairs: Sequence[RawPair], outcomes: Sequence[AlignmentResult], config: PrepareConfig
) -> dict[str, Split]:
    """Print the table; the side of every pair that was kept, by id. Raises UserError if they are too few."""
    refused = {outcome.id for outcome in outcomes if outcome.refused}
    kept = [pair for pair in pairs if pair.id not in refused]
    if not kept:
        print_table(pairs, outcomes, {}, config.size)
        raise UserError(
            f"{config.raw}: all {len(pairs)} pairs were refused, for the reasons in the table above "
            f"({outcomes[0].id}: {outcomes[0].refused}); correct views, points or limits and prepare again"
        )
    try:
        sides = split_pairs(kept, config.val_fraction, config.test_fraction, config.seed)
    except UserError as error:
        print_table(pairs, outcomes, {}, config.size)
        raise UserError(f"{config.raw}: {len(refused)} of {len(pairs)} pairs were refused, and {error}") from None
    print_table(pairs, outcomes, sides, config.size)
    return sides


def _move_into_place(out: Path, outcomes: Sequence[AlignmentResult]) -> None:
    """New views replace old ones, and whatever else lies beside them goes; without a manifest meanwhile."""
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    kept = {f"{outcome.id}.png" for outcome in outcomes if not outcome.refused}
    write_state(out, outcomes)
    for view in VIEWS:
        (out / view).mkdir(parents=True, exist_ok=True)
        for outcome in outcomes:
            staged = out / STAGING / view_file(view, outcome.id)
            if staged.is_file():
                staged.replace(out / view_file(view, outcome.id))
        for path in (out / view).iterdir():
            if path.name not in kept and not path.is_dir():
                path.unlink()
        fsync(out / view)
    shutil.rmtree(out / STAGING, ignore_errors=True)


def _reject_deleted(out: Path, earlier: Sequence[AlignmentResult]) -> None:
    """List the pairs whose files were all deleted by hand as rejected, before they are aligned again.

    If no pair has a file left, the folder was lost and no pair was thrown out.
    """
    if not is_prepared(out):  # a call that was killed while it moved files
        return
    kept = [outcome.id for outcome in earlier if not outcome.refused]
    gone = [id for id in kept if not has_files(out, (view_file(view, id) for view in VIEWS))]
    if len(gone) < len(kept):
        add_rejected(out, gone, "their files were deleted by hand")


# --- Hashes


def prepared_folder(data: Path, results: Path, view_size: int) -> Path:
    """The prepared (or generated) folder that `data` is, or is prepared into: once, under RESULTS/prepared."""
    if is_prepared(data):
        return data
    config = PrepareConfig(raw=data, out=Path(), size=max(512, view_size))
    config = replace(config, out=results / "prepared" / fingerprint(config)[:16])
    console.print(f"{data} is raw: its prepared pairs are in {config.out}")
    return config.out if is_prepared(config.out) else prepare_pairs(config)
