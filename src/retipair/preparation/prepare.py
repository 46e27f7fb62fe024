"""`retipair prepare RAW OUT`: raw views, with or without key points -> aligned pairs, their manifest, a contact sheet.

Every input is read and checked before anything is written. Workers then write into OUT/.partial; only when all is done
do the views move to their places, the manifest last. What each view was made from is kept in OUT/.prepare.json, so
that the next run redoes only what changed.
"""

import math
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from retipair.config import PrepareConfig, Register
from retipair.data.anonymize import anonymous, hashed, read_key, write_names
from retipair.data.contact_sheet import MOST_PAIRS, SHEET_NAME, contact_sheet, titled
from retipair.data.dataset import has_files, read_folder
from retipair.data.duplicates import Views, find_duplicates, group_by_views, pixels_sha256
from retipair.data.manifest import MANIFEST_NAME, SPLITS, PreparedPair, Split, write_manifest
from retipair.data.pair import Pair, load_image, px_at_512, save_image, synthetic_mark_of
from retipair.data.rejected import REJECTED_NAME, add_rejected, read_rejected
from retipair.data.sources import RawPair, find_pairs, find_usable
from retipair.data.splits import eye_names, split_pairs
from retipair.preparation.state import (
    STAGING,
    STATE_NAME,
    VIEWS,
    Outcome,
    doubtful,
    earlier_outcomes,
    staged_outcomes,
    still_valid,
    view_file,
    write_state,
)
from retipair.registration.align import How, Limits, align
from retipair.registration.landmarks import Landmarks, read_landmarks
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import check_folder_place, is_leftover, sha256_of, sync, write_json, write_text
from retipair.runtime.console import console, watched
from retipair.runtime.errors import UserError, printable
from retipair.runtime.lock import owned
from retipair.runtime.parallel import in_order
from retipair.runtime.schema import json_sha256
from retipair.runtime.text_files import nfc
from retipair.runtime.threads import available_cores

SKIPPED_NAME = "skipped.txt"
_SMALLEST = 32  # px
_RECIPE = 5  # raise it whenever the same raw views would be aligned otherwise
_GREY = 3.0  # mean chroma, 0 to 255, below which a view has no colour
_LARGEST = 4096  # px: above any camera's
_WORD = re.compile(r"\w(?:[\w.+-]*\w)?")
_CLEARLY = 1.5  # times the chroma: an FA may be tinted, a CF pale


@dataclass(frozen=True)
class Seen:
    """A raw pair after its files were read whole: views the right way round, a hash of all its files, and one of the
    pixels of each view.

    colour: what the views' colours say against their names: "swapped", "kept" though the FA has more, "grey" CF.
    px: the longer side of the smaller view.
    """

    pair: RawPair
    colour: Literal["as named", "swapped", "kept", "grey"]
    sha256: str
    views: Views
    px: int


@dataclass(frozen=True)
class Task:
    """What a worker needs to align one pair; `key` names everything the result depends on."""

    pair: RawPair
    key: str
    source_sha256: str
    how: How
    size: int
    limits: Limits
    megapixels: int
    anonymous: bool
    staging: Path


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
    pairs, unusable = find_usable(config.raw)
    _check_out(config.raw, config.out, pairs)
    read, skipped = _read_all(pairs, [one.why for one in unusable if not one.empty], config)
    if empty := [one for one in unusable if one.empty]:
        console.print(f"passed over, no images in: {printable(', '.join(one.id for one in empty))}")
        skipped += [one.why for one in empty] if config.skip_bad else []
    read = _same_view_same_eye(read)
    _check_split([one.pair for one in read], skipped, config)
    if config.anonymise:
        _check_rejected_names_nobody(config.out, [one.pair for one in read])
        read = _anonymous(read, config.anonymise)
    read_rejected(config.out).check({nfc(one.pair.id) for one in read})
    tasks = [_task(seen, config) for seen in read]
    with owned(config.out):
        try:
            _prepare_tasks(tasks, [] if config.anonymise else skipped, config)  # which names files
        except UserError:  # killed or told to stop, what is aligned stays for the next run
            shutil.rmtree(config.out / STAGING, ignore_errors=True)
            raise
    return config.out


