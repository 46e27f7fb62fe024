"""How far a set of generated pairs lies from real ones: a kernel distance on features that are stated and weight-free.

The kernel distance of KID (Binkowski et al. 2018, Demystifying MMD GANs, arXiv 1801.01401) without its network: what
Inception saw in holiday pictures says little of retinas, and a hundred pairs are too few for FID's covariance. Read a
distance beside `null_mmd2`, what real pairs have among themselves, and compare only distances to the same reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial.distance import cdist

from retipair.metrics.texture import BANDS, WINDOW, radial_power
from retipair.metrics.views import PairViews, PreparedView
from retipair.vision.ridges import SIGMAS, segment

_COLOUR_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_VESSEL_QUANTILES = (0.5, 0.9, 0.99)
_DENSE = 0.5  # a vesselness that about a tenth of a view exceeds
NEIGHBOURS = 5
"""Of a neighbourhood: what both papers use."""
HALVED = 1000
"""Rows of the reference of which halves are taken for the floor, at most."""
AT_ONCE = 2**18
"""Comparisons that stand in memory at once, 2 MB of them: of a stretch of rows with all others."""
_LEAST = 0.01  # every feature is of the order of 1: deviations below this are none


# --- Features


def features(seen: PairViews) -> np.ndarray:
    """What a pair looks like, (D,) float64, finite whatever the pair; at 512 px, inside the field.

    field: share of the frame that is field, and its height and width, shares of the frame's.
    colour: mean, deviation and quantiles of each of the CF's channels and of the FA, in [0, 1].
    spectrum: log10 of the power in 16 rings from 4 to 120 cycles over the central 256 px, of CF green and FA.
    vessels: vesselness' mean, quantiles and mean at each scale, the share of the field above .5 (density), and the
    mean strongest scale within the segmented vessels, in units of the largest (calibre).
    """
    return np.array([value for _, _, value in _named(seen)], dtype=np.float64)


def _named(seen: PairViews) -> Iterator[tuple[str, str, float]]:
    """Yield (key, plain name, value) of every feature: the one place that defines which there are."""
    inside = seen.inside if seen.inside.any() else np.ones_like(seen.inside)
    yield "field.share", "field of view, share of the frame", seen.mask.mean()
    yield "field.height", "field of view, height", seen.mask.any(axis=1).mean()
    yield "field.width", "field of view, width", seen.mask.any(axis=0).mean()
    for name, plain, channel in (
        *(
            (f"cf.colour.{name}", f"CF {name}", seen.cf.pixels[..., i])
            for i, name in enumerate(("red", "green", "blue"))
        ),
        ("fa.colour.grey", "FA brightness", seen.fa.pixels),
    ):
        yield from _colour(name, plain, channel[inside] / 255.0)
    for name, view in (("cf", seen.cf), ("fa", seen.fa)):
        rings = np.log10(radial_power(view.grey / 255.0))
        for low, high, ring in zip(BANDS[:-1], BANDS[1:], rings, strict=True):
            plain = f"{name.upper()} power from {low:.0f} to {high:.0f} cycles"
            yield f"{name}.spectrum.k{low:03.0f}", plain, ring
        yield from _vessels(f"{name}.vessels", name.upper(), view, inside)


def _colour(name: str, plain: str, values: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Of (N,) values in [0, 1]."""
    yield f"{name}.mean", f"{plain}, mean", values.mean()
    yield f"{name}.deviation", f"{plain}, standard deviation", values.std()
    for q, value in zip(_COLOUR_QUANTILES, np.quantile(values, _COLOUR_QUANTILES), strict=True):
        yield f"{name}.q{100 * q:02.0f}", f"{plain}, {_percentile(q)}", value


def _percentile(q: float) -> str:
    return "median" if q == 0.5 else f"{100 * q:.0f}th percentile"


