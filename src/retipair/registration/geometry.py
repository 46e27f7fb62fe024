"""Aligning the moving FA to the fixed CF: by landmarks or features, then by vessels. All that uses OpenCV.

Transforms are (3, 3) homographies between pixel centres: the centre of the top-left pixel is (0, 0), so
resizing by s maps x to (x + 0.5) s - 0.5. A view's *work frame* is the square around its field of view at
512 px, the scale at which vessel widths and every threshold here were measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.optimize import minimize

from retipair.data.pair import Pair
from retipair.registration.landmarks import Landmarks
from retipair.vision.field_of_view import erode, field_of_view
from retipair.vision.ridges import correlation, vesselness

WORK_SIZE = 512
_LANDMARKS_AGREE_PX = 8.0  # placed by hand they scatter by about 2.5 px; three times that is no scatter
_FEATURES_AGREE_PX = 6.0  # placed by vessels they scatter less, but many are nonsense
_DETAIL = 2.0  # times the scale: one view shows a detail of the other
_ENOUGH = 8  # a homography through fewer landmarks follows their jitter far outside them
_CONTRADICTS_PX = 3.8  # vessels that leave half the landmarks further off than this are not believed alone
_FINEST_PX = 0.5  # landmarks that seem to scatter less are few, or lucky
_INDEPENDENT = 700  # places in a vesselness map: how heavily its correlation weighs against the landmarks
_RATIO = 0.85  # Lowe's ratio test; vessels look alike, so it is lenient and RANSAC judges
_BLURS = (8.0, 4.0, 2.0, 1.0)  # px: coarse to fine, the coarsest as wide as a landmark is wrong
_RIM = 10.0  # px: the field's edge is a ridge too
_CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32) * (WORK_SIZE - 1)


@dataclass(frozen=True)
class View:
    """A raw view (H, W, 3) or (H, W) uint8."""

    image: np.ndarray

    @cached_property
    def field(self) -> np.ndarray:
        """Where it shows the eye, (H, W) bool; everywhere if that cannot be seen."""
        field = field_of_view(self.image)
        return field if field.any() else np.ones_like(field)

    @cached_property
    def to_work(self) -> np.ndarray:
        """Raw px -> work px, (3, 3)."""
        return to_square(self.field, WORK_SIZE)


@dataclass(frozen=True)
class Registration:
    """`fa_to_cf` (3, 3) maps raw FA to raw CF; `inliers` landmarks or features agree with it."""

    fa_to_cf: np.ndarray
    inliers: int


def move(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) through a homography (3, 3) -> (N, 2)."""
    moved = np.column_stack([points, np.ones(len(points))]) @ homography.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def residuals(homography: np.ndarray, landmarks: Landmarks) -> np.ndarray:
    """How far each FA landmark, moved, lies from the CF's, (N,) raw CF px."""
    return np.asarray(np.linalg.norm(move(homography, landmarks.fa) - landmarks.cf, axis=1))


def single_threaded() -> None:
    """Keep OpenCV to one thread: for processes that share the machine."""
    cv2.setNumThreads(1)


# --- First guess


def register_points(cf: View, fa: View, landmarks: Landmarks) -> Registration:
    """The homography most landmarks agree on (RANSAC), or a partial affine where too few do.

    It neither mirrors nor folds the field. Where one view shows a detail of the other, errors are measured in the
    detail's px, and matches must agree both ways: a homography that shrinks a field to a point fits any points.
    """
    fa_points, cf_points = move(fa.to_work, landmarks.fa), move(cf.to_work, landmarks.cf)
    if _spread(fa_points) > _DETAIL * _spread(cf_points):
        cf_to_fa, inliers = _agreed(cf_points, fa_points, _LANDMARKS_AGREE_PX)
        return Registration(to_raw(cf, fa, np.linalg.inv(cf_to_fa)), inliers)
    work, inliers = _agreed(fa_points, cf_points, _LANDMARKS_AGREE_PX)
    return Registration(to_raw(cf, fa, work), inliers)


