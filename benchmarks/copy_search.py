"""Measure how many copies the copy search finds, and how fast it is, on rendered eyes in random poses.

`python benchmarks/copy_search.py --eyes 75 --poses 8` compares search methods by the number of copies found, the number
of different eyes that are reported as copies, and the CPU time per comparison. The thresholds were chosen on other
eyes (`--seed 501 --eyes 25 --poses 12`).
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import process_time

import numpy as np

from retipair.data.augmentation import Variant, apply_variant
from retipair.data.pair import Pair
from retipair.generation.filters import descriptor_of
from retipair.metrics.fourier_mellin import (
    Spectra,
    best_over_poses,
    best_over_shifts,
    pose_matrices,
    spectra,
    transform_map,
)
from retipair.metrics.memorisation import COPY
from retipair.phantoms.draw import draw_phantom

Search = Callable[[np.ndarray, Spectra], np.ndarray]
MAX_SCALE = 1.2


@dataclass(frozen=True)
class Sample:
    """Descriptors: known and other eyes (n, 64, 64); copies of the known eyes, in their order (n * poses, 64, 64)."""

    known: np.ndarray
    copies: np.ndarray
    others: np.ndarray


def main() -> None:
    options = _options()
    sample = draw_sample(options.seed, options.eyes, options.poses)
    few = slice(0, options.exhaustive)
    small = Sample(sample.known[few], sample.copies[: options.exhaustive * options.poses], sample.others[few])
    small_rotations = grid_search(np.arange(-8, 9, 2), np.ones(1))
    exhaustive = grid_search(np.arange(0, 360, 4), np.geomspace(1 / MAX_SCALE, MAX_SCALE, 9))
    print("| Search | copies found | similarity of copies: minimum, median ", end="")
    print("| similarity of different eyes: maximum | false alarms | CPU time per comparison, ms |")
    print("|---|---|---|---|---|---|")
    for name, search, compared in (
        ("mirror, rotation up to 8 degrees", small_rotations, sample),
        ("Fourier-Mellin, then shifts", best_over_poses, sample),
        (f"the same, {options.exhaustive} eyes", best_over_poses, small),
        (f"exhaustive, every 4 degrees and 5 %, {options.exhaustive} eyes", exhaustive, small),
    ):
        print(f"| {name} | {row_of(search, compared)} |", flush=True)


def draw_sample(seed: int, eyes: int, poses: int) -> Sample:
    """Render the known eyes, their copies, and other eyes (with the next seed)."""
    known, others = ([_eye(one, number) for number in range(eyes)] for one in (seed, seed + 1))
    copies = [copy for number, eye in enumerate(known) for copy in copies_of(eye, poses, [seed, number, 7])]
    return Sample(*(np.stack([descriptor_of(pair) for pair in pairs]) for pairs in (known, copies, others)))


def copies_of(eye: Pair, poses: int, seed: list[int]) -> Iterator[Pair]:
    """Yield copies in random poses; every second one is also brighter and noisier."""
    rng = np.random.default_rng(seed)
    variants = [far_shift(rng) if number % 4 == 3 else any_pose(rng) for number in range(poses)]
    for number, variant in enumerate(variants):
        copy = in_pose(eye, variant)
        yield copy if number % 2 else noisier(copy, rng)


def any_pose(rng: np.random.Generator) -> Variant:
    """Draw a flip, any rotation, a scale change of at most 20 %, and a shift of at most 31 px along each side."""
    return Variant(
        flip_horizontal=bool(rng.integers(2)),
        turn_degrees=float(rng.uniform(0, 360)),
        scale=float(rng.uniform(2 - MAX_SCALE, MAX_SCALE)),
        shift=(float(rng.uniform(-0.06, 0.06)), float(rng.uniform(-0.06, 0.06))),
    )


def far_shift(rng: np.random.Generator) -> Variant:
    """Draw flips and a shift of at most 77 px along each side."""
    return Variant(
        flip_horizontal=bool(rng.integers(2)),
        flip_vertical=bool(rng.integers(2)),
        shift=(float(rng.uniform(-0.15, 0.15)), float(rng.uniform(-0.15, 0.15))),
    )


def in_pose(pair: Pair, variant: Variant) -> Pair:
    """Apply the variant to a pair and to its mask."""
    white = pair.mask.astype(np.uint8) * 255
    cf, fa = apply_variant(pair.cf, pair.fa, variant)
    _, mask = apply_variant(pair.cf, white, replace(variant, cf_gain=1.0, fa_gain=1.0))
    return Pair(cf, fa, mask > 127)


def noisier(pair: Pair, rng: np.random.Generator) -> Pair:
    cf, fa = (
        np.clip(view * 1.25 + rng.normal(0, 10, view.shape), 0, 255).astype(np.uint8) for view in (pair.cf, pair.fa)
    )
    return Pair(cf, fa, pair.mask)


def grid_search(degrees: np.ndarray, scales: np.ndarray) -> Search:
    """Return a search that tries every rotation and scale, with and without mirroring."""
    grid = np.meshgrid([False, True], np.deg2rad(degrees), scales, indexing="ij")
    poses = pose_matrices(*(values.ravel() for values in grid))

    def search(one: np.ndarray, others: Spectra) -> np.ndarray:
        transformed = (transform_map(one, pose[None])[0] for pose in poses)
        return np.asarray(np.max([best_over_shifts(one_map, others.of_maps) for one_map in transformed], axis=0))

    return search


def row_of(search: Search, sample: Sample) -> str:
    """Compare copies and other eyes with all known eyes, and return a row of the table."""
    known, poses = spectra(sample.known), len(sample.copies) // len(sample.known)
    started = process_time()
    copies, others = (np.stack([search(one, known) for one in eyes]) for eyes in (sample.copies, sample.others))
    ms = 1000 * (process_time() - started) / (copies.size + others.size)
    rows, own = np.arange(len(copies)), np.arange(len(copies)) // poses
    own_similarity = copies[rows, own]
    found = (own_similarity >= COPY) & (copies.argmax(axis=1) == own)
    copies[rows, own] = -1
    highest = np.concatenate([copies, others]).max(axis=1)  # to eyes that are not their own
    minimum, median = np.quantile(own_similarity, (0, 0.5))
    return (
        f"{found.sum()} of {len(found)} | {minimum:.2f}, {median:.2f} | {highest.max():.2f} "
        f"| {(highest >= COPY).sum()} of {len(highest)} | {ms:.2f}"
    )


def _eye(seed: int, number: int) -> Pair:
    drawn = draw_phantom(seed, number, 512, None, None, None)
    return Pair(drawn.cf, drawn.fa, drawn.field)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--eyes", type=int, default=75, help="number of known eyes, and of other eyes")
    parser.add_argument("--poses", type=int, default=8, help="number of copies of each known eye")
    parser.add_argument("--exhaustive", type=int, default=5, help="number of eyes for the exhaustive search")
    return parser.parse_args()


if __name__ == "__main__":
    main()