def _vessels(name: str, plain: str, view: PreparedView, inside: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Of a view's vesselness at each scale."""
    ridges, strongest = view.ridges, view.vesselness
    yield f"{name}.mean", f"{plain} vesselness, mean", strongest[inside].mean()
    for q, value in zip(_VESSEL_QUANTILES, np.quantile(strongest[inside], _VESSEL_QUANTILES), strict=True):
        yield f"{name}.q{100 * q:02.0f}", f"{plain} vesselness, {_percentile(q)}", value
    for sigma, ridge in zip(SIGMAS, ridges, strict=True):
        yield f"{name}.sigma{sigma}", f"{plain} vesselness at a scale of {sigma} px, mean", ridge[inside].mean()
    yield f"{name}.density", f"{plain} vessel density", (strongest[inside] > _DENSE).mean()
    vessels = segment(strongest, inside)
    scales = np.take(SIGMAS, ridges.argmax(axis=0)[vessels]) / max(SIGMAS)
    yield f"{name}.calibre", f"{plain} vessel calibre", scales.mean() if vessels.any() else 0.0


def _blank() -> PairViews:
    mask, pixels = np.ones((WINDOW, WINDOW), bool), np.zeros((WINDOW, WINDOW, 3), np.uint8)
    return PairViews(PreparedView(pixels, mask, mask), PreparedView(pixels[..., 0], mask, mask), mask, mask)


@cache
def feature_names() -> tuple[str, ...]:
    """Return the key of each entry of `features`: view, group, figure."""
    return tuple(plain_names())


@cache
def plain_names() -> dict[str, str]:
    """Return key -> plain name of each entry of `features`, in their order."""
    return {key: plain for key, plain, _ in _named(_blank())}


# --- Distance


def evenly_spaced_indices(amount: int, most: int) -> np.ndarray:
    """Places in a list of that many: all, or `most` of them, spread evenly."""
    return np.linspace(0, amount - 1, min(amount, most)).round().astype(int)


def mmd2(x: np.ndarray, y: np.ndarray, reference: np.ndarray) -> float:
    """Squared kernel distance of two sets of features, x (n, D) and y (m, D), n and m >= 2; 0 is none.

    Each feature is first measured in the deviations of `reference` (r, D), usually the real pairs. Unbiased: between
    two sets of the same kind it is 0 on average, so as often negative as positive.
    """
    return unbiased_mmd2(robust_standardize(x, reference), robust_standardize(y, reference))


def null_mmd2(reference: np.ndarray, splits: int = 200, seed: int = 0) -> float:
    """Real against real: how far random halves of the reference (r, D), r >= 4, lie apart at most (95th percentile).

    Their mean distance is 0 by construction; a distance below the floor cannot be told from none. On the safe side:
    halves scatter more than whole sets do, and of more than HALVED rows as many are halved.
    """
    rows = robust_standardize(reference, reference)[evenly_spaced_indices(len(reference), HALVED)]
    kernel = _kernel(rows, rows)
    rng = np.random.default_rng(seed)
    apart = []
    for _ in range(splits):
        a, b = np.array_split(rng.permutation(len(rows)), 2)
        within = (_mean_within(kernel[np.ix_(one, one)].sum(), kernel.diagonal()[one]) for one in (a, b))
        apart.append(sum(within) - 2 * kernel[np.ix_(a, b)].mean())
    return float(np.quantile(apart, 0.95))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The Frechet distance of Gaussians around two sets of features, x (n, D) and y (m, D), n and m >= 2; >= 0.

    FID's (Heusel et al. 2017, arXiv 1706.08500, equation 6), on whatever features. Biased: the fewer samples, the
    larger; with no more samples than features the covariances are singular and it says little.
    """
    a, b = (np.cov(one, rowvar=False) for one in (x, y))
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return max(0.0, float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root))


def relative_improvement(before: float, after: float, real: float) -> float:
    """The share of a distance above `real`, the floor, that is gone: 1 at the floor or below, negative if it rose."""
    return 1 - max(after - real, 0.0) / (before - real) if before > real else 0.0


@dataclass(frozen=True)
class Manifolds:
    """How two sets lie among each other, each in [0, 1] but density, which may exceed 1.

    precision: share of generated pairs within the real ones' manifold; recall: the other way about (Kynkaanniemi et al.
    2019, arXiv 1904.06991). density: how many real neighbourhoods hold a generated pair, in units of k; coverage: share
    of real neighbourhoods that hold one (Naeem et al. 2020, arXiv 2002.09797). For two sets of one kind precision and
    recall depend on their sizes; density is 1 and coverage near 1 - 2^-k, where they are of one size.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> Manifolds:
    """Of features real (n, D) and generated (m, D), n and m > k; both in the deviations of `real`."""
    a, b = robust_standardize(real, real), robust_standardize(generated, real)
    assert min(len(a), len(b)) > k, f"a neighbourhood is {k} pairs"
    reach_real, reach_generated = (_knn_radius(one, k) for one in (a, b))
    held = np.zeros(len(b), int)  # in how many neighbourhoods of real pairs each generated one lies
    recalled = covered = 0
    for at in _chunks(a, b):
        across = cdist(a[at], b)
        held += (across < reach_real[at, None]).sum(axis=0)
        recalled += (across < reach_generated).any(axis=1).sum()
        covered += (across.min(axis=1) < reach_real[at]).sum()
    return Manifolds(
        precision=float((held > 0).mean()),
        recall=float(recalled / len(a)),
        density=float(held.mean() / k),
        coverage=float(covered / len(a)),
    )


def _knn_radius(values: np.ndarray, k: int) -> np.ndarray:
    """The distance of each from its k-th neighbour within the set, (n,)."""
    reach = np.empty(len(values))
    for at in _chunks(values, values):
        reach[at] = np.partition(cdist(values[at], values), k, axis=1)[:, k]
    return reach


def _chunks(rows: np.ndarray, others: np.ndarray) -> Iterator[slice]:
    """So that what is worked out of each row with each other never stands in memory whole."""
    length = max(1, AT_ONCE // len(others))
    return (slice(begin, begin + length) for begin in range(0, len(rows), length))


def robust_standardize(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n, D) in deviations from the reference's (r, D) median, (n, D).

    Deviation: half of what lies between the 16th and 84th percentiles, so that an odd pair does not widen it; .01 at
    least, for features that the reference has all alike. Through asinh, so that a monstrous pair does not decide alone.
    """
    low, median, high = np.quantile(reference, (0.16, 0.5, 0.84), axis=0)
    return np.asarray(np.arcsinh((values - median) / np.maximum((high - low) / 2, _LEAST)))


def unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD of x (n, D) and y (m, D), n and m >= 2 (equation 4 of the paper) with KID's kernel."""
    assert min(len(x), len(y)) > 1, "a set of one has no distance within"
    within = (_mean_within(_total(one, one), ((one**2).mean(axis=1) + 1) ** 3) for one in (x, y))
    return float(sum(within) - 2 * _total(x, y) / (len(x) * len(y)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x . y / D + 1)^3 of x (n, D) and y (m, D), (n, m): KID's kernel."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _total(x: np.ndarray, y: np.ndarray) -> float:
    return sum(float(_kernel(x[at], y).sum()) for at in _chunks(x, y))


def _mean_within(total: float, own: np.ndarray) -> float:
    """The mean of a set's kernel, of which `total` is the sum and `own` (n,) the diagonal: none with itself."""
    return float((total - own.sum()) / (len(own) * (len(own) - 1)))