def register_features(cf: View, fa: View, features: Landmarks) -> Registration:
    """The homography most of the matched `features` agree on; without any, 0 inliers."""
    work, inliers = _agreed(move(fa.to_work, features.fa), move(cf.to_work, features.cf), _FEATURES_AGREE_PX)
    return Registration(to_raw(cf, fa, work), inliers)


def match_features(cf: View, fa: View) -> Landmarks:
    """SIFT features of both vesselness maps that match by Lowe's ratio test, raw px; many are wrong."""
    on_fa, on_cf = _matches(vessel_map(fa, fa.to_work), vessel_map(cf, cf.to_work))
    return Landmarks(move(np.linalg.inv(cf.to_work), on_cf), move(np.linalg.inv(fa.to_work), on_fa))


def count_agreeing(cf: View, fa_to_cf: np.ndarray, features: Landmarks) -> int:
    """How many of the matched `features` agree with a transform (3, 3), raw FA px -> raw CF px."""
    return int((residuals(fa_to_cf, features) * cf.to_work[0, 0] <= _FEATURES_AGREE_PX).sum())


def distance(cf: View, fa: View, a: np.ndarray, b: np.ndarray) -> float:
    """How far apart two transforms (3, 3), raw FA px -> raw CF px, put what the FA shows: median, px at 512."""
    rows, columns = np.nonzero(fa.field[::16, ::16])
    places = 16.0 * np.column_stack([columns, rows])
    apart = np.linalg.norm(move(a, places) - move(b, places), axis=1)
    return float(np.median(apart) * cf.to_work[0, 0])


def to_raw(cf: View, fa: View, work: np.ndarray) -> np.ndarray:
    """FA work px -> CF work px becomes raw FA px -> raw CF px, (3, 3) each."""
    fa_to_cf = np.linalg.inv(cf.to_work) @ work @ fa.to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def _spread(points: np.ndarray) -> float:
    """Median distance from the median, of points (N, 2): a few wrong ones change little."""
    return float(np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1)))


def _agreed(moving: np.ndarray, fixed: np.ndarray, within: float) -> tuple[np.ndarray, int]:
    """The transform (3, 3) most matches (N, 2) agree on, and the number of those `within` px of it."""
    if len(moving) < 4:
        return np.eye(3), 0
    homography, agree = cv2.findHomography(moving, fixed, cv2.RANSAC, within, maxIters=5000)
    inliers = _believed(homography, agree, moving, fixed, within)
    if inliers >= _ENOUGH:
        return homography, inliers
    affine, agree = cv2.estimateAffinePartial2D(moving, fixed, method=cv2.RANSAC, ransacReprojThreshold=within)
    affine = None if affine is None else np.vstack([affine, [0, 0, 1]])
    agreed = _believed(affine, agree, moving, fixed, within)
    if affine is not None and agreed and agreed >= inliers:
        return affine, agreed
    return (homography, inliers) if inliers and _is_mild(homography) else (np.eye(3), 0)


def _believed(
    transform: np.ndarray | None, agree: np.ndarray, moving: np.ndarray, fixed: np.ndarray, within: float
) -> int:
    """How many matches (N, 2) agree with what RANSAC found, 0 if no camera sees an eye so.

    A large change of scale is believed where the matches agree both ways: what shrinks a field to a point fits any.
    """
    if transform is None or _is_mild(transform):
        return 0 if transform is None else int(agree.sum())
    depth, area = _depth_and_area(transform, moving[agree.ravel() > 0])
    if 1 / 9 < np.median(area) < 9 or (area <= 0).any() or (depth / depth[0] <= 0).any():
        return 0
    there, back = move(transform, moving) - fixed, move(np.linalg.inv(transform), fixed) - moving
    return int((np.maximum(np.linalg.norm(there, axis=1), np.linalg.norm(back, axis=1)) <= within).sum())


