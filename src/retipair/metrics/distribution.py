"""Measure the distance between a set of generated pairs and a set of real pairs.

The distance is the squared maximum mean discrepancy (MMD) with the kernel of KID (Binkowski et al. 2018, Demystifying
MMD GANs, arXiv 1801.01401), but on hand-crafted features of colour, spectrum and vessels. Features of an Inception
network describe retinas poorly, because the network was trained on natural photographs. FID is unsuitable for small
sets: a hundred pairs are too few to estimate its covariance matrices.

Compare a distance with `null_mmd2`, which shows how large the distance is between two random subsets of the real pairs.
Compare two distances only if they were computed with the same reference set, by which the features are standardised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial.distance import cdist

from retipair.data.selection import evenly_spaced_indices
from retipair.metrics.spectrum import BANDS, WINDOW
from retipair.metrics.views import PairViews, PreparedView
from retipair.vision.ridges import SIGMAS, segment

_COLOUR_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_VESSEL_QUANTILES = (0.5, 0.9, 0.99)
_DENSE = (
    0.5  # vesselness above which a pixel counts for the density; about a tenth of the pixels of a view are above it
)
NEIGHBOURS = 5
"""Number k of nearest neighbours that defines a neighbourhood (see `Manifolds`), as in Naeem et al. 2020."""
HALVED = 1000
"""Maximum number of reference rows that `null_mmd2` uses."""
AT_ONCE = 2**18
"""Maximum number of pairwise distances in memory at once (2 MB)."""
_MIN_DEVIATION = 0.01  # lower bound of the deviation in `robust_standardize`


# --- Features


def features(pair: PairViews) -> np.ndarray:
    """Return the hand-crafted features of a pair, (D,) float64, always finite.

    The images are 512 px wide. There are four groups of features:

    field: the area, the height and the width of the common field of view, as fractions of those of the image.
    colour: the mean, standard deviation and quantiles of each channel of the CF and of the FA, in [0, 1]. Colour and
    vessels are measured inside the common field of view, except near its edge.
    spectrum: for the green channel of the CF and for the FA, log10 of the power in each ring of BANDS, in a central
    square (see `PreparedView.rings`).
    vessels: for each view, the mean and quantiles of the vesselness; the mean vesselness at each scale; the density,
    that is, the fraction of pixels with a vesselness above .5; and the calibre. For the calibre, the scale with the
    highest vesselness is found at each pixel of the segmented vessels (see `ridges.segment`). The mean of these scales
    is divided by the largest scale.
    """
    return np.array([value for _, _, value in _named_features(pair)], dtype=np.float64)


def _named_features(pair: PairViews) -> Iterator[tuple[str, str, float]]:
    """Yield the key, the name in plain words and the value of each feature of a pair."""
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
        yield from _colour_features(name, plain, channel[inside])
    for name, view in (("cf", pair.cf), ("fa", pair.fa)):
        for low, high, ring in zip(BANDS[:-1], BANDS[1:], np.log10(view.rings), strict=True):
            plain = f"{name.upper()} power from {low:.0f} to {high:.0f} cycles per {WINDOW} px"
            yield f"{name}.spectrum.k{low:03.0f}", plain, ring
        yield from _vessel_features(f"{name}.vessels", name.upper(), view, inside)


def _colour_features(name: str, plain: str, pixels: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Yield the colour features of one channel.

    name: the start of the key of each feature.
    plain: the name of the channel in plain words.
    pixels: the pixels of the channel inside the field of view, (N,) uint8.
    """
    # Bytes are sorted fast, and the quantiles of sorted values are found fast.
    values, ordered = pixels / 255.0, np.sort(pixels, kind="stable") / 255.0
    yield f"{name}.mean", f"{plain}, mean", values.mean()
    yield f"{name}.deviation", f"{plain}, standard deviation", values.std()
    for q, value in zip(_COLOUR_QUANTILES, np.quantile(ordered, _COLOUR_QUANTILES), strict=True):
        yield f"{name}.q{100 * q:02.0f}", f"{plain}, {_percentile(q)}", value


