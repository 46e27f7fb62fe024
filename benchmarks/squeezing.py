"""Measure the detail that each layout loses without any model: views are joined into one image and split again.

    python benchmarks/squeezing.py --amount 24
    python benchmarks/squeezing.py --amount 24 --base sdxl

Prints a Markdown table with a row for each view size and layout. With --base, further rows have the autoencoder of that
base between join and split. The pairs are rendered eyes, whose vessels and vessel widths are known.
"""

import argparse
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from typing import get_args

import numpy as np
import torch
from scipy import ndimage

from retipair.data.layout import Layout, LayoutName
from retipair.data.pair import Pair
from retipair.evaluation.reconstruction import Between, autoencoder, nothing, round_trip
from retipair.metrics.consistency import dice
from retipair.metrics.fidelity import psnr
from retipair.metrics.views import PairViews, prepare_views
from retipair.models.base import open_base
from retipair.phantoms.anatomy import Eye, draw_eye
from retipair.phantoms.cameras import BASE_CAMERAS, CAMERAS, draw_look
from retipair.phantoms.imaging import photograph
from retipair.phantoms.maps import CHANNELS, draw_maps, frame_of
from retipair.phantoms.vessels import SEEN_BY_BOTH, Tree
from retipair.vision.ridges import resize_to_reference, segment

SIZES = (256, 512)
THIN = (1.0, 2.0)
"""Range of the widths of thin vessels, px of the view."""
NEAR = 2
"""Largest distance from a true vessel at which its segmentation is compared, px of the view."""
_NO_LEVEL = -1


@dataclass(frozen=True)
class Rendered:
    """A rendered pair, its true thin vessels, and the pixels near these but not near thicker ones; (512, 512) bool."""

    pair: Pair
    thin: np.ndarray
    near_thin: np.ndarray


@dataclass(frozen=True)
class Cost:
    """Scores of one round trip for CF and FA; HEAD has their names and units."""

    cf_psnr: float
    fa_psnr: float
    cf_vessels: float
    fa_vessels: float
    cf_thin: float
    fa_thin: float
    cf_found: float
    fa_found: float
    cf_fine: float
    fa_fine: float


HEAD = (
    *("PSNR CF, dB", "PSNR FA, dB", "vessels CF, Dice", "vessels FA, Dice"),
    *("thin CF, Dice", "thin FA, Dice", "thin found CF, %", "thin found FA, %", "fine CF, %", "fine FA, %"),
)
_DIGITS = (1, 1, 2, 2, 2, 2, 0, 0, 0, 0)


# --- Pairs


def render(number: int, size: int) -> Rendered:
    """Render eye `number` at `size` px. Every second eye is diabetic, and the cameras alternate."""
    rng = np.random.default_rng([number, 23])
    eye = draw_eye(rng, "diabetic" if number % 2 else "healthy")
    look = draw_look(rng, CAMERAS[BASE_CAMERAS[number // 2 % len(BASE_CAMERAS)]])
    maps = draw_maps(eye, frame_of(eye, size))
    views = photograph(maps[None], [look], [torch.Generator().manual_seed(number)])
    seen = (views.cf, views.fa, views.aperture)
    cf, fa, field = ((view[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for view in seen)
    thin, thick = (_vessels(eye, size, *widths) for widths in (THIN, (THIN[1], np.inf)))
    clear = ~_near(thick)
    pair = Pair(cf, fa[..., 0], field[..., 0] > 127)
    return Rendered(pair, resize_to_reference(thin & clear), resize_to_reference(_near(thin) & clear))


def _vessels(eye: Eye, size: int, narrowest: float, widest: float) -> np.ndarray:
    """Return the vessels of these widths (px) that both views show, (size, size) bool."""
    frame = frame_of(eye, size)

    def select(tree: Tree) -> Tree:
        width = 2 * tree.radii * frame.px_per_mm
        selected = (tree.levels == SEEN_BY_BOTH) & (width >= narrowest) & (width < widest)
        return replace(tree, levels=np.where(selected, SEEN_BY_BOTH, _NO_LEVEL))

    maps = draw_maps(replace(eye, arteries=select(eye.arteries), veins=select(eye.veins)), frame).numpy()
    return (maps[CHANNELS.index("artery")] > 0) | (maps[CHANNELS.index("vein")] > 0)


def _near(vessels: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(~vessels) <= NEAR)


# --- Cost


def cost(rendered: Rendered, before: PairViews, outcome: Pair) -> Cost:
    """Compare a recovered pair with the rendered one. before: the views of the rendered pair."""
    pair, after, inside = rendered.pair, prepare_views(outcome), before.inside
    per_view = []
    for original, returned, ridges, new_ridges in (
        (pair.cf, outcome.cf, before.cf.vesselness, after.cf.vesselness),
        (pair.fa, outcome.fa, before.fa.vesselness, after.fa.vesselness),
    ):
        vessels, new_vessels = segment(ridges, inside), segment(new_ridges, inside)
        per_view.append(
            (
                psnr(original, returned, pair.mask),
                dice(vessels, new_vessels),
                dice(vessels & rendered.near_thin, new_vessels & rendered.near_thin),
                100 * float(new_vessels[rendered.thin & inside].mean()),
                100 * fine_power(returned) / fine_power(original),
            )
        )
    return Cost(*(figure for figures in zip(*per_view, strict=True) for figure in figures))


def fine_power(view: np.ndarray) -> float:
    """Return the power above 1/4 cycle per pixel (details finer than 4 px) in the middle of a view."""
    grey = (view[..., 1] if view.ndim == 3 else view).astype(np.float64)
    quarter = grey.shape[0] // 4
    middle = grey[quarter:-quarter, quarter:-quarter]
    hann = np.outer(*[np.hanning(len(middle))] * 2)
    power = abs(np.fft.fft2((middle - middle.mean()) * hann)) ** 2
    cycles = np.fft.fftfreq(len(middle))
    return float(power[np.hypot(cycles[:, None], cycles[None, :]) > 0.25].sum())


# --- Table


def rows(amount: int, sizes: tuple[int, ...], base: str | None) -> Iterator[tuple[str, list[Cost]]]:
    """Yield the first cells and the costs of each row. Each pair is rendered once per size."""
    steps: dict[str, Between] = {"nothing": nothing}
    if base:
        steps[f"autoencoder of {base}"] = autoencoder(open_base(base))
    for size in sizes:
        costs: dict[str, list[Cost]] = {}
        for number in range(amount):
            rendered = render(number, size)
            before = prepare_views(rendered.pair)
            for layout in (Layout(name, size) for name in get_args(LayoutName)):
                for step, between in steps.items():
                    outcome = round_trip(rendered.pair, layout, between)
                    row = costs.setdefault(f"| {size} | `{layout.name}` | {step} |", [])
                    row.append(cost(rendered, before, outcome))
        yield from costs.items()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amount", type=int, default=24, help="number of pairs of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="sizes of the views, px")
    parser.add_argument(
        "--base", help="a base (folder, file or hub id) whose autoencoder is applied between join and split"
    )
    args = parser.parse_args(arguments)
    assert len(HEAD) == len(fields(Cost))
    print(f"| view, px | layout | between | {' | '.join(HEAD)} |")
    print("|---" * (3 + len(HEAD)) + "|")
    for name, costs in rows(args.amount, tuple(args.sizes), args.base):
        means = np.mean([astuple(one) for one in costs], axis=0)
        cells = [
            "exact" if np.isinf(value) else f"{value:.{digits}f}" for value, digits in zip(means, _DIGITS, strict=True)
        ]
        print(f"{name} {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