def _is_mild(homography: np.ndarray) -> bool:
    """Whether a work frame is neither mirrored nor folded nor made thrice as large or small, here or there."""
    depth, area = _depth_and_area(homography, _CORNERS)
    return bool((area > 1 / 9).all() and (area < 9).all() and (depth / depth[0] > 0).all())


def _depth_and_area(homography: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At points (N, 2): the homogeneous coordinate, and the determinant of the Jacobian, (N,) each."""
    depth = homography[2, :2] @ points.T + homography[2, 2]
    return depth, np.linalg.det(homography) / depth**3


def _matches(fa_ridges: np.ndarray, cf_ridges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features that match by Lowe's ratio test, (N, 2) each."""
    sift = cv2.SIFT.create(nfeatures=2000, contrastThreshold=0.02)
    (fa_keys, fa_words), (cf_keys, cf_words) = (
        sift.detectAndCompute(_to_uint8(ridges), None) for ridges in (fa_ridges, cf_ridges)
    )
    if len(fa_keys) < 2 or len(cf_keys) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(fa_words, cf_words, k=2)
    good = [first for first, second in nearest if first.distance < _RATIO * second.distance]
    on_fa = np.array([fa_keys[match.queryIdx].pt for match in good])
    on_cf = np.array([cf_keys[match.trainIdx].pt for match in good])
    return on_fa.reshape(-1, 2), on_cf.reshape(-1, 2)


def _to_uint8(ridges: np.ndarray) -> np.ndarray:
    return np.clip(255 * ridges / (np.percentile(ridges, 99.5) + 1e-6), 0, 255).astype(np.uint8)


# --- Refinement


def refine(cf: View, fa: View, fa_to_cf: np.ndarray, landmarks: Landmarks | None) -> np.ndarray:
    """Pull the vessels of both views together, (3, 3) -> (3, 3); what came in where that does not help.

    ECC (Evangelidis and Psarakis 2008, doi 10.1109/TPAMI.2008.113) on vesselness maps blurred by 8 to 1 px. A
    step is kept where it raises the correlation of the unblurred maps by more than it costs the landmarks, whose
    scatter about `fa_to_cf` says how far they may be left: where few vessels are lit, a wrong homography can
    correlate best. Half the landmarks may stay about 4 px off (at 512) at most. Where more would, or where the
    landmarks hold the vessels back altogether, the best compromise of both is searched.
    """
    cf_to_work = _work_frame(cf, fa, fa_to_cf)
    fa_to_work = cf_to_work @ fa_to_cf
    both = inside_field(cf, cf_to_work) & inside_field(fa, fa_to_work)
    maps = _Ridges(vessel_map(cf, cf_to_work), vessel_map(fa, fa_to_work), both)
    if landmarks is None:
        return _then(_climb(maps, maps.correlation), cf_to_work, fa_to_work)
    in_work = Landmarks(move(cf_to_work, landmarks.cf), move(fa_to_work, landmarks.fa))
    score = _weighed(maps, in_work)
    climbed = _climb(maps, score)
    refined = _then(climbed, cf_to_work, fa_to_work)
    frame = common_square(cf, fa, refined, WORK_SIZE)
    limit = _CONTRADICTS_PX / frame[0, 0]  # raw CF px
    held_back = _stays(climbed) and not _stays(_climb(maps, maps.correlation))
    if not held_back and np.median(residuals(refined, landmarks)) <= limit:
        return refined
    return _then(_compromise(score, climbed, in_work, limit * cf_to_work[0, 0]), cf_to_work, fa_to_work)


def _work_frame(cf: View, fa: View, fa_to_cf: np.ndarray) -> np.ndarray:
    """Raw CF px -> the frame to refine in, (3, 3): the CF's work frame, or where the FA shows a detail, that detail."""
    common = common_square(cf, fa, fa_to_cf, WORK_SIZE)
    return common if common[0, 0] > _DETAIL * cf.to_work[0, 0] else cf.to_work


_Score = Callable[[np.ndarray], float]
"""How good a step (3, 3) in the work frame is."""


@dataclass(frozen=True)
class _Ridges:
    """Vesselness in the CF's work frame, (512, 512) float32 each, and where both views are valid, bool."""

    fixed: np.ndarray
    moving: np.ndarray
    both: np.ndarray

    def correlation(self, step: np.ndarray) -> float:
        """In [-1, 1], after `step` (3, 3) has moved the moving map."""
        moved = cv2.warpPerspective(self.moving, step, (WORK_SIZE, WORK_SIZE))
        return correlation(self._fixed_seen, moved[self.both]) if self.both.any() else 0.0

    @cached_property
    def _fixed_seen(self) -> np.ndarray:
        return self.fixed[self.both]


def _then(step: np.ndarray, cf_to_work: np.ndarray, fa_to_work: np.ndarray) -> np.ndarray:
    """Raw FA -> raw CF by way of the work frame and one step in it."""
    fa_to_cf = np.linalg.inv(cf_to_work) @ step @ fa_to_work
    return np.asarray(fa_to_cf / fa_to_cf[2, 2])


def inside_field(view: View, to_work: np.ndarray) -> np.ndarray:
    """Where a view shows the eye in a work frame, but for the field's rim, (512, 512) bool."""
    return erode(resample(view.field, to_work, WORK_SIZE), _RIM)


def vessel_map(view: View, to_work: np.ndarray) -> np.ndarray:
    """Vesselness in a work frame, (512, 512) float32, 0 at the field's rim and beyond."""
    field = resample(view.field, to_work, WORK_SIZE)
    return vesselness(resample(view.image, to_work, WORK_SIZE), field) * erode(field, _RIM).astype(np.float32)


def _weighed(maps: _Ridges, landmarks: Landmarks) -> _Score:
    """The correlation after a step, less what it costs the landmarks, whose first guess is the identity.

    Both as log-likelihoods: a landmark costs its squared residual over twice the variance, as much as the
    correlation of _INDEPENDENT places. Only those count that agreed on the first guess: the others may be nonsense.
    """
    agree = residuals(np.eye(3), landmarks) <= _LANDMARKS_AGREE_PX
    agreed = Landmarks(landmarks.cf[agree], landmarks.fa[agree])

    def squares(step: np.ndarray) -> float:
        return float((residuals(step, agreed) ** 2).sum())

    # n points have 2 n coordinates, 8 of which a homography fits.
    variance = max(squares(np.eye(3)) / max(2 * int(agree.sum()) - 8, 2), _FINEST_PX**2)
    return lambda step: maps.correlation(step) - squares(step) / (2 * variance * _INDEPENDENT)


def _climb(maps: _Ridges, score: _Score) -> np.ndarray:
    """Coarse to fine, the step with the highest score, (3, 3); the identity if none raises it."""
    best, highest = np.eye(3), score(np.eye(3))
    for blur in _BLURS:
        step = _ecc(maps, best, blur)
        if step is not None and score(step) > highest:
            best, highest = step, score(step)
    return best


def _stays(step: np.ndarray) -> bool:
    return np.array_equal(step, np.eye(3))


def _ecc(maps: _Ridges, start: np.ndarray, blur: float) -> np.ndarray | None:
    """One run of ECC from `start`, (3, 3), on maps blurred by `blur` px; None where it does not converge."""
    fixed, moving = (cv2.GaussianBlur(ridges, (0, 0), blur) for ridges in (maps.fixed, maps.moving))
    backward = np.linalg.inv(start).astype(np.float32)  # ECC asks where each fixed pixel comes from
    until = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-5)
    mask = maps.both.astype(np.uint8)
    try:
        _, found = cv2.findTransformECC(fixed, moving, backward, cv2.MOTION_HOMOGRAPHY, until, mask, 1)
    except cv2.error:  # OpenCV's way to say that it diverged: a finer or coarser scale may not
        return None
    step = np.linalg.inv(np.asarray(found, dtype=np.float64))
    return step / step[2, 2] if _is_mild(step / step[2, 2]) else None


