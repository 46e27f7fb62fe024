"""`retipair export matches PAIRS OUT`: write image pairs with a known transform, to train registration networks.

Worker processes write one folder per pair, OUT/pairs/ID, each atomically. A file in each folder records a hash of all
that the folder depends on, so that the next run writes only missing and changed folders. When all folders are complete,
their samples are listed in OUT/matches.jsonl, and the forms that --to names (the file formats of trainers) are written.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from msgspec import structs

from retipair.config import ExportMatchesConfig
from retipair.data.dataset import PairRecord, read_dataset
from retipair.data.manifest import MANIFEST_NAME
from retipair.data.review import check_reviewed
from retipair.matching.checks import LIMITS, check_variation
from retipair.matching.export_pair import PAIRS_NAME, PairExporter
from retipair.matching.geometry import choose_ranges
from retipair.matching.reader_formats import FORMS
from retipair.matching.reader_formats.megadepth import import_h5py
from retipair.matching.samples import SAMPLES_NAME, read_samples, write_samples
from retipair.matching.warped_pair import Variation
from retipair.matching.warps import TYPICAL
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import check_folder_place, is_leftover, is_leftover_dir, write_text
from retipair.runtime.console import console, progress, track
from retipair.runtime.errors import FileError, OccupiedError, SettingError, printable
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import parallel_map, process_map
from retipair.runtime.schema import canonical_json
from retipair.runtime.text_files import check_safe_name

STATE_NAME = ".export.json"
_STATE_SCHEMA = "retipair.export-state/1"
_MAX_WARPS = 10_000


def export(config: ExportMatchesConfig) -> Path:
    """Write the samples of all pairs that are missing in OUT or have changed, and return OUT.

    Raises UserError if settings or inputs are invalid, or if OUT contains files of other commands. Nothing has been
    written then, because all views are decoded once before the first file is written, and again when their pair is
    exported. The only exception: images that are too large for --to megadepth are found after the pairs are written.
    """
    # Check
    _check_settings(config)
    _check_out(config)
    records = _select(config)
    exporter = PairExporter(config.out, _variation(config), config.warps, config.appearance, config.size)

    with directory_lock(config.out):
        # Check the pairs that are missing
        missing = [record for record in records if not exporter.is_complete(record)]
        if replaced := sum(exporter.folder(record.id).is_dir() for record in missing):
            reason = "their files, the settings or the program changed"
            print(f"writing {replaced} pairs of an earlier export again: {reason}")
        for _ in track("Reading", parallel_map(exporter.check, missing, config.workers), len(missing)):
            pass

        # Write their folders
        write_text(config.out / STATE_NAME, canonical_json({"schema": _STATE_SCHEMA}))
        ids = {record.id for record in records}
        if missing or _others(exporter, ids):
            _delete_lists(config)
        with progress("Exporting pairs", len(records), len(records) - len(missing)) as advance:
            counts = []
            for count in process_map(exporter.write, missing, config.workers, _one_thread):
                counts.append(count)
                advance()
        for path in _others(exporter, ids):
            shutil.rmtree(path)

        # List the samples, and write the forms that trainers read
        write_samples(config.out, (sample for record in records for sample in exporter.samples(record.id)))
        forms = [FORMS[form](config.out, read_samples(config.out)) for form in config.to]
    if without := [record.id for record, count in zip(missing, counts, strict=True) if count == 0]:
        console.print(
            f"warning: no branchings of vessels found in {len(without)} pairs (first: {without[0]}); inspect them"
        )
    samples = len(records) * (1 + config.warps + config.appearance)
    print(f"{samples} samples of {len(records)} pairs in {config.out / SAMPLES_NAME}", *forms, sep="\n")
    return config.out


def _select(config: ExportMatchesConfig) -> list[PairRecord]:
    if config.reviewed:
        check_reviewed([config.pairs])
    records = read_dataset(config.pairs, lambda note: console.print(printable(note)), config.reviewed)
    records = _with_splits_of_sources(config, records)
    chosen = [record for record in records if config.split in ("all", record.split)]
    if not chosen:
        raise SettingError("split", config.split, f"{config.pairs} has no pair in this split; try --split all")
    _check_ids(config.pairs / MANIFEST_NAME, chosen)
    return chosen


def _with_splits_of_sources(config: ExportMatchesConfig, records: list[PairRecord]) -> list[PairRecord]:
    """Assign each pair that was generated from an eye of the folder --real to the split of this eye.

    The manifest of a generated folder does not record the splits of real eyes. Prints a warning if pairs were generated
    from eyes whose splits are not known.
    """
    splits = {record.group: record.split for record in read_dataset(config.real)} if config.real else {}
    sourced = [record for record in records if record.source_id is not None and record.mode is not None]
    if unknown := [record.id for record in sourced if record.group not in splits]:
        console.print(
            f"warning: {len(unknown)} pairs were generated from eyes whose splits are not known (first: {unknown[0]}), "
            "so pairs of your validation eyes may be in train; give the prepared folder of these eyes as --real"
        )
    known = {record.id for record in sourced} - set(unknown)
    return [structs.replace(record, split=splits[record.group]) if record.id in known else record for record in records]


def _one_thread() -> None:
    torch.set_num_threads(1)
    single_threaded()


def _others(exporter: PairExporter, ids: set[str]) -> list[Path]:
    """Return the folders of pairs that are no longer exported, and those that interrupted writes have left.

    Folders that this command has not written are left out.
    """
    folders = [path for path in (exporter.out / PAIRS_NAME).glob("*") if path.name not in ids and not path.is_symlink()]
    return [path for path in folders if path.is_dir() and (is_leftover_dir(path) or exporter.has_written(path))]


def _delete_lists(config: ExportMatchesConfig) -> None:
    """Delete `matches.jsonl` and all forms, because they name files that will be replaced or deleted."""
    for form in FORMS:
        if (config.out / form).is_dir():
            shutil.rmtree(config.out / form, ignore_errors=True)
            if form not in config.to:
                print(f"{config.out / form}: deleted, since the samples change; --to {form} writes it again")
    (config.out / SAMPLES_NAME).unlink(missing_ok=True)


# --- Checks


def _check_settings(config: ExportMatchesConfig) -> None:
    if not 1 <= config.warps <= _MAX_WARPS:
        raise SettingError("warps", config.warps, f"must be from 1 to {_MAX_WARPS:,}")
    check_variation(config.elastic, config.seed, config.size)
    if config.workers < 0:
        raise SettingError("workers", config.workers, "must be 0 (every core) or more")
    if "megadepth" in config.to:
        import_h5py()
    for name, (low, high) in LIMITS.items():
        given = getattr(config, name)
        if given and not low <= given[0] <= given[1] <= high:
            text = f"{given[0]:g} {given[1]:g}"
            raise SettingError(name, text, f"must be two numbers from {low:g} to {high:g}, the smaller one first")


def _check_ids(manifest: Path, records: Sequence[PairRecord]) -> None:
    """Raise UserError unless each id is a safe folder name that no other pair has, even if case is ignored."""
    folders: dict[str, str] = {}
    for record in records:
        check_safe_name(manifest, record.id)
        if other := folders.get(record.id.lower()):
            problem = f"the ids {other!r} and {record.id!r} are the same folder name if case is ignored"
            raise FileError(manifest, f"{problem}; change one of them")
        folders[record.id.lower()] = record.id


def _check_out(config: ExportMatchesConfig) -> None:
    """Raise UserError unless OUT is new, empty, or from an earlier export, and lies outside PAIRS."""
    out, pairs = config.out, config.pairs.resolve()
    if out.resolve() == pairs or pairs in out.resolve().parents:
        raise OccupiedError(out, "lies in the folder of the pairs; choose another OUT")
    check_folder_place(out / PAIRS_NAME)
    if out.is_dir() and not all(map(is_leftover, out.iterdir())) and not (out / STATE_NAME).is_file():
        problem = f"contains files, but no {STATE_NAME} of `retipair export matches`"
        raise OccupiedError(out, f"{problem}; choose a new or empty folder for OUT")


def _variation(config: ExportMatchesConfig) -> Variation:
    """Return the distribution of the variants.

    The ranges that the user gave by --rotation, --scale, --shift and --perspective replace those of --ranges.
    """
    given = {name: values for name in LIMITS if (values := getattr(config, name))}
    complete = len(given) == len(LIMITS)
    ranges = TYPICAL if complete else choose_ranges(config.ranges, config.real or config.pairs)
    return Variation(replace(ranges, **given), config.elastic, config.seed)
