"""Measure the consistency of rendered pairs of several modalities, with the right and the wrong polarity of vessels.

    python benchmarks/modalities.py --amount 24

Prints a Markdown table with a row for each pair of modalities: the mean and the range of the consistency of registered
pairs, with the true polarity of the vessels of the second view (dark or bright) and with the opposite one; and the
error of registering pairs, whose second camera was moved, by their vessels.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retipair.data.pair import Pair
from retipair.phantoms.clicks import Clicks
from retipair.phantoms.draw import Phantom, draw_phantom
from retipair.registration.align import Limits, align
from retipair.registration.warp import transform_points
from retipair.vision.modality import Modalities, find_modalities

KINDS = (("cf", "fa"), ("red_free", "fa"), ("cf", "autofluorescence"), ("cf", "octa"))
SIZE = 512


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amount", type=int, default=24)
    amount = parser.parse_args(arguments).amount
    print("| first view | second view | consistency | with the opposite vessels | accepted | registration error, px |")
    print("|---|---|---|---|---|---|")
    for keys in KINDS:
        modalities = find_modalities(keys)
        measured = np.array([measure(modalities, number) for number in range(1, amount + 1)])
        errors = [registration_error(modalities, number) for number in range(1, amount + 1)]
        accepted = [error for error in errors if error is not None]
        cells = [f"{column.mean():.2f} ({column.min():.2f} to {column.max():.2f})" for column in measured.T]
        found = f"{len(accepted)} of {amount} | {np.median(accepted):.2f}" if accepted else f"0 of {amount} | -"
        print(f"| `{keys[0]}` | `{keys[1]}` | {' | '.join(cells)} | {found} |")


def measure(modalities: Modalities, number: int) -> tuple[float, float]:
    """Return the consistency of a registered pair with the true and with the opposite polarity."""
    eye = draw_phantom(0, number, SIZE, None, None, None, modalities)
    first, second = modalities.dark_vessels
    pair = Pair(eye.cf, eye.fa, eye.field, dark_vessels=(first, second))
    return pair.consistency(), replace(pair, dark_vessels=(first, not second)).consistency()


def registration_error(modalities: Modalities, number: int) -> float | None:
    """Register a pair by its vessels; return the mean error at nine points, px, or None if the pair is refused."""
    eye = draw_phantom(0, number, SIZE, None, None, Clicks(20, 0, 0), modalities)
    aligned = align(eye.cf, eye.fa, None, "features", SIZE, Limits(), modalities.dark_vessels)
    return None if aligned.refused else error_of(eye, np.linalg.inv(aligned.cf_to_frame) @ aligned.fa_to_frame)


def error_of(eye: Phantom, fa_to_cf: np.ndarray) -> float:
    """Return the mean distance between points that `fa_to_cf` and the true homography map, px of the CF."""
    ticks = np.array([0.25, 0.5, 0.75]) * SIZE
    points = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    moved = transform_points(fa_to_cf, points) - transform_points(eye.fa_to_cf, points)
    return float(np.linalg.norm(moved, axis=1).mean())


if __name__ == "__main__":
    main()