def _compromise(score: _Score, climbed: np.ndarray, landmarks: Landmarks, limit: float) -> np.ndarray:
    """The step with the highest score that leaves half the landmarks within `limit` work px, (3, 3).

    A field is not flat, so that no one homography may suit vessels and landmarks everywhere. The step is
    searched by its four corners (Powell's method) from what the landmarks want, what the vessels want, and
    the middle.
    """

    def step_of(shifts: np.ndarray) -> np.ndarray:
        return cv2.getPerspectiveTransform(_CORNERS, _CORNERS + shifts.reshape(4, 2).astype(np.float32))

    def cost(shifts: np.ndarray) -> float:
        step = step_of(shifts)
        return 0.5 * max(0.0, float(np.median(residuals(step, landmarks))) - limit) - score(step)

    # Within 30 px, so that the corners cannot fold over one another.
    bounds = [(-30.0, 30.0)] * 8
    options = {"maxiter": 15, "xtol": 0.05, "ftol": 1e-4}
    wanted = np.clip((move(climbed, _CORNERS) - _CORNERS).ravel(), -30, 30)
    starts = (share * wanted for share in ((0.0, 0.5, 1.0) if wanted.any() else (0.0,)))
    found = [minimize(cost, start, method="Powell", bounds=bounds, options=options) for start in starts]
    return step_of(min(found, key=lambda result: float(result.fun)).x)