def _prepare_tasks(tasks: Sequence[Task], skipped: Sequence[str], config: PrepareConfig) -> None:
    # Align what is new or changed
    earlier, staged = earlier_outcomes(config.out), staged_outcomes(config.out)
    _reject_deleted(config.out, [earlier[task.pair.id] for task in tasks if task.pair.id in earlier])
    known = [(staged, config.out / STAGING), (earlier, config.out)]
    current = {task.pair.id: one for task in tasks if (one := still_valid(task.pair.id, task.key, known))}
    redo = [task for task in tasks if task.pair.id not in current]
    if replaced := sum(task.pair.id in earlier for task in redo):
        print(f"{replaced} pairs of an earlier call are aligned anew, because their files or the settings changed")
    current |= {outcome.id: outcome for outcome in _align_all(redo, config.workers)}
    outcomes = [current[task.pair.id] for task in tasks]

    # Say what became of them, and keep what can be used
    sides = _say_and_split([task.pair for task in tasks], outcomes, config)
    _move_into_place(config.out, outcomes)
    _list_skipped(config.out, skipped)
    _describe(config, [task.pair for task in tasks], outcomes, sides)
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
        [pair.id, pair.eye, pair.patient, pair.split, pair.caption, pair.views_named, _sha256_of(pair)]
        for pair in find_pairs(config.raw)
    ]
    settings = [config.size, config.register, asdict(_limits(config))]
    split = [config.val_fraction, config.test_fraction, config.seed]
    return json_sha256([_RECIPE, settings, split, known])


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


def _read_all(pairs: Sequence[RawPair], unusable: Sequence[str], config: PrepareConfig) -> tuple[list[Seen], list[str]]:
    """Read every file whole, so that what is broken is known before anything is written: (what can be used, why others
    cannot, after those that were no pairs). Raises UserError for the first, the others listed, unless they are to be
    left out.
    """
    read = partial(_read_or_why, config=config)
    found = list(watched("Reading", in_order(read, pairs, config.workers), len(pairs)))
    readable = [one for one in found if isinstance(one, Seen)]
    copies = find_duplicates([one.pair for one in readable], [one.views for one in readable])
    seen = [one for one in readable if one.pair.id not in copies]
    bad = [*unusable, *(one for one in found if isinstance(one, str)), *copies.values()]
    if bad and not config.skip_bad:
        for text in bad[1:]:
            console.print(printable(text))
        others = f"{len(bad) - 1} more pairs or images cannot be used, see above; --skip_bad leaves them out"
        more = f" ({others})" if bad[1:] else ""
        raise UserError(f"{bad[0]}{more}")
    for text in bad:
        console.print(f"left out: {printable(text)}")
    if not seen:
        raise UserError(f"{config.raw}: no pair can be used")
    _say_colours(seen)
    _say_enlarged(seen, config.size)
    return seen, bad


def _say_colours(read: Sequence[Seen]) -> None:
    """Print one line for each swapped pair, and one for all whose names are kept although their colours contradict."""
    for one in read:
        if one.colour == "swapped":
            print(f"{one.pair.id}: {one.pair.cf.name} is the view in colour, so it is taken as the CF (swapped)")
    if grey := [one.pair.id for one in read if one.colour == "grey"]:
        print(
            f"{len(grey)} CF without colour (red-free?), {grey[0]} first: taken as CF because the source names them so"
        )
    if kept := [one.pair.id for one in read if one.colour == "kept"]:
        text = f"warning: {len(kept)} FA have more colour than their CF, {kept[0]} first; kept as the source names them"
        console.print(f"{text}: correct the source if the views are swapped")


def _say_enlarged(read: Sequence[Seen], size: int) -> None:
    if small := [one for one in read if one.px < size]:
        least = min(one.px for one in small)
        console.print(
            f"warning: {len(small)} pairs have views smaller than {size} px ({least} px at least, {small[0].pair.id} "
            "first) and are enlarged: that adds no detail"
        )


def _read_or_why(pair: RawPair, config: PrepareConfig) -> Seen | str:
    try:
        return _read(pair, config.register, config.max_megapixels)
    except UserError as error:
        return str(error)


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


