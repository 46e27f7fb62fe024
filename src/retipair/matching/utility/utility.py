"""Test whether generated pairs help to match real pairs, and write utility.json and utility.md."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from retipair.config import UtilityConfig
from retipair.config.matching import ArmName
from retipair.data.dataset import PairRecord, content_sha256
from retipair.matching.utility.arms import ARMS, Arm, Source
from retipair.matching.utility.plan import UtilityPlan, plan_utility
from retipair.matching.utility.report import PAGE_NAME, SCORES_NAME, write_report
from retipair.matching.utility.scores import (
    LEVELS,
    ImageScore,
    TestImage,
    load_landmark_pair,
    make_test_image,
    score_image,
)
from retipair.matching.utility.training import (
    Correspondences,
    ResidualDescriptor,
    make_variant,
    train_descriptor,
    training_pair,
)
from retipair.models.device import one_thread
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import read_json, write_json
from retipair.runtime.console import console, track
from retipair.runtime.errors import OccupiedError
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import process_map
from retipair.runtime.schema import from_values, json_sha256

STAGING = ".partial"
UTILITY_VERSION = 1  # increment it after a change of the code that changes the scores
Variants = dict[tuple[str, int], Correspondences]
"""The variants made so far, by the id of their source and their number."""


@dataclass(frozen=True)
class ArmRun:
    """One arm and one seed. `key` is a hash of everything else on which the scores depend."""

    plan: UtilityPlan
    arm: ArmName
    seed: int
    key: str

    @property
    def file(self) -> Path:
        return self.plan.config.out / STAGING / f"{self.arm}-{self.seed}.json"


@dataclass(frozen=True)
class _Finished:
    """The content of `ArmRun.file`."""

    key: str
    scores: list[ImageScore]


def utility(config: UtilityConfig) -> Path:
    """Run the test, write OUT/utility.json and OUT/utility.md, and return the path of utility.md.

    The scores of each finished arm and seed are kept in OUT/.partial until all are finished, so that an interrupted
    command can be continued by repeating it. Raises UserError if settings or input cannot be used, or if OUT contains
    the scores of other pairs or settings. Nothing is written then, except if an image is damaged or a mask is missing:
    this is detected only when the pair is used.
    """
    # Check
    plan = plan_utility(config)
    tasks = _tasks(plan)
    key = json_sha256([tasks[0].key, config.arms, config.seeds])
    page = config.out / PAGE_NAME
    if _is_reported(config.out, key):
        return _show(page)
    for note in plan.notes:
        console.print(note)

    # Train and test
    with directory_lock(config.out):
        missing = [task for task in tasks if _finished(task) is None]
        for _ in track(
            "Training and testing", process_map(_run, missing, config.workers, single_threaded), len(missing)
        ):
            pass
        scores: dict[ArmName, list[list[ImageScore]]] = {}
        for task in tasks:
            finished = _finished(task)
            assert finished is not None
            scores.setdefault(task.arm, []).append(finished)

        # Report
        write_report(plan, scores, key)
        shutil.rmtree(config.out / STAGING, ignore_errors=True)
    return _show(page)


def _is_reported(out: Path, key: str) -> bool:
    """Return whether OUT holds the report of these pairs and settings. Raises OccupiedError if OUT holds another."""
    if not (out / SCORES_NAME).is_file():
        return False
    if read_json(out / SCORES_NAME).get("key") != key:
        raise OccupiedError(out, "holds the scores of other pairs or settings; give another OUT, or remove this folder")
    return (out / PAGE_NAME).is_file()


def _show(page: Path) -> Path:
    print(page.read_text(encoding="utf-8"))
    print(f"Report: {page.resolve()}")
    return page


def _tasks(plan: UtilityPlan) -> list[ArmRun]:
    """Return a task for each arm and seed. "untrained" has one task, because its scores do not depend on the seed."""
    config = plan.config
    hashes: dict[PairRecord, bytes] = {}
    contents = [content_sha256(records, hashes) for records in (plan.material.real, plan.material.generated)]
    eyes = [record.group for record in (*plan.material.real, *plan.material.generated)]
    points = [[record.id for record in plan.tested], plan.points]
    settings = [config.phantoms, config.variants, config.steps, config.warps, config.seed, plan.held_out]
    key = json_sha256([UTILITY_VERSION, [asdict(level) for level in LEVELS], contents, eyes, points, settings])
    seeds = {arm: range(1 if arm == "untrained" else config.seeds) for arm in config.arms}
    return [ArmRun(plan, arm, config.seed + seed, key) for arm in config.arms for seed in seeds[arm]]


def _finished(task: ArmRun) -> list[ImageScore] | None:
    """Return the scores of a task that an earlier call has finished, or None."""
    if not task.file.is_file():
        return None
    values = read_json(task.file)
    if values.get("key") != task.key:
        return None
    return from_values(_Finished, values, where=str(task.file), advice="remove it").scores


def _run(task: ArmRun) -> None:
    """Train the descriptor of one arm and seed, once for each fold, and write the scores of the tested pairs."""
    with one_thread():  # so that results do not depend on the number of cores
        images, variants = _test_images(task.plan), Variants()
        scores: list[ImageScore] = []
        for eyes, allowed in task.plan.folds(ARMS[task.arm]):
            model = _train(task, ARMS[task.arm], allowed, variants)
            scores += [score_image(image, model) for image in images if image.eye in eyes]
    finished = [asdict(replace(score, error_px=min(score.error_px, 1e6))) for score in scores]
    write_json(task.file, {"key": task.key, "scores": finished})


@cache
def _test_images(plan: UtilityPlan) -> list[TestImage]:
    """Return the test images, which are the same for all arms and seeds."""
    sources = [load_landmark_pair(record, points) for record, points in zip(plan.tested, plan.points, strict=True)]
    numbers = range(plan.config.warps)
    seed = plan.config.seed
    return [make_test_image(source, level, n, seed) for source in sources for level in LEVELS for n in numbers]


def _train(task: ArmRun, arm: Arm, allowed: Sequence[PairRecord], variants: Variants) -> ResidualDescriptor:
    config = task.plan.config
    groups = arm.sources(task.plan.material, allowed, task.seed)
    pool: list[Correspondences] = []
    for group in groups:
        pool += _make_variants(group, config.variants // len(groups), task.seed, variants)
    return train_descriptor(pool, config.steps if pool else 0, task.seed)


def _make_variants(group: Sequence[Source], count: int, seed: int, variants: Variants) -> Iterator[Correspondences]:
    """Yield `count` variants of the pairs of a group; those in `variants` are not made again.

    The pairs get equal numbers of variants, or numbers that differ by one. The levels of the test alternate from pair
    to pair and from variant to variant. If there are more pairs than variants, pairs evenly spaced in the group are
    used.
    """
    chosen = [group[index * len(group) // count] for index in range(count)] if len(group) > count else group
    numbers = {source.id: range(-(-(count - at) // len(chosen))) for at, source in enumerate(chosen)}
    for source in chosen:
        missing = [number for number in numbers[source.id] if (source.id, number) not in variants]
        pair = training_pair(source.id, source.index, source.load()) if missing else None
        for number in missing:
            assert pair is not None
            level = LEVELS[(source.index + number) % len(LEVELS)]
            variants[source.id, number] = make_variant(pair, level, number, seed)
        yield from (variants[source.id, number] for number in numbers[source.id])