# --- The frame both views share


def common_square(cf: View, fa: View, fa_to_cf: np.ndarray, size: int) -> np.ndarray:
    """Raw CF px -> the frame of `size` px around what both views show (the CF, if nothing), (3, 3)."""
    height, width = cf.field.shape
    moved = cv2.warpPerspective(fa.field.astype(np.uint8), fa_to_cf, (width, height), flags=cv2.INTER_NEAREST)
    both = cf.field & (moved > 0)
    return to_square(both if both.any() else cf.field, size)


def render(cf: View, fa: View, cf_to_frame: np.ndarray, fa_to_frame: np.ndarray, size: int) -> Pair:
    """Both views in one frame of `size` px, each resampled once, black where either is not valid."""
    mask = resample(cf.field, cf_to_frame, size) & resample(fa.field, fa_to_frame, size)
    moved_cf, moved_fa = resample(cf.image, cf_to_frame, size), resample(fa.image, fa_to_frame, size)
    return Pair(moved_cf * mask[..., None], moved_fa * mask, mask)


def to_square(field: np.ndarray, size: int) -> np.ndarray:
    """The map from the smallest square around `field`, (H, W) bool, to one of `size` px, (3, 3)."""
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    first, last = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    side = float((last - first).max() + 1)
    # The square's edge, half a pixel before its first pixel's centre, becomes -0.5.
    edge = (first + last - side) / 2
    scale = size / side
    x, y = -edge * scale - 0.5
    return np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]])


def resample(image: np.ndarray, homography: np.ndarray, size: int) -> np.ndarray:
    """A view or mask (H, W) or (H, W, 3) through `homography` into a frame of `size` px, black outside.

    Bicubic, blurred first where it shrinks, so that nothing aliases; masks are linear and cut at one half.
    """
    how = cv2.INTER_LINEAR if image.dtype == bool else cv2.INTER_CUBIC
    values = image.astype(np.float32) if image.dtype == bool else image
    if (shrink := 1 / _scale_of(homography, image.shape)) > 1.05:
        values = cv2.GaussianBlur(values, (0, 0), (shrink - 1) / 2)
    moved = cv2.warpPerspective(values, homography, (size, size), flags=how)
    return np.asarray(moved > 0.5 if image.dtype == bool else moved)


def _scale_of(homography: np.ndarray, shape: tuple[int, ...]) -> float:
    """How much `homography` enlarges at the centre of an image of this shape."""
    x, y = shape[1] / 2, shape[0] / 2
    origin, right, below = move(homography, np.array([[x, y], [x + 1, y], [x, y + 1]]))
    return float(np.sqrt(abs(np.linalg.det(np.stack([right - origin, below - origin])))))
