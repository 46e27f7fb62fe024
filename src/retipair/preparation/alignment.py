"""Align pairs in parallel; their views wait in a staging folder."""

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
from retipair.preparation.state import (
    STAGING,
    AlignmentResult,
    view_file,
)
from retipair.registration.align import Limits, Method, align
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import file_sha256, write_json
from retipair.runtime.console import console, track
from retipair.runtime.schema import json_sha256
from retipair.runtime.threads import available_cores

ALIGNMENT_VERSION = 5  # raise it whenever the same raw views would be aligned otherwise


@dataclass(frozen=True)
class AlignmentTask:
    """What a worker needs to align one pair; `key` names everything the result depends on."""

    pair: RawPair
    key: str
    source_sha256: str
    how: Method
    size: int
    limits: Limits
    megapixels: int
    anonymous: bool
    staging: Path


def alignment_task(seen: ReadPair, config: PrepareConfig) -> AlignmentTask:
    how: Method = "points" if seen.pair.cf_points else "features"
    if config.register != "auto":
        how = config.register
    limits = limits_of(config)
    key = json_sha256([ALIGNMENT_VERSION, seen.sha256, how, config.size, asdict(limits)])
    return AlignmentTask(
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


def limits_of(config: PrepareConfig) -> Limits:
    return Limits(config.max_residual_px, config.min_consistency, config.allow_mirror)


def align_pairs(tasks: Sequence[AlignmentTask], workers: int) -> Iterator[AlignmentResult]:
    """Outcomes in the order of the tasks. Several processes are spawned, not forked: OpenCV has threads."""
    count = worker_count(workers, len(tasks))
    if count == 1:
        yield from track("Aligning", map(align_pair, tasks), len(tasks))
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        try:
            yield from track("Aligning", pool.map(align_pair, tasks), len(tasks))
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


def align_pair(task: AlignmentTask) -> AlignmentResult:
    """Align one pair and stage its views, unless it is refused."""
    cf, fa = load_image(task.pair.cf, "RGB", task.megapixels), load_image(task.pair.fa, "L", task.megapixels)
    landmarks = landmarks_of(task.pair, cf.shape, fa.shape)
    aligned = align(cf, fa, landmarks, task.how, task.size, task.limits)
    files = {} if aligned.refused else _stage(task, aligned.pair)
    outcome = AlignmentResult(
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


def _stage(task: AlignmentTask, pair: Pair) -> dict[str, str]:
    views = {"cf": pair.cf, "fa": pair.fa, "mask": pair.mask.astype(np.uint8) * 255}
    paths = {view: task.staging / view_file(view, task.pair.id) for view in views}
    mark = synthetic_mark_of([task.pair.cf, task.pair.fa])
    if mark and task.anonymous:
        mark = {"Synthetic": "yes: prepared from synthetic views"}  # which may say whose variation they are
    for view, path in paths.items():
        save_image(path, views[view], mark)
    return {view: file_sha256(path) for view, path in paths.items()}


def worker_count(asked: int, jobs: int) -> int:
    return max(1, min(asked or available_cores(), jobs))
