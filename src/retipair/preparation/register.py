"""`retipair register CF FA OUT`: register the FA of one pair, or of all pairs of a folder, to the CF.

A pair is registered as by `prepare --register features`, or by the matches of a network, but the result stays in the
frame of the raw CF. The landmarks of a pair are not used to register it, so they can measure the error. All inputs are
read and checked before any result is written. Each pair has a folder of its own, in which registration.json is written
last, so that the next run with --folder registers only new, changed and incomplete pairs.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.table import Table

from retipair.config import PrepareConfig, RegisterConfig
from retipair.data.dicom import is_dicom
from retipair.data.pair import image_size
from retipair.data.raw_pair import RawPair, SkippedPair
from retipair.data.sources import scan_pairs
from retipair.preparation.alignment import check_alignment_settings, with_one_view_each
from retipair.preparation.modalities import with_modalities
from retipair.preparation.prepare import check_apart
from retipair.preparation.pseudonyms import pseudonyms_of
from retipair.preparation.reading import CheckedPair, check_pair, files_sha256, modalities_of, read_pairs
from retipair.preparation.registered import (
    CHECKERBOARD_NAME,
    RECORD_NAME,
    SCORES_NAME,
    WARPED_NAME,
    RegisteredPair,
    RegistrationRecord,
    RegistrationScores,
    input_sha256,
    read_registration,
    register_views,
    score,
    write_registration,
    write_scores,
)
from retipair.preparation.view_choice import frames_of
from retipair.registration.landmarks import Landmarks
from retipair.registration.matches import read_matches
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import check_folder_place, is_leftover, write_text
from retipair.runtime.console import console, show_table, track
from retipair.runtime.errors import FileError, MissingError, OccupiedError, SettingError, printable
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import process_map
from retipair.runtime.schema import canonical_json
from retipair.runtime.text_files import on_disk

LIST_NAME = "registrations.jsonl"
_MIN_MATCHES = 4  # a homography needs 4 points
_PAIR_FILES = {WARPED_NAME, CHECKERBOARD_NAME, RECORD_NAME, SCORES_NAME}
_LIST_FILES = {LIST_NAME, SCORES_NAME}
Item = tuple[CheckedPair, Landmarks | None]
"""A pair whose files were checked, and the matches of a network or None."""


def register(config: RegisterConfig) -> None:
    """Register a pair or a folder of pairs, write the results and print the errors.

    If settings or inputs are invalid, raises UserError before a result is written. If the pair, or every pair of the
    folder, is refused, writes the results and then raises UserError.
    """
    if config.folder:
        register_folder(config)
        return
    if len(config.paths) != 3:
        raise SettingError("folder", None, f"{_given(config)}; give CF FA OUT, or --folder RAW OUT for a folder")
    registered, out = register_pair(config), config.paths[2]
    if registered.refused:
        more = "" if config.matches else "; --matches also takes points placed by hand"
        raise FileError(config.paths[1], f"refused: {registered.refused} (see {out / CHECKERBOARD_NAME}{more})")
    print_result(registered, out)


def register_pair(config: RegisterConfig) -> RegisteredPair:
    """Register the pair in `config.paths` (CF and FA, or CF, FA and OUT), and return the registration.

    A refused registration is returned, too. The result is written only if OUT is given. Raises UserError if settings or
    inputs are invalid. Nothing is written then.
    """
    check_alignment_settings(config)
    config = with_modalities(config, config.paths[0], [])
    out = config.paths[2] if len(config.paths) > 2 else None
    checked = _check_single(config)
    matches = _read_matches(checked, config.matches, _MIN_MATCHES) if config.matches else None
    checked = with_one_view_each(checked, config)
    if out is None:
        return register_views(checked, matches, config)
    _check_out_single(out, config.paths[:2])
    with directory_lock(out):
        registered = register_views(checked, matches, config)
        write_registration(out, checked, registered, modalities_of(config))
        write_scores(out, score([registered]))
    return registered


def register_folder(config: RegisterConfig) -> list[RegistrationRecord]:
    """Register all pairs of the folder RAW in `config.paths` (RAW, OUT), write the results to OUT, and return them.

    If settings or inputs are invalid, raises UserError before a result is written. If all pairs are refused, writes the
    results and then raises UserError.
    """
    check_alignment_settings(config)
    if len(config.paths) != 2:
        raise SettingError("folder", None, f"{_given(config)}; give --folder RAW OUT")
    if config.evaluate:
        raise SettingError("evaluate", None, "is for one pair; --folder reads the point files beside the views")
    raw, out = config.paths
    scanned = scan_pairs(raw)
    config = with_modalities(config, raw, scanned[0])
    items = _find_items(raw, out, scanned, config)
    with directory_lock(out):
        records = _register_new(items, out, config)
        write_text(out / LIST_NAME, "".join(f"{canonical_json(asdict(record))}\n" for record in records))
        write_scores(out, score(records))
    _report(records, raw, out)
    return records


def _report(records: Sequence[RegistrationRecord], raw: Path, out: Path) -> None:
    """Print the results of a folder. Raises UserError if all pairs were refused."""
    _print_table(records)
    if refused := [record for record in records if record.refused]:
        print(f"{len(refused)} of {len(records)} pairs were refused, see the table for the reasons")
    if len(refused) == len(records):
        raise FileError(raw, f"all {len(records)} pairs were refused ({refused[0].id}: {refused[0].refused})")
    print(f"Check {out}/*/{CHECKERBOARD_NAME}: vessels must continue across tile borders")
    _print_scores(score(records), out)


def _given(config: RegisterConfig) -> str:
    return f"{len(config.paths)} paths were given"


# --- Inputs


def _check_single(config: RegisterConfig) -> CheckedPair:
    """Read and check the two views and the landmarks of a single pair."""
    cf, fa = config.paths[:2]
    for path in (cf, fa, *(config.evaluate or ())):
        if path.is_dir():
            raise FileError(path, "is a folder, not a file; to register all pairs of a folder, add --folder")
    if config.skip_bad:
        raise SettingError("skip_bad", None, "is for --folder; a single pair cannot be skipped")
    cf_points, fa_points = config.evaluate or (None, None)
    for points in filter(None, (cf_points, fa_points)):
        if not points.is_file():
            raise MissingError(points, "no such file; give the landmarks of CF and FA, one point 'x y' per line")
    name = re.sub(r"_0?1$", "", cf.stem)
    pair = RawPair(id=name, cf=cf, fa=fa, cf_points=cf_points, fa_points=fa_points, views_named=True)
    if is_dicom(cf) or is_dicom(fa):  # the name of a file may identify a patient
        pair = replace(pair, id=files_sha256(pair)[:16], dicom=True)
    checked = check_pair(pair, "features", modalities=modalities_of(config))
    if checked.colour == "kept":
        problem = f"has more colour than {cf.name}, which is given as the CF"
        raise FileError(fa, f"{problem}; exchange CF and FA, or save a tinted FA as a grey image")
    if checked.colour == "grey":
        console.print(f"{printable(str(cf))}: has no colour (red-free?) and is used as the CF, since it is given first")
    return checked


def _read_matches(checked: CheckedPair, path: Path, least: int = 0) -> Landmarks:
    """Read the matches of a pair. Raises UserError if they cannot be used, or are fewer than `least`."""
    if any(len(frames) > 1 for frames in frames_of(checked.pair)):
        problem = (
            "has several images or frames, and matches belong to one of them; name it in a table (column fa_frame)"
        )
        raise FileError(checked.pair.fa, problem)
    (cf_width, cf_height), (fa_width, fa_height) = image_size(checked.pair.cf), image_size(checked.pair.fa)
    matches = read_matches(path, (cf_height, cf_width), (fa_height, fa_width))
    if len(matches.cf) < least:
        problem = f"{len(matches.cf)} matches; a homography needs at least {least}"
        raise FileError(path, f"{problem}; give more, or register without --matches")
    return matches


def _find_items(
    raw: Path, out: Path, scanned: tuple[list[RawPair], list[SkippedPair]], config: RegisterConfig
) -> list[Item]:
    """Return the pairs in the folder or table RAW with their matches, and check that OUT can receive the results.

    scanned: the result of `scan_pairs(raw)`.
    """
    pairs, unusable = scanned
    check_apart(raw, out, pairs)
    names = pseudonyms_of(pairs, raw, None)
    # Sorted by hashes, so that the order of the records does not show that of the patients.
    pairs = sorted(names.pairs, key=lambda pair: pair.id) if names else pairs
    _check_out_folder(out, {pair.id for pair in pairs})
    reading = PrepareConfig(raw=raw, out=out, size=64, register="features", skip_bad=config.skip_bad)
    reading = replace(reading, modalities=config.modalities)
    checked, _ = read_pairs(pairs, [entry.reason for entry in unusable if not entry.empty], reading)
    if names:
        names.write({item.pair.id for item in checked})
    if config.matches is None:
        return [(item, None) for item in checked]
    if not config.matches.is_dir():
        raise MissingError(
            config.matches, "no such folder; with --folder, give a folder with a file ID.npz for each pair"
        )
    files = {item.pair.id: on_disk(config.matches / f"{item.pair.id}.npz") for item in checked}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise MissingError(missing[0], "no matches of this pair; if there are none, save two empty arrays, cf and fa")
    return [(item, _read_matches(item, files[item.pair.id])) for item in checked]


# --- Output folder


def _check_out_single(out: Path, views: Sequence[Path]) -> None:
    """Raise UserError unless OUT is new, is empty or holds only a registration of one pair, which is replaced.

    Also raises UserError if one of `views` lies in OUT.
    """
    check_folder_place(out)
    if out.is_dir() and (other := _other_file(out)):
        problem = f"contains {other.name}, which `retipair register` has not written"
        raise OccupiedError(out, f"{problem}; choose a new or empty folder for OUT")
    if within := next((view for view in views if out.resolve() in Path(os.path.realpath(view)).parents), None):
        raise OccupiedError(within, f"lies in OUT ({out}), where it would be replaced; choose another OUT")


def _check_out_folder(out: Path, ids: set[str]) -> None:
    """Raise UserError unless OUT is new, is empty or holds only registrations of pairs with these ids."""
    check_folder_place(out)
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if is_leftover(path) or (path.name in _LIST_FILES and not path.is_dir()):
            continue
        # A folder of a pair is empty after an interruption of its first write.
        if not path.is_dir() or _other_file(path) or not (path.name in ids or any(path.iterdir())):
            problem = f"contains {path.name}, which `retipair register` has not written"
            raise OccupiedError(out, f"{problem}; choose a new or empty folder for OUT")
        if path.name not in ids:
            raise OccupiedError(path, "belongs to no pair in RAW; remove it, or choose another OUT")


def _other_file(folder: Path) -> Path | None:
    """Return the first file in a folder that is not part of a registration, or None."""
    return next(
        (path for path in sorted(folder.iterdir()) if path.name not in _PAIR_FILES and not is_leftover(path)), None
    )


# --- Registration of a folder


def _register_new(items: Sequence[Item], out: Path, config: RegisterConfig) -> list[RegistrationRecord]:
    """Register the new, changed and incomplete pairs, and return the records of all pairs."""
    done: dict[str, RegistrationRecord] = {}
    for checked, matches in items:
        record = read_registration(out / checked.pair.id)
        if record and record.input_sha256 == input_sha256(checked, matches, config):
            done[record.id] = record
    redo = [item for item in items if item[0].pair.id not in done]
    if done:
        print(f"{len(done)} of {len(items)} pairs are registered already, with the same files and settings")
    results = process_map(partial(_register_one, config=config), redo, config.workers, single_threaded)
    for record in track("Registering", results, len(redo)):
        done[record.id] = record
    return [done[checked.pair.id] for checked, _ in items]


def _register_one(item: Item, config: RegisterConfig) -> RegistrationRecord:
    checked, matches = item
    checked = with_one_view_each(checked, config)
    registered = register_views(checked, matches, config)
    write_registration(config.paths[1] / checked.pair.id, checked, registered, modalities_of(config))
    return registered.record


# --- Messages


def print_result(record: RegistrationRecord, out: Path | None) -> None:
    """Print the quality of a registration, and the error at its landmarks.

    out: the folder to which the registration was written, or None.
    """
    residual = "" if record.residual_px is None else f", residual {record.residual_px:.2f} px at 512 (vessels)"
    found = f"{record.inliers} {'features' if record.matches is None else f'of {record.matches} matches'} agree"
    print(f"consistency {record.consistency_before:.3f} -> {record.consistency:.3f}{residual}, {found}")
    if record.chosen:
        print(f"registered: {record.chosen}")
    if out:
        print(f"Check {out / CHECKERBOARD_NAME}: vessels must continue across tile borders")
    if record.doubt:
        print(f"doubt: {printable(record.doubt)}")
    if record.landmarks:
        print(
            f"error at {record.landmarks} landmarks: mean {record.mean_error_px:.2f} px, "
            f"median {record.median_error_px:.2f} px in a CF 512 px wide"
        )
    _print_scores(score([record]), out)


def _print_scores(scores: RegistrationScores | None, out: Path | None) -> None:
    if scores is None or out is None:
        return
    mean = "-" if scores.mean_error_px is None else f"{scores.mean_error_px:.2f} px"
    values = "/".join(f"{area:.3f}" for area in scores.auc.values())
    print(
        f"{scores.pairs} pairs with landmarks, {scores.failed} failed: mean error {mean}, "
        f"AUC@{'/'.join(scores.auc)} px {values}; see {out / SCORES_NAME}"
    )


def _print_table(records: Sequence[RegistrationRecord]) -> None:
    errors = ("mean error, px at 512", "median error, px at 512")
    table = Table("id", "inliers", "residual, px at 512", "consistency", *errors, "result")
    for record in records:
        doubt = f"doubt: {record.doubt}" if record.doubt else "registered"
        table.add_row(
            record.id,
            str(record.inliers),
            _number(record.residual_px),
            f"{record.consistency_before:.3f} -> {record.consistency:.3f}",
            _number(record.mean_error_px),
            _number(record.median_error_px),
            f"refused: {record.refused}" if record.refused else doubt,
        )
    show_table(table)
    for record in records:
        if record.chosen:
            print(f"{printable(record.id)}: {record.chosen}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