def _same_view_same_eye(read: Sequence[Seen]) -> list[Seen]:
    """Give pairs that share a view one eye, and print which: otherwise it could end on two sides of the split."""
    pairs = [one.pair for one in read]
    grouped, groups = group_by_views(pairs, [one.views for one in read])
    if groups:
        listed = "; ".join(" + ".join(group) for group in groups)
        print(f"pairs that share a view (equal pixels) are of one eye and stay on one side of the split: {listed}")
    return [replace(one, pair=pair) for one, pair in zip(read, grouped, strict=True)]


def _anonymous(read: Sequence[Seen], path: Path) -> list[Seen]:
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


def _read(pair: RawPair, register: Register, megapixels: int) -> Seen:
    cf, fa = (load_image(path, "RGB", megapixels) for path in (pair.cf, pair.fa))
    for path, view in ((pair.cf, cf), (pair.fa, fa)):
        if min(view.shape[:2]) < _SMALLEST:
            height, width = view.shape[:2]
            raise UserError(f"{path}: {width} x {height} px is no view of an eye; at least {_SMALLEST} px each way")
    colour = _colour(pair, _chroma(cf), _chroma(fa))
    if colour == "swapped":
        pair, cf, fa = pair.swapped(), fa, cf
    if register == "none" and cf.shape != fa.shape:
        raise UserError(f"{pair.fa}: its size is not that of {pair.cf.name}, so they are not aligned; register them")
    if register == "points" and pair.cf_points is None:
        raise UserError(f"{pair.cf}: no points for this pair; add them or use --register auto")
    views = pixels_sha256(cf), pixels_sha256(fa)
    if views[0] == views[1]:
        raise UserError(f"{pair.fa}: the same image as {pair.cf.name}; a pair is a CF and an FA")
    _landmarks(pair, cf.shape, fa.shape)
    return Seen(pair, colour, _sha256_of(pair), views, min(max(view.shape[:2]) for view in (cf, fa)))


def _colour(pair: RawPair, cf: float, fa: float) -> Literal["as named", "swapped", "kept", "grey"]:
    """Judge the views' names by their chroma, [0, 255]. A source that names them explicitly is believed."""
    swapped = fa > _CLEARLY * cf
    if pair.views_named:
        if swapped and fa >= _GREY:
            return "kept"
        return "grey" if cf < _GREY else "as named"
    if (fa if swapped else cf) < _GREY:
        raise UserError(
            f"{pair.cf}: neither this nor {pair.fa.name} is in colour, so which is the CF cannot be told; "
            "name them in a table (columns cf and fa), or put them into folders cf/ and fa/"
        )
    return "swapped" if swapped else "as named"


def _landmarks(pair: RawPair, cf_shape: tuple[int, ...], fa_shape: tuple[int, ...]) -> Landmarks | None:
    if pair.cf_points is None or pair.fa_points is None:
        return None
    return read_landmarks(pair.cf_points, pair.fa_points, cf_shape, fa_shape)


def _chroma(image: np.ndarray) -> float:
    """Mean over the pixels that are not black of max - min over RGB, (H, W, 3) uint8 -> [0, 255]."""
    pixels = image[::4, ::4].reshape(-1, 3).astype(np.int16)
    lit = pixels[pixels.max(axis=1) > 16]
    return float(np.ptp(lit, axis=1).mean()) if len(lit) else 0.0


# --- Work, in parallel


def _task(seen: Seen, config: PrepareConfig) -> Task:
    how: How = "points" if seen.pair.cf_points else "features"
    if config.register != "auto":
        how = config.register
    limits = _limits(config)
    key = json_sha256([_RECIPE, seen.sha256, how, config.size, asdict(limits)])
    return Task(
        pair=seen.pair,
        key=key,
        source_sha256=seen.sha256,
        how=how,
        size=config.size,
        limits=limits,
        megapixels=config.max_megapixels,
        anonymous=config.anonymise is not None,
        staging=config.out / STAGING,
    )


def _limits(config: PrepareConfig) -> Limits:
    return Limits(config.max_residual_px, config.min_consistency, config.allow_mirror)


