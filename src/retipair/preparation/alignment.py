"""Align pairs in parallel and write their views to a staging folder."""

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from retipair.config import PrepareConfig
from retipair.data.pair import Pair, load_image, save_image, synthetic_mark_of
from retipair.data.sources import RawPair
from retipair.preparation.reading import ReadPair, landmarks_of
from retipair.preparation.state import STAGING, AlignmentResult, view_file
from retipair.registration.align import Limits, Method, align
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import file_sha256, write_json
from retipair.runtime.console import console, track
from retipair.runtime.schema import json_sha256
from retipair.runtime.threads import available_cores

ALIGNMENT_VERSION = 5  # increment it when the alignment of the same raw views changes


@dataclass(frozen=True)
class AlignmentTask:
    """The input for aligning one pair; `key` is a hash of everything that the result depends on."""

    pair: RawPair
    key: str
    source_sha256: str
    method: Method
    size: int
    limits: Limits
    megapixels: int
    anonymous: bool
    staging: Path


def alignment_task(read: ReadPair, config: PrepareConfig) -> AlignmentTask:
    method: Method = "points" if read.pair.cf_points else "features"
    if config.register != "auto":
        method = config.register
    limits = limits_of(config)
    key = json_sha256([ALIGNMENT_VERSION, read.sha256, method, config.size, asdict(limits)])
    return AlignmentTask(
        pair=read.pair,
        key=key,
        source_sha256=read.sha256,
        method=method,
        size=config.size,
        limits=limits,
        megapixels=config.max_megapixels,
        anonymous=config.anonymise is not None,
        staging=config.out / STAGING,
    )


def limits_of(config: PrepareConfig) -> Limits:
    return Limits(config.max_residual_px, config.min_consistency, config.allow_mirror)


def align_pairs(tasks: Sequence[AlignmentTask], workers: int) -> Iterator[AlignmentResult]:
    """Yield the results in the order of the tasks.

    Worker processes are spawned, not forked, because OpenCV has threads. Raises ChildProcessError if one is killed.
    """
    count = worker_count(workers, len(tasks))
    if count == 1:
        yield from track("Aligning", map(align_pair, tasks), len(tasks))
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_init_worker) as pool:
        try:
            yield from track("Aligning", pool.map(align_pair, tasks), len(tasks))
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
    """Use one thread, and exit when the parent process ends, even if it was killed with SIGKILL."""
    single_threaded()
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def align_pair(task: AlignmentTask) -> AlignmentResult:
    """Align one pair and write its views and its result to the staging folder; a refused pair has no views."""
    cf, fa = load_image(task.pair.cf, "RGB", task.megapixels), load_image(task.pair.fa, "L", task.megapixels)
    landmarks = landmarks_of(task.pair, cf.shape, fa.shape)
    aligned = align(cf, fa, landmarks, task.method, task.size, task.limits)
    files = {} if aligned.refused else _stage(task, aligned.pair)
    result = AlignmentResult(
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
    write_json(task.staging / f"{task.pair.id}.json", asdict(result))
    return result


def _stage(task: AlignmentTask, pair: Pair) -> dict[str, str]:
    views = {"cf": pair.cf, "fa": pair.fa, "mask": pair.mask.astype(np.uint8) * 255}
    paths = {view: task.staging / view_file(view, task.pair.id) for view in views}
    mark = synthetic_mark_of([task.pair.cf, task.pair.fa])
    if mark and task.anonymous:
        # The original mark may name the eye that the views were made from.
        mark = {"Synthetic": "yes: prepared from synthetic views"}
    for view, path in paths.items():
        save_image(path, views[view], mark)
    return {view: file_sha256(path) for view, path in paths.items()}


def worker_count(requested: int, tasks: int) -> int:
    return max(1, min(requested or available_cores(), tasks))