def _percentile(q: float) -> str:
    return "median" if q == 0.5 else f"{100 * q:.0f}th percentile"


def _vessel_features(name: str, plain: str, view: PreparedView, inside: np.ndarray) -> Iterator[tuple[str, str, float]]:
    """Yield the vessel features of a view.

    name: the start of the key of each feature.
    plain: the name of the view in plain words.
    inside: the pixels to use, (H, W) bool.
    """
    ridges, strongest = view.ridges, view.vesselness
    yield f"{name}.mean", f"{plain} vesselness, mean", strongest[inside].mean()
    for q, value in zip(_VESSEL_QUANTILES, np.quantile(strongest[inside], _VESSEL_QUANTILES), strict=True):
        yield f"{name}.q{100 * q:02.0f}", f"{plain} vesselness, {_percentile(q)}", value
    for sigma, ridge in zip(SIGMAS, ridges, strict=True):
        yield f"{name}.sigma{sigma}", f"{plain} vesselness at a scale of {sigma} px, mean", ridge[inside].mean()
    yield f"{name}.density", f"{plain} vessel density", (strongest[inside] > _DENSE).mean()
    vessels = segment(strongest, inside)
    scales = np.take(SIGMAS, ridges[:, vessels].argmax(axis=0)) / max(SIGMAS)
    yield f"{name}.calibre", f"{plain} vessel calibre", scales.mean() if vessels.any() else 0.0


def _blank_pair() -> PairViews:
    mask, pixels = np.ones((WINDOW, WINDOW), bool), np.zeros((WINDOW, WINDOW, 3), np.uint8)
    return PairViews(PreparedView(pixels, mask, mask), PreparedView(pixels[..., 0], mask, mask), mask, mask)


@cache
def feature_names() -> tuple[str, ...]:
    """Return the key of each of the D features, such as "cf.colour.red.mean"."""
    return tuple(plain_names())


@cache
def plain_names() -> dict[str, str]:
    """Return key -> name in plain words of each feature, in the order of `features`."""
    return {key: plain for key, plain, _ in _named_features(_blank_pair())}


# --- Distance


def mmd2(x: np.ndarray, y: np.ndarray, reference: np.ndarray) -> float:
    """Return the squared MMD between two sets of features, after standardisation.

    The estimate is unbiased: its expected value is 0 for two samples of the same distribution, so it may be negative.

    x, y: the features of each set, (n, D) and (m, D), n and m >= 2.
    reference: the features of the set by which x and y are standardised, (r, D); usually the real pairs.
    """
    return unbiased_mmd2(robust_standardize(x, reference), robust_standardize(y, reference))


