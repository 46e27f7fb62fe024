"""`retipair export matches PAIRS OUT`: write image pairs with a known transform, to train registration networks.

Worker processes write one folder per pair, OUT/pairs/ID, each atomically. A file in it records a hash of all that the
folder depends on, so that the next run writes only missing and changed folders. When all folders are complete, their
samples are listed in OUT/matches.jsonl, and the forms that trainers read are written.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from retipair.config import ExportConfig
from retipair.data.dataset import PairRecord, read_dataset
from retipair.matching.export_pair import PAIRS_NAME, PairExporter
from retipair.matching.geometry import choose_ranges
from retipair.matching.reader_formats import FORMS
from retipair.matching.samples import SAMPLES_NAME, read_samples, write_samples
from retipair.matching.warped_pair import Variation
from retipair.matching.warps import REAL
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import check_folder_place, is_leftover, write_text
from retipair.runtime.console import console, progress
from retipair.runtime.errors import OccupiedError, SettingError, printable
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import process_map
from retipair.runtime.schema import canonical_json

STATE_NAME = ".export.json"
_STATE_SCHEMA = "retipair.export-state/1"
_MAX_WARPS = 10_000
_MAX_ELASTIC = 20.0
_LIMITS = {"rotation": (0.0, 180.0), "scale": (0.2, 5.0), "shift": (0.0, 1.0), "perspective": (0.0, 1e-3)}


def export(config: ExportConfig) -> Path:
    """Write the samples of all pairs that OUT does not contain yet, and return OUT.

    Raises UserError if settings or inputs are invalid, or if OUT contains other files. Nothing is written then.
    """
    # Check
    _check_settings(config)
    _check_out(config)
    records = _select(config)
    exporter = PairExporter(config.out, _variation(config), config.warps, config.appearance, config.size)

    with directory_lock(config.out):
        # Write the folders of the pairs
        write_text(config.out / STATE_NAME, canonical_json({"schema": _STATE_SCHEMA}))
        missing = [record for record in records if not exporter.is_complete(record)]
        if missing:
            (config.out / SAMPLES_NAME).unlink(missing_ok=True)
        with progress("Exporting pairs", len(records), len(records) - len(missing)) as advance:
            for _ in process_map(exporter.write, missing, config.workers, _one_thread):
                advance()
        _remove_others(exporter, {record.id for record in records})

        # List the samples, and write the forms that trainers read
        write_samples(config.out, (sample for record in records for sample in exporter.samples(record.id)))
        forms = [FORMS[form](config.out, read_samples(config.out)) for form in config.to]
    samples = len(records) * (1 + config.warps + config.appearance)
    print(f"{samples} samples of {len(records)} pairs in {config.out / SAMPLES_NAME}", *forms, sep="\n")
    return config.out


def _select(config: ExportConfig) -> list[PairRecord]:
    records = read_dataset(config.pairs, lambda note: console.print(printable(note)))
    chosen = [record for record in records if config.split in ("all", record.split)]
    if not chosen:
        raise SettingError("split", config.split, f"{config.pairs} has no pair in it; try --split all")
    return chosen


def _one_thread() -> None:
    torch.set_num_threads(1)
    single_threaded()


def _remove_others(exporter: PairExporter, ids: set[str]) -> None:
    """Delete the folders of pairs that are not exported any more."""
    for path in (exporter.out / PAIRS_NAME).iterdir():
        if path.name not in ids and path.is_dir():
            shutil.rmtree(path)


# --- Checks


def _check_settings(config: ExportConfig) -> None:
    if not 1 <= config.warps <= _MAX_WARPS:
        raise SettingError("warps", config.warps, f"must be from 1 to {_MAX_WARPS:,}")
    if not 0 <= config.elastic <= _MAX_ELASTIC:
        raise SettingError("elastic", f"{config.elastic:g}", f"must be from 0 to {_MAX_ELASTIC:g} px")
    if config.size is not None and (config.size % 32 or not 64 <= config.size <= 4096):
        raise SettingError("size", config.size, "must be a multiple of 32 px, from 64 to 4096")
    if not 0 <= config.seed < 2**32:
        raise SettingError("seed", config.seed, "must be at least 0 and below 2^32")
    if config.workers < 0:
        raise SettingError("workers", config.workers, "must be 0 (every core) or more")
    if config.fit and config.ranges not in ("auto", "fitted"):
        raise SettingError("fit", config.fit, f"--ranges {config.ranges} is not fitted; leave one of the two out")
    for name, (low, high) in _LIMITS.items():
        given = getattr(config, name)
        if given and not low <= given[0] <= given[1] <= high:
            text = f"{given[0]:g} {given[1]:g}"
            raise SettingError(name, text, f"must be two numbers from {low:g} to {high:g}, the smaller one first")


def _check_out(config: ExportConfig) -> None:
    """Raise UserError unless OUT is new, empty, or from an earlier export, and lies outside PAIRS."""
    out, pairs = config.out, config.pairs.resolve()
    if out.resolve() == pairs or pairs in out.resolve().parents:
        raise OccupiedError(out, "lies in the folder of the pairs; choose another OUT")
    check_folder_place(out / PAIRS_NAME)
    if out.is_dir() and not all(map(is_leftover, out.iterdir())) and not (out / STATE_NAME).is_file():
        raise OccupiedError(out, "holds other files; choose a new or empty folder for OUT")


def _variation(config: ExportConfig) -> Variation:
    """Return the distribution of the variants. The four ranges that the user gave replace those of --ranges."""
    given = {name: values for name in _LIMITS if (values := getattr(config, name))}
    ranges = REAL if len(given) == len(_LIMITS) else choose_ranges(config.ranges, config.pairs, config.fit)
    return Variation(replace(ranges, **given), config.elastic, config.seed)
