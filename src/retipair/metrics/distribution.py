"""Measure the distance of a set of generated pairs from real pairs: a kernel distance on hand-crafted features.

It is the kernel distance of KID (Binkowski et al. 2018, Demystifying MMD GANs, arXiv 1801.01401) without Inception:
features of natural photographs describe retinas poorly, and a hundred pairs are too few for FID's covariance. Compare a
distance with `null_mmd2`, the 95th percentile of the distance between random halves of the real pairs. Two distances
are comparable only if they have the same reference.
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
_DENSE = 0.5  # about a tenth of a view has a higher vesselness
NEIGHBOURS = 5
"""Number of neighbours that define a neighbourhood: 5 in both papers that `Manifolds` cites."""
HALVED = 1000
"""Maximum number of reference rows that `null_mmd2` splits into halves."""
AT_ONCE = 2**18
"""Maximum number of comparisons in memory at once (2 MB): those of a chunk of rows with all others."""
_MIN_DEVIATION = 0.01  # features are of the order of 1


# --- Features


def features(pair: PairViews) -> np.ndarray:
    """Return the features of a pair, (D,) float64, always finite; measured at 512 px inside the field of view.

    field: area, height and width of the field of view, as fractions of the frame's.
    colour: mean, standard deviation and quantiles of each CF channel and of the FA, in [0, 1].
    spectrum: log10 of the power in 16 rings from 4 to 120 cycles over the central 256 px, of CF green and FA.
    vessels: mean and quantiles of the vesselness, its mean at each scale, the fraction of the field above .5 (density),
    and the mean scale of the strongest response within the segmented vessels, in units of the largest scale (calibre).
    """
    return np.array([value for _, _, value in _named_features(pair)], dtype=np.float64)


def _named_features(pair: PairViews) -> Iterator[tuple[str, str, float]]:
    """Yield (key, plain name, value) of every feature; this function defines the features."""
    inside = pair.inside if pair.inside.any() else np.ones_like(pair.inside)
    yield "field.share", "field of view, fraction of the frame", pair.mask.mean()
    yield "field.height", "field of view, height", pair.mask.any(axis=1).mean()
    yield "field.width", "field of view, width", pair.mask.any(axis=0).mean()
    for name, plain, channel in (
        *(
            (f"cf.colour.{name}", f"CF {name}", pair.cf.pixels[..., i])
            for i, name in enumerate(("red", "green", "blue"))
        ),
        ("fa.colour.grey", "FA brightness", pair.fa.pixels),
    ):
        yield from _colour_features(name, plain, channel[inside] / 255.0)
    for name, view in (("cf", pair.cf), ("fa", pair.fa)):
        rings = np.log10(radial_power(view.grey / 255.0))
        for low, high, ring in zip(BANDS[:-1], BANDS[1:], rings, strict=True):
            plain = f"{name.upper()} power from {low:.0f} to {high:.0f} cycles"
            yield f"{name}.spectrum.k{low:03.0f}", plain, ring
        yield from _vessel_features(f"{name}.vessels", name.upper(), view, inside)


def _colour_features(name: str, plain: str, values: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Yield the features of (N,) values in [0, 1]."""
    yield f"{name}.mean", f"{plain}, mean", values.mean()
    yield f"{name}.deviation", f"{plain}, standard deviation", values.std()
    for q, value in zip(_COLOUR_QUANTILES, np.quantile(values, _COLOUR_QUANTILES), strict=True):
        yield f"{name}.q{100 * q:02.0f}", f"{plain}, {_percentile(q)}", value


def _percentile(q: float) -> str:
    return "median" if q == 0.5 else f"{100 * q:.0f}th percentile"