def _align_all(tasks: Sequence[Task], workers: int) -> Iterator[Outcome]:
    """Outcomes in the order of the tasks. Several processes are spawned, not forked: OpenCV has threads."""
    count = _workers(workers, len(tasks))
    if count == 1:
        yield from watched("Aligning", map(_align, tasks), len(tasks))
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            yield from watched("Aligning", pool.map(_align, tasks), len(tasks))
        except KeyboardInterrupt:
            console.print("Stopping: the pairs in hand are finished first; once more to end at once")
            raise
        except BrokenProcessPool:
            raise ChildProcessError("a worker was killed, for want of memory perhaps; try --workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """One thread each; and gone when the command is, which kill -9 leaves no time to say so."""
    single_threaded()
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _align(task: Task) -> Outcome:
    """Align one pair and stage its views, unless it is refused."""
    cf, fa = load_image(task.pair.cf, "RGB", task.megapixels), load_image(task.pair.fa, "L", task.megapixels)
    landmarks = _landmarks(task.pair, cf.shape, fa.shape)
    aligned = align(cf, fa, landmarks, task.how, task.size, task.limits)
    files = {} if aligned.refused else _stage(task, aligned.pair)
    outcome = Outcome(
        id=task.pair.id,
        key=task.key,
        source_sha256=task.source_sha256,
        refused=aligned.refused,
        doubt=aligned.doubt,
        fa_to_cf=aligned.fa_to_frame.tolist(),
        points=aligned.points.round(3).tolist(),
        inliers=aligned.inliers,
        residual_px=None if aligned.residual_px is None else round(aligned.residual_px, 3),
        consistency_before=round(aligned.consistency_before, 4),
        consistency=round(aligned.consistency, 4),
        files_sha256=files,
    )
    write_json(task.staging / f"{task.pair.id}.json", asdict(outcome))
    return outcome


def _stage(task: Task, pair: Pair) -> dict[str, str]:
    views = {"cf": pair.cf, "fa": pair.fa, "mask": pair.mask.astype(np.uint8) * 255}
    paths = {view: task.staging / view_file(view, task.pair.id) for view in views}
    mark = synthetic_mark_of([task.pair.cf, task.pair.fa])
    if mark and task.anonymous:
        mark = {"Synthetic": "yes: prepared from synthetic views"}  # which may say whose variation they are
    for view, path in paths.items():
        save_image(path, views[view], mark)
    return {view: sha256_of(path) for view, path in paths.items()}


def _workers(asked: int, jobs: int) -> int:
    return max(1, min(asked or available_cores(), jobs))


# --- Results


def _say_and_split(pairs: Sequence[RawPair], outcomes: Sequence[Outcome], config: PrepareConfig) -> dict[str, Split]:
    """Print the table; the side of every pair that was kept, by id. Raises UserError if they are too few."""
    refused = {outcome.id for outcome in outcomes if outcome.refused}
    kept = [pair for pair in pairs if pair.id not in refused]
    if not kept:
        _print_table(pairs, outcomes, {}, config.size)
        raise UserError(
            f"{config.raw}: all {len(pairs)} pairs were refused, for the reasons in the table above "
            f"({outcomes[0].id}: {outcomes[0].refused}); correct views, points or limits and prepare again"
        )
    try:
        sides = split_pairs(kept, config.val_fraction, config.test_fraction, config.seed)
    except UserError as error:
        _print_table(pairs, outcomes, {}, config.size)
        raise UserError(f"{config.raw}: {len(refused)} of {len(pairs)} pairs were refused, and {error}") from None
    _print_table(pairs, outcomes, sides, config.size)
    return sides


def _print_table(pairs: Sequence[RawPair], outcomes: Sequence[Outcome], sides: dict[str, Split], size: int) -> None:
    table = Table("id", "eye", "split", "inliers", "residual, px at 512", "consistency", "result")
    eyes = eye_names(pairs)
    for outcome in outcomes:
        residual = "-" if outcome.residual_px is None else f"{px_at_512(outcome.residual_px, size):.2f}"
        table.add_row(
            outcome.id,
            eyes[outcome.id],
            sides.get(outcome.id, "-"),
            "-" if outcome.inliers is None else str(outcome.inliers),
            residual if outcome.residual_px is None else f"{residual} ({_measured_at(outcome)})",
            f"{outcome.consistency_before:.3f} -> {outcome.consistency:.3f}",
            f"refused: {outcome.refused}" if outcome.refused else "kept",
        )
    screen = Console()
    (screen if screen.is_terminal else Console(width=160)).print(table)


def _measured_at(outcome: Outcome) -> str:
    return f"{len(outcome.points)} points" if outcome.points else "vessels"


def _move_into_place(out: Path, outcomes: Sequence[Outcome]) -> None:
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
        sync(out / view)
    shutil.rmtree(out / STAGING, ignore_errors=True)


def _reject_deleted(out: Path, earlier: Sequence[Outcome]) -> None:
    """List the pairs whose files were all deleted by hand as rejected, before they are aligned again.

    If no pair has a file left, the folder was lost and no pair was thrown out.
    """
    if not is_prepared(out):  # a call that was killed while it moved files
        return
    kept = [outcome.id for outcome in earlier if not outcome.refused]
    gone = [id for id in kept if not has_files(out, (view_file(view, id) for view in VIEWS))]
    if len(gone) < len(kept):
        add_rejected(out, gone, "their files were deleted by hand")


def _say_rejected(out: Path) -> None:
    try:
        note = read_folder(out).note
    except UserError as error:  # a listed pair that is now refused
        note = f"warning: {error}"
    if note:
        console.print(printable(note))


def _describe(
    config: PrepareConfig, pairs: Sequence[RawPair], outcomes: Sequence[Outcome], sides: dict[str, Split]
) -> None:
    """The contact sheet, doubtful pairs first, and last of all the manifest."""
    eyes = eye_names(pairs)
    both = [(p, o) for p, o in zip(pairs, outcomes, strict=True) if not o.refused]
    records = [_record(pair, outcome, eyes[pair.id], sides[pair.id], config.size) for pair, outcome in both]
    doubts = doubtful(outcomes, config.size)
    in_order_of_doubt = sorted(records, key=lambda record: record.id not in doubts)
    sheet = contact_sheet(titled(config.out, record, doubts.get(record.id)) for record in in_order_of_doubt)
    save_image(config.out / SHEET_NAME, sheet)
    write_manifest(config.out, records)
    more = f", {MOST_PAIRS} of them" if len(records) > MOST_PAIRS else ""
    counts = Counter(record.split for record in records)
    sides_text = ", ".join(f"{counts[side]} {side}" for side in SPLITS if counts[side])
    print(f"{len(records)} of {len(pairs)} pairs kept in {config.out} ({sides_text})")
    print(
        f"Look at {config.out / SHEET_NAME}{more}: vessels must run on from tile to tile; "
        f"list the ids of pairs to leave out in {config.out / REJECTED_NAME}"
    )
    _say_rejected(config.out)
    if doubts:
        print("Look at these first:")
    for id, why in doubts.items():
        print(f"  {printable(id)}: {why}")


def _record(pair: RawPair, outcome: Outcome, eye: str, side: Split, size: int) -> PreparedPair:
    return PreparedPair(
        id=pair.id,
        eye=eye,
        patient=pair.patient,
        split=side,
        **{view: view_file(view, pair.id) for view in VIEWS},
        size=size,
        caption=pair.caption,
        source_sha256=outcome.source_sha256,
        fa_to_cf=outcome.fa_to_cf,
        points=outcome.points,
        inliers=outcome.inliers,
        residual_px=outcome.residual_px,
        consistency_before=outcome.consistency_before,
        consistency=outcome.consistency,
    )


# --- Hashes


def _sha256_of(pair: RawPair) -> str:
    """Of the content of all the pair's files and what each is."""
    files = (pair.cf, pair.fa, pair.cf_points, pair.fa_points)
    return json_sha256([None if path is None else sha256_of(path) for path in files])


def prepared_folder(data: Path, results: Path, view_size: int) -> Path:
    """The prepared (or generated) folder that `data` is, or is prepared into: once, under RESULTS/prepared."""
    if is_prepared(data):
        return data
    config = PrepareConfig(raw=data, out=Path(), size=max(512, view_size))
    config = replace(config, out=results / "prepared" / fingerprint(config)[:16])
    console.print(f"{data} is raw: its prepared pairs are in {config.out}")
    return config.out if is_prepared(config.out) else prepare_pairs(config)
