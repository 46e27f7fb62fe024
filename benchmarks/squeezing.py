"""What each layout costs a pair before a model has learnt anything: views joined into one image and split again.

    python benchmarks/squeezing.py --amount 24
    python benchmarks/squeezing.py --amount 24 --base sdxl

Prints a Markdown table, one row for each size of the views and layout; with --base also with that base's autoencoder
between join and split. The pairs are rendered eyes, whose vessels and their widths are known.
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
"""Width of the vessels called thin, px of the view."""
NEAR = 2
"""px of the view: how far from a true vessel its segmentation is looked at."""
_NO_LEVEL = -1


@dataclass(frozen=True)
class Rendered:
    """A rendered pair, its true thin vessels, and what is near them but not near thicker ones; (512, 512) bool."""

    pair: Pair
    thin: np.ndarray
    near_thin: np.ndarray


@dataclass(frozen=True)
class Cost:
    """Of one round trip, a CF's and an FA's figure of each kind; HEAD says which."""

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
    """Eye `number`, photographed at `size` px: every second one is diabetic, the cameras take turns."""
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
    """Where the eye has vessels that both views show, of these widths in px, (size, size) bool."""
    frame = frame_of(eye, size)

    def chosen(tree: Tree) -> Tree:
        width = 2 * tree.radii * frame.px_per_mm
        wanted = (tree.levels == SEEN_BY_BOTH) & (width >= narrowest) & (width < widest)
        return replace(tree, levels=np.where(wanted, SEEN_BY_BOTH, _NO_LEVEL))

    maps = draw_maps(replace(eye, arteries=chosen(eye.arteries), veins=chosen(eye.veins)), frame).numpy()
    return (maps[CHANNELS.index("artery")] > 0) | (maps[CHANNELS.index("vein")] > 0)


def _near(vessels: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(~vessels) <= NEAR)


# --- Cost


def cost(rendered: Rendered, before: PairViews, outcome: Pair) -> Cost:
    """`before`: the rendered pair, measured."""
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
    """Power in the middle of a view above a quarter of a cycle a pixel: details finer than 4 px."""
    grey = (view[..., 1] if view.ndim == 3 else view).astype(np.float64)
    quarter = grey.shape[0] // 4
    middle = grey[quarter:-quarter, quarter:-quarter]
    hann = np.outer(*[np.hanning(len(middle))] * 2)
    power = abs(np.fft.fft2((middle - middle.mean()) * hann)) ** 2
    cycles = np.fft.fftfreq(len(middle))
    return float(power[np.hypot(cycles[:, None], cycles[None, :]) > 0.25].sum())


# --- Table


def rows(amount: int, sizes: tuple[int, ...], base: str | None) -> Iterator[tuple[str, list[Cost]]]:
    """Name and costs of every combination; each pair is rendered and measured once."""
    ways: dict[str, Between] = {"nothing": nothing}
    if base:
        ways[f"autoencoder of {base}"] = autoencoder(open_base(base))
    for size in sizes:
        costs: dict[str, list[Cost]] = {}
        for number in range(amount):
            rendered = render(number, size)
            before = prepare_views(rendered.pair)
            for layout in (Layout(name, size) for name in get_args(LayoutName)):
                for way, between in ways.items():
                    outcome = round_trip(rendered.pair, layout, between)
                    row = costs.setdefault(f"| {size} | `{layout.name}` | {way} |", [])
                    row.append(cost(rendered, before, outcome))
        yield from costs.items()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--amount", type=int, default=24, help="pairs of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the views, px")
    parser.add_argument("--base", help="a base (folder, file or hub id) whose autoencoder lies between join and split")
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