def _vessel_features(name: str, plain: str, view: PreparedView, inside: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Yield the features of a view's vesselness."""
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


def _blank_pair() -> PairViews:
    mask, pixels = np.ones((WINDOW, WINDOW), bool), np.zeros((WINDOW, WINDOW, 3), np.uint8)
    return PairViews(PreparedView(pixels, mask, mask), PreparedView(pixels[..., 0], mask, mask), mask, mask)


@cache
def feature_names() -> tuple[str, ...]:
    """Return the key of each entry of `features`: view, group, metric."""
    return tuple(plain_names())


@cache
def plain_names() -> dict[str, str]:
    """Return key -> plain name of each entry of `features`, in their order."""
    return {key: plain for key, plain, _ in _named_features(_blank_pair())}


# --- Distance


def evenly_spaced_indices(amount: int, most: int) -> np.ndarray:
    """Return the indices of `most` evenly spaced entries of a list of `amount`, or all if there are fewer."""
    return np.linspace(0, amount - 1, min(amount, most)).round().astype(int)


def mmd2(x: np.ndarray, y: np.ndarray, reference: np.ndarray) -> float:
    """Return the squared kernel distance of two sets of features, x (n, D) and y (m, D), n and m >= 2.

    Each feature is first standardised by `reference` (r, D), usually the real pairs. The estimate is unbiased: for two
    sets of the same distribution its mean is 0, so it may be negative.
    """
    return unbiased_mmd2(robust_standardize(x, reference), robust_standardize(y, reference))


def null_mmd2(reference: np.ndarray, splits: int = 200, seed: int = 0) -> float:
    """Return the 95th percentile of the distance between random halves of the reference (r, D), r >= 4.

    A distance below it is not distinguishable from 0, the mean distance of the halves. The percentile is
    conservative for sets larger than the halves, because distances between small sets vary more. The halves are taken
    from at most HALVED evenly spaced rows.
    """
    rows = robust_standardize(reference, reference)[evenly_spaced_indices(len(reference), HALVED)]
    kernel = _kernel(rows, rows)
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(splits):
        a, b = np.array_split(rng.permutation(len(rows)), 2)
        within = (_mean_within(kernel[np.ix_(half, half)].sum(), kernel.diagonal()[half]) for half in (a, b))
        distances.append(sum(within) - 2 * kernel[np.ix_(a, b)].mean())
    return float(np.quantile(distances, 0.95))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Return the Frechet distance of two sets of features, x (n, D) and y (m, D), n and m >= 2; >= 0.

    It is the distance of FID (Heusel et al. 2017, arXiv 1706.08500, equation 6) on any features. It is biased upwards
    for few samples, and unreliable with no more samples than features, because the covariances are then singular.
    """
    a, b = (np.cov(values, rowvar=False) for values in (x, y))
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return max(0.0, float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root))


def relative_improvement(before: float, after: float, real: float) -> float:
    """Return the relative decrease of a distance above the floor `real`: 1 at the floor, negative if it increased."""
    return 1 - max(after - real, 0.0) / (before - real) if before > real else 0.0


@dataclass(frozen=True)
class Manifolds:
    """Overlap of two sets, each metric in [0, 1] except density, which may exceed 1.

    precision: fraction of generated pairs within the real manifold; recall: fraction of real pairs within the generated
    manifold (Kynkaanniemi et al. 2019, arXiv 1904.06991). density: mean number of real neighbourhoods that contain a
    generated pair, divided by k; coverage: fraction of real neighbourhoods that contain one (Naeem et al. 2020, arXiv
    2002.09797). For two sets of the same distribution, precision and recall depend on the sizes of the sets. If the
    sizes are equal, density is 1 and coverage near 1 - 2^-k.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> Manifolds:
    """Compare features real (n, D) and generated (m, D), n and m > k, both standardised by `real`."""
    a, b = robust_standardize(real, real), robust_standardize(generated, real)
    assert min(len(a), len(b)) > k, f"prdc needs more than {k} pairs in each set"
    radius_real, radius_generated = (_knn_radius(values, k) for values in (a, b))
    containing = np.zeros(len(b), int)  # number of real neighbourhoods that contain each generated pair
    recalled = covered = 0
    for chunk in _chunks(a, b):
        across = cdist(a[chunk], b)
        containing += (across < radius_real[chunk, None]).sum(axis=0)
        recalled += (across < radius_generated).any(axis=1).sum()
        covered += (across.min(axis=1) < radius_real[chunk]).sum()
    return Manifolds(
        precision=float((containing > 0).mean()),
        recall=float(recalled / len(a)),
        density=float(containing.mean() / k),
        coverage=float(covered / len(a)),
    )


def _knn_radius(values: np.ndarray, k: int) -> np.ndarray:
    """Return the distance of each row to its k-th nearest neighbour in the set, (n,)."""
    radius = np.empty(len(values))
    for chunk in _chunks(values, values):
        radius[chunk] = np.partition(cdist(values[chunk], values), k, axis=1)[:, k]
    return radius


def _chunks(rows: np.ndarray, others: np.ndarray) -> Iterator[slice]:
    """Return slices of `rows` whose comparisons with `others` fit into AT_ONCE."""
    length = max(1, AT_ONCE // len(others))
    return (slice(begin, begin + length) for begin in range(0, len(rows), length))


def robust_standardize(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Standardise values (n, D) by the median and deviation of the reference (r, D), (n, D).

    The deviation is half the distance between the 16th and 84th percentiles, which is robust to outliers. It is at
    least .01, because a feature may be constant in the reference. asinh limits the influence of outliers.
    """
    low, median, high = np.quantile(reference, (0.16, 0.5, 0.84), axis=0)
    return np.asarray(np.arcsinh((values - median) / np.maximum((high - low) / 2, _MIN_DEVIATION)))


def unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD of x (n, D) and y (m, D), n and m >= 2, with KID's kernel (equation 4)."""
    assert min(len(x), len(y)) > 1, "MMD needs at least two rows in each set"
    within = (_mean_within(_total(rows, rows), ((rows**2).mean(axis=1) + 1) ** 3) for rows in (x, y))
    return float(sum(within) - 2 * _total(x, y) / (len(x) * len(y)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return KID's kernel (x . y / D + 1)^3 of x (n, D) and y (m, D), (n, m)."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _total(x: np.ndarray, y: np.ndarray) -> float:
    return sum(float(_kernel(x[chunk], y).sum()) for chunk in _chunks(x, y))


def _mean_within(total: float, own: np.ndarray) -> float:
    """Return the mean of a set's kernel without its diagonal `own` (n,); `total` is the sum of the whole kernel."""
    return float((total - own.sum()) / (len(own) * (len(own) - 1)))