def null_mmd2(reference: np.ndarray, splits: int = 200, seed: int = 0) -> float:
    """Return the largest squared MMD that is not significantly above 0.

    It is the 95th percentile of the squared MMD between two random subsets, each half of the reference. Distances vary
    more between small sets than between large ones, so the value is conservative for sets larger than these subsets.

    reference: features (r, D), r >= 4; if r > 1000 (the constant `HALVED`), only 1000 evenly spaced rows are used.
    splits: the number of random splits into two subsets.
    seed: the seed of the random splits.
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
    """Return the Frechet distance, >= 0, of two sets of features, x (n, D) and y (m, D), n and m >= 2.

    On features of an Inception network it is the FID (Heusel et al. 2017, arXiv 1706.08500, equation 6). It is biased
    upwards for few samples. It is unreliable if n or m is at most D, because the covariance matrix of at most D
    samples is singular.
    """
    a, b = (np.cov(values, rowvar=False) for values in (x, y))
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    return max(0.0, float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root))


def relative_improvement(before: float, after: float, real: float) -> float:
    """Return the fraction by which a distance has decreased towards the distance between real pairs.

    The fraction is 1 if `after` is at most `real`, 0 without a change, and negative if the distance has increased.
    It is 0 if `before` is not larger than `real`.

    before, after: the distance of generated pairs from real pairs, before and after the change.
    real: the distance between real pairs, from `null_mmd2`.
    """
    return 1 - max(after - real, 0.0) / (before - real) if before > real else 0.0


@dataclass(frozen=True)
class Manifolds:
    """Overlap of the distributions of real and generated pairs.

    Precision and recall are those of Kynkaanniemi et al. 2019 (arXiv 1904.06991), density and coverage those of Naeem
    et al. 2020 (arXiv 2002.09797). The neighbourhood of a pair is the ball around its features that reaches to its k-th
    nearest neighbour in its own set. For two sets of the same distribution, precision and recall depend on the sizes of
    the sets; if the sizes are equal, density is 1 on average and coverage is near 1 - 2^-k.

    precision: the fraction of generated pairs that lie in the neighbourhood of at least one real pair, in [0, 1].
    recall: the fraction of real pairs that lie in the neighbourhood of at least one generated pair, in [0, 1].
    density: the mean number of real neighbourhoods in which a generated pair lies, divided by k; >= 0.
    coverage: the fraction of real pairs whose neighbourhoods contain a generated pair, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: np.ndarray, generated: np.ndarray, k: int = NEIGHBOURS) -> Manifolds:
    """Return precision, recall, density and coverage (PRDC) of generated pairs.

    real, generated: the features of each set, (n, D) and (m, D), n and m > k. Both are standardised by `real`.
    k: the number of nearest neighbours that defines the radius of a neighbourhood.
    """
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
    """Return the distance of each row to its k-th nearest neighbour among the other rows, (n,)."""
    radius = np.empty(len(values))
    for chunk in _chunks(values, values):
        radius[chunk] = np.partition(cdist(values[chunk], values), k, axis=1)[:, k]
    return radius


def _chunks(rows: np.ndarray, others: np.ndarray) -> Iterator[slice]:
    """Return slices that divide `rows` into chunks, each with at most AT_ONCE distances to `others`."""
    length = max(1, AT_ONCE // len(others))
    return (slice(begin, begin + length) for begin in range(0, len(rows), length))


def robust_standardize(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return asinh((values - median) / deviation) of each feature, (n, D).

    The median and the deviation are those of the reference. The deviation is half the difference of the 84th and the
    16th percentile. For a normal distribution this is the standard deviation, but it is robust to outliers. The
    deviation is at least .01, because a feature may be constant in the reference. asinh limits the influence of
    outliers.

    values: features (n, D).
    reference: features (r, D).
    """
    low, median, high = np.quantile(reference, (0.16, 0.5, 0.84), axis=0)
    return np.asarray(np.arcsinh((values - median) / np.maximum((high - low) / 2, _MIN_DEVIATION)))


def unbiased_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased squared MMD (KID paper, eq. 4) of features x (n, D) and y (m, D), n and m >= 2."""
    assert min(len(x), len(y)) > 1, "MMD needs at least two rows in each set"
    within = (_mean_within(_total(rows, rows), ((rows**2).mean(axis=1) + 1) ** 3) for rows in (x, y))
    return float(sum(within) - 2 * _total(x, y) / (len(x) * len(y)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the kernel matrix (n, m) of x (n, D) and y (m, D); the kernel of KID is (x . y / D + 1)^3."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _total(x: np.ndarray, y: np.ndarray) -> float:
    return sum(float(_kernel(x[chunk], y).sum()) for chunk in _chunks(x, y))


def _mean_within(total: float, own: np.ndarray) -> float:
    """Return the mean of the kernel matrix (n, n) of a set with itself, without the diagonal.

    total: the sum of the whole matrix.
    own: the diagonal of the matrix, (n,).
    """
    return float((total - own.sum()) / (len(own) * (len(own) - 1)))
