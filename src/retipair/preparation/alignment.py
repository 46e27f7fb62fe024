"""Align raw pairs in parallel, and write the aligned views to the staging folder OUT/.partial."""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context, parent_process
from typing import TypeVar

import numpy as np

from retipair.config import PrepareConfig, RegisterConfig
from retipair.data.pair import Pair, load_image, save_image, synthetic_mark_of
from retipair.preparation.reading import CheckedPair
from retipair.preparation.state import STAGING, AlignmentResult, view_file
from retipair.registration.align import Limits, Method, align
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import file_sha256, write_json
from retipair.runtime.console import console, track
from retipair.runtime.errors import SettingError
from retipair.runtime.pillow import configure_pillow
from retipair.runtime.schema import json_sha256
from retipair.runtime.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

ALIGNMENT_VERSION = 6  # increment it after a change of the code that changes the aligned views or their AlignmentResult


def alignment_key(checked: CheckedPair, config: PrepareConfig) -> str:
    """Return a hash of all that the aligned views of a pair depend on: its files, the settings and the version."""
    limits = asdict(limits_of(config))
    return json_sha256([ALIGNMENT_VERSION, checked.sha256, _method_of(checked, config), config.size, limits])


def _method_of(checked: CheckedPair, config: PrepareConfig) -> Method:
    if config.register != "auto":
        return config.register
    return "points" if checked.landmarks else "features"


def limits_of(config: PrepareConfig | RegisterConfig) -> Limits:
    return Limits(config.max_residual_px, config.min_consistency, config.allow_mirror)


def check_alignment_settings(config: PrepareConfig | RegisterConfig) -> None:
    """Raise SettingError if a limit of the alignment, or the number of workers, is invalid."""
    if not 0 < config.max_residual_px < math.inf:
        raise SettingError("max_residual_px", f"{config.max_residual_px:g}", "must be a number of px above 0")
    if config.min_consistency is not None and not -1 <= config.min_consistency <= 1:
        raise SettingError("min_consistency", f"{config.min_consistency:g}", "must be from -1 to 1")
    if config.workers < 0:
        raise SettingError("workers", config.workers, "must be 0 (every core) or more")


def align_pairs(pairs: Sequence[CheckedPair], config: PrepareConfig) -> Iterator[AlignmentResult]:
    """Align the pairs in worker processes, and yield the results in the order of the pairs."""
    yield from map_in_processes("Aligning", partial(align_pair, config=config), pairs, config.workers)


def map_in_processes(
    title: str, work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[Result]:
    """Yield work(item) for each item in order, computed in worker processes, with a progress bar.

    The processes are spawned, not forked, because a fork of a process in which OpenCV runs threads may hang. Raises
    ChildProcessError if a worker process is killed.

    title: the text beside the progress bar.
    workers: the number of processes; 0 for one per core. With one, `work` is called in this process.
    """
    count = worker_count(workers, len(items))
    if count == 1:
        yield from track(title, map(work, items), len(items))
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_init_worker) as pool:
        try:
            yield from track(title, pool.map(work, items), len(items))
        except KeyboardInterrupt:
            console.print("Stopping: finishing the current pairs first; interrupt again to stop at once")
            raise
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed, perhaps for lack of memory; try --workers 1"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    """Limit a worker process to one thread, and make it exit when its parent process ends, even by SIGKILL."""
    configure_pillow()
    single_threaded()
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def align_pair(checked: CheckedPair, config: PrepareConfig) -> AlignmentResult:
    """Align one pair, and write the result to the staging folder.

    The AlignmentResult is always written. The aligned views are written only if the pair is not refused.
    """
    pair, staging = checked.pair, config.out / STAGING
    cf, fa = load_image(pair.cf, "RGB", config.max_megapixels), load_image(pair.fa, "L", config.max_megapixels)
    method = _method_of(checked, config)
    aligned = align(cf, fa, checked.landmarks, method, config.size, limits_of(config))
    result = AlignmentResult(
        id=pair.id,
        key=alignment_key(checked, config),
        source_sha256=checked.sha256,
        refused=aligned.refused,
        doubt=aligned.doubt,
        native_size=list(aligned.native_size),
        fa_to_cf=aligned.fa_to_frame.tolist(),
        points=aligned.points.round(3).tolist(),
        inliers=aligned.inliers,
        residual_px=None if aligned.residual_px is None else round(aligned.residual_px, 3),
        consistency_before=round(aligned.consistency_before, 4),
        consistency=round(aligned.consistency, 4),
        files_sha256={} if aligned.refused else _stage(checked, aligned.pair, config),
    )
    write_json(staging / f"{pair.id}.json", asdict(result))
    return result


def _stage(checked: CheckedPair, views: Pair, config: PrepareConfig) -> dict[str, str]:
    """Write CF, FA and mask to the staging folder, and return the hash of each file, by view."""
    images = {"cf": views.cf, "fa": views.fa, "mask": views.mask.astype(np.uint8) * 255}
    paths = {view: config.out / STAGING / view_file(view, checked.pair.id) for view in images}
    raw = {"cf": [checked.pair.cf], "fa": [checked.pair.fa], "mask": [checked.pair.cf, checked.pair.fa]}
    for view, path in paths.items():
        mark = synthetic_mark_of(raw[view])
        if mark and config.anonymise:
            # The synthetic mark of a raw view may contain the original id of a pair, so it is replaced.
            mark = {"Synthetic": "yes: prepared from synthetic views"}
        save_image(path, images[view], mark)
    return {view: file_sha256(path) for view, path in paths.items()}


def worker_count(requested: int, tasks: int) -> int:
    return max(1, min(requested or available_cores(), tasks))
