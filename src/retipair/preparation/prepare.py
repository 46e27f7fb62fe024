"""`retipair prepare RAW OUT`: align raw pairs; write the views, a manifest and a contact sheet.

All inputs are read and checked before any file is written. Worker processes then align the pairs and write the views
into the staging folder OUT/.partial. When all pairs are aligned, the views are moved from there to OUT, and the
manifest is written last. The state file OUT/.prepare.json contains, for each pair, a hash of its files and of the
settings, so that the next run aligns only new and changed pairs.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from retipair.config import PrepareConfig
from retipair.data.anonymize import read_key
from retipair.data.duplicates import group_by_views
from retipair.data.folders import has_files
from retipair.data.manifest import MANIFEST_NAME, Split, has_manifest
from retipair.data.parquet import is_parquet_dataset
from retipair.data.raw_pair import RawPair
from retipair.data.rejected import add_rejected, read_rejected
from retipair.data.sources import eyes_table, find_pairs, scan_pairs
from retipair.data.splits import split_pairs
from retipair.preparation.alignment import (
    ALIGNMENT_VERSION,
    align_pairs,
    alignment_key,
    check_alignment_settings,
    limits_of,
)
from retipair.preparation.from_dataset import dataset_sha256, extracted_views, import_pairs, is_export
from retipair.preparation.modalities import with_measured_vessels, with_modalities
from retipair.preparation.pseudonyms import Pseudonyms, anonymise, check_rejected_comments, pseudonyms_of
from retipair.preparation.reading import CheckedPair, files_sha256, read_pairs
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
from retipair.runtime.errors import FileError, OccupiedError, SettingError, UserError, printable
from retipair.runtime.lock import directory_lock
from retipair.runtime.schema import json_sha256
from retipair.runtime.text_files import nfc

SKIPPED_NAME = "skipped.txt"
PREPARED_NAME = "prepared"
"""The name of the folder in RESULTS (`evaluate`: in OUT) into which commands prepare raw pairs and data sets."""
_MAX_SIZE = 4096  # px; fundus cameras do not resolve more


def prepare(config: PrepareConfig) -> Path:
    """Align every raw pair, write the prepared folder, print the next command and return the folder.

    Raises the same errors as `prepare_pairs`.
    """
    out = prepare_pairs(config)
    print(f"Next: retipair train -n first --data {out}")
    return out


def prepare_pairs(config: PrepareConfig) -> Path:
    """Align every raw pair, write the prepared folder and return it.

    Raises UserError if settings or inputs are invalid, or if too few pairs can be aligned. OUT then gets no new views.
    """
    if not is_parquet_dataset(config.raw):
        return _prepare_raw(config)
    _check_settings(config)
    check_apart(config.raw, config.out, [])
    if is_export(config.raw):
        return import_pairs(config)
    with extracted_views(config.raw, config.out) as extracted:
        return _prepare_raw(replace(config, raw=extracted.table), extracted.with_known_names)


def _prepare_raw(config: PrepareConfig, with_known_names: Callable[[str], str] = str) -> Path:
    """Align the pairs of a folder of raw views, or of a table.

    with_known_names: replaces the names of temporary files in the reasons why pairs are skipped.
    """
    # Check all inputs
    _check_settings(config)
    pairs, unusable = scan_pairs(config.raw)
    config = with_modalities(config, config.raw, pairs)
    _check_out(config.raw, config.out, pairs)
    hashed_names = pseudonyms_of(pairs, config.raw, config.anonymise)
    if hashed_names:  # DICOM: from here on, nothing that is printed or written names a patient
        config, pairs = replace(config, anonymise=hashed_names.key_file), hashed_names.pairs
    reasons = [entry.reason for entry in unusable if not entry.empty]
    checked, skipped = read_pairs(pairs, reasons, config, with_known_names)
    if empty := [entry for entry in unusable if entry.empty]:
        console.print(f"skipped folders without images: {printable(', '.join(entry.id for entry in empty))}")
        skipped += [entry.reason for entry in empty] if config.skip_bad else []
    checked = _merge_eyes_by_view(checked)
    pairs = [item.pair for item in checked]
    _split(pairs, config, f"{len(skipped)} pairs or images were skipped" if skipped else "")
    names = hashed_names
    if config.anonymise:
        names = names or Pseudonyms(config.anonymise, read_key(config.anonymise), pairs)
        check_rejected_comments(config.out, names.originals)
        checked = anonymise(checked, names.key, already=hashed_names is not None)
    ids = {nfc(item.pair.id) for item in checked}
    read_rejected(config.out).check(ids)
    config = with_measured_vessels(config, checked)
    if names:
        names.write(ids)
    with directory_lock(config.out):
        try:
            # File names may identify patients, so the list `skipped` is not written with --anonymise.
            _align_and_write(checked, [] if config.anonymise else skipped, config)
        except UserError:  # after a kill or Ctrl-C, the staging folder is kept for the next run
            shutil.rmtree(config.out / STAGING, ignore_errors=True)
            raise
    return config.out


def _align_and_write(checked: Sequence[CheckedPair], skipped: Sequence[str], config: PrepareConfig) -> None:
    # Align new and changed pairs
    pairs = [item.pair for item in checked]
    previous, staged = load_previous_results(config.out), load_staged_results(config.out)
    _reject_deleted(config.out, [previous[pair.id] for pair in pairs if pair.id in previous])
    known = [(staged, config.out / STAGING), (previous, config.out)]
    reusable = (reusable_result(item.pair.id, alignment_key(item, config), known) for item in checked)
    current = {result.id: result for result in reusable if result}
    redo = [item for item in checked if item.pair.id not in current]
    if replaced := sum(item.pair.id in previous for item in redo):
        print(f"re-aligning {replaced} pairs of an earlier run: their files, the settings or the program changed")
    current |= {result.id: result for result in align_pairs(redo, config)}
    results = [current[pair.id] for pair in pairs]

    # Print the results and write the prepared folder
    try:
        splits = _split_kept(pairs, results, config)
    except UserError:
        print_table(pairs, results, {}, config.size)  # the table shows why pairs were refused
        raise
    print_table(pairs, results, splits, config.size)
    _move_into_place(config.out, results)
    _write_skipped(config.out, skipped)
    write_summary(config, pairs, results, splits)
    if skipped:
        print(f"skipped {len(skipped)} other pairs or images; {config.out / SKIPPED_NAME} lists the reasons")


def fingerprint(config: PrepareConfig) -> str:
    """Return a hash of all that the prepared pairs depend on: the raw files, the table that lists them, the settings.

    The hash does not depend on paths or on the number of workers. Raises the same errors as `find_pairs`.
    """
    sources: object
    if is_parquet_dataset(config.raw):
        sources = dataset_sha256(config.raw)
    else:
        sources = [
            [pair.id, pair.eye, pair.patient, pair.split, pair.caption, pair.views_named, files_sha256(pair)]
            + ([pair.modalities] if pair.modalities else [])
            for pair in find_pairs(config.raw)
        ]
    settings = [config.size, config.register, asdict(limits_of(config))]
    split = [config.val_fraction, config.test_fraction, config.seed]
    return json_sha256([ALIGNMENT_VERSION, settings, split, sources])


# --- Checks


def _check_settings(config: PrepareConfig) -> None:
    if config.size % 64 or not 64 <= config.size <= _MAX_SIZE:
        raise SettingError("size", config.size, f"must be a multiple of 64 px, from 64 to {_MAX_SIZE}")
    check_alignment_settings(config)
    if config.anonymise and {config.out.resolve(), config.raw.resolve()} & set(config.anonymise.resolve().parents):
        raise SettingError("anonymise", config.anonymise, "lies in RAW or OUT; keep the key outside both")
    if config.max_megapixels < 1:
        raise SettingError("max_megapixels", config.max_megapixels, "must be 1 or more")
    val, test = config.val_fraction, config.test_fraction
    if not (val > 0 and test >= 0 and val + test < 1):
        raise UserError(
            f"--val_fraction {val:g} --test_fraction {test:g}: training (the rest) and validation need a fraction "
            "above 0, and testing a fraction of 0 or more"
        )


def _check_out(raw: Path, out: Path, pairs: Sequence[RawPair]) -> None:
    """Raise UserError if `prepare` must not write to OUT.

    That is so if OUT contains files but no state file of `prepare`, if OUT lies in the folder of the raw views, or if a
    raw view lies in OUT.
    """
    check_apart(raw, out, pairs)
    for name in (STAGING, *VIEWS):
        check_folder_place(out / name)
    if out.is_dir() and not all(map(is_leftover, out.iterdir())) and not (out / STATE_NAME).is_file():
        problem = f"contains files, but no {STATE_NAME} of `retipair prepare`"
        raise OccupiedError(out, f"{problem}; choose a new or empty folder for OUT")


def check_apart(raw: Path, out: Path, pairs: Sequence[RawPair]) -> None:
    """Raise UserError if OUT lies in the folder of the raw views, or if a raw view lies in OUT."""
    folder = raw.resolve() if raw.is_dir() else None
    if folder and (out.resolve() == folder or folder in out.resolve().parents):
        raise OccupiedError(out, "lies in the folder of the raw views; choose another OUT")
    files = (file for pair in pairs for file in pair.files)
    # Path.resolve would raise an error for a symbolic link that leads to itself.
    if within := next((file for file in files if out.resolve() in Path(os.path.realpath(file)).parents), None):
        raise OccupiedError(within, f"lies in OUT ({out}), where it would be replaced; choose another OUT")


def _write_skipped(out: Path, skipped: Sequence[str]) -> None:
    if skipped:
        write_text(out / SKIPPED_NAME, "".join(f"{printable(text)}\n" for text in skipped))
    else:
        (out / SKIPPED_NAME).unlink(missing_ok=True)


def _merge_eyes_by_view(checked: Sequence[CheckedPair]) -> list[CheckedPair]:
    """Assign pairs that share a view (equal pixels) to one eye, so that they get one split, and print their ids."""
    pairs = [item.pair for item in checked]
    grouped, groups = group_by_views(pairs, [item.views for item in checked])
    if groups:
        listed = "; ".join(" + ".join(group) for group in groups)
        print(f"pairs that share a view (equal pixels) count as pairs of one eye and get one split: {listed}")
    return [replace(item, pair=pair) for item, pair in zip(checked, grouped, strict=True)]


def _split_kept(
    pairs: Sequence[RawPair], results: Sequence[AlignmentResult], config: PrepareConfig
) -> dict[str, Split]:
    """Return the split of each pair that was not refused, by id. Raises UserError if too few pairs are left."""
    kept = [pair for pair, result in zip(pairs, results, strict=True) if not result.refused]
    if not kept:
        hint = "" if config.modalities else " (with --modalities, if the views are not CF and FA)"
        raise FileError(
            config.raw,
            f"all {len(pairs)} pairs were refused, see the table above for the reasons "
            f"({results[0].id}: {results[0].refused}); correct views, points or limits and prepare again{hint}",
        )
    refused = len(pairs) - len(kept)
    return _split(kept, config, f"{refused} of {len(pairs)} pairs were refused" if refused else "")


def _split(pairs: Sequence[RawPair], config: PrepareConfig, missing: str) -> dict[str, Split]:
    """Return the split (train, val or test) of each pair, by id. All pairs of an eye get the same split.

    Raises FileError, which names the table of eyes or pairs if there is one, if there are too few eyes or the splits in
    the table cannot be used. `missing` is a text for its message that says how many pairs are left out, or "".

    `prepare` calls this function twice. The first call, before alignment, finds errors early, while the eyes still have
    the names that the user gave them. The second call, for the pairs that were not refused, computes the split that is
    written.
    """
    try:
        return split_pairs(pairs, config.val_fraction, config.test_fraction, config.seed)
    except UserError as error:
        table = eyes_table(config.raw) if config.raw.is_dir() else None
        raise FileError(table or config.raw, f"{missing}, and {error}" if missing else str(error)) from None


def _move_into_place(out: Path, results: Sequence[AlignmentResult]) -> None:
    """Move the staged views to OUT/cf, OUT/fa and OUT/mask, and delete all files of other pairs there.

    The manifest is deleted first, so that it never lists missing views.
    """
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    kept = {f"{result.id}.png" for result in results if not result.refused}
    write_state(out, results)
    for view in VIEWS:
        (out / view).mkdir(parents=True, exist_ok=True)
        for result in results:
            staged = out / STAGING / view_file(view, result.id)
            if staged.is_file():
                staged.replace(out / view_file(view, result.id))
        for path in (out / view).iterdir():
            if path.name not in kept and not path.is_dir():
                path.unlink()
        fsync(out / view)
    shutil.rmtree(out / STAGING, ignore_errors=True)


def _reject_deleted(out: Path, previous: Sequence[AlignmentResult]) -> None:
    """Add each pair of which the user deleted all files to the list of rejected pairs, so that it is not used again.

    If the files of all pairs are missing, no pair is added, because the user hardly meant to reject every pair.

    previous: the results of the last run.
    """
    if not has_manifest(out):  # an earlier run was killed while it moved files: missing files mean nothing
        return
    kept = [result.id for result in previous if not result.refused]
    deleted = [id for id in kept if not has_files(out, (view_file(view, id) for view in VIEWS))]
    if len(deleted) < len(kept):
        add_rejected(out, deleted, "their files were deleted by hand")


def prepared_folder(data: Path, results: Path, view_size: int) -> Path:
    """Return `data` if it is prepared or generated. Else prepare its raw pairs, once, and return the prepared folder.

    data: a prepared, generated or raw folder.
    results: the folder RESULTS; the prepared folder is a subfolder of RESULTS/prepared.
    view_size: the side of the views in training, px. The views are prepared at this size, or at 512 px if that is more.
    """
    if has_manifest(data):
        return data
    config = PrepareConfig(raw=data, out=Path(), size=max(512, view_size))
    config = replace(config, out=results / PREPARED_NAME / fingerprint(config)[:16])
    console.print(f"{data} is not prepared: its pairs are prepared once, in {config.out}")
    return config.out if has_manifest(config.out) else prepare_pairs(config)
