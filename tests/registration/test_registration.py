import numpy as np
import pytest
from PIL import Image
from skimage.transform import ProjectiveTransform, SimilarityTransform, estimate_transform, warp

from eyes import apply, draw_pair, draw_raw
from retipair.registration.align import Limits, _register, align
from retipair.registration.estimate import Registration, match_features, register_features, register_points
from retipair.registration.landmarks import Landmarks
from retipair.registration.patches import patch_shifts
from retipair.registration.pose_search import search_pose
from retipair.registration.refine import refine
from retipair.registration.warp import View, common_square, render, resample, to_square, transform_points


def _corner_error(found: np.ndarray, truth: np.ndarray, size: int) -> float:
    """Median over the frame's corners, px."""
    return float(np.median(_corner_errors(found, truth, size)))


def _worst_corner(found: np.ndarray, truth: np.ndarray, size: int) -> float:
    return float(_corner_errors(found, truth, size).max())


def _corner_errors(found: np.ndarray, truth: np.ndarray, size: int) -> np.ndarray:
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (size - 1)
    return np.linalg.norm(transform_points(found, corners) - transform_points(truth, corners), axis=1)


def test_a_square_keeps_pixel_edges_where_they_were():
    """Resizing by s maps x to (x + 0.5) s - 0.5: 8 px to 16 px moves the first centre from 0 to 0.5."""
    everything = to_square(np.ones((8, 8), dtype=bool), 16)
    assert transform_points(everything, np.array([[0, 0], [7, 7]])) == pytest.approx(
        np.array([[0.5, 0.5], [14.5, 14.5]])
    )
    field = np.zeros((10, 20), dtype=bool)
    field[2:6, 4:12] = True  # 8 wide, 4 high: the square runs from row 0 to row 7
    assert transform_points(to_square(field, 8), np.array([[4, 0], [11, 7]])) == pytest.approx(
        np.array([[0, 0], [7, 7]])
    )


def test_resampling_follows_pixel_centres():
    image = np.zeros((32, 32), dtype=np.uint8)
    image[8:12, 20:24] = 200  # its centre lies at (21.5, 9.5)
    for size in (16, 32, 64, 96):
        to_frame = to_square(np.ones((32, 32), dtype=bool), size)
        small = resample(image, to_frame, size).astype(float)
        rows, columns = np.mgrid[:size, :size]
        centre = np.array([(small * columns).sum(), (small * rows).sum()]) / small.sum()
        assert centre == pytest.approx(transform_points(to_frame, np.array([[21.5, 9.5]]))[0], abs=0.05)


def test_shrinking_does_not_alias():
    checks = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resample(checks, to_square(np.ones((256, 256), dtype=bool), 60), 60)
    assert np.ptp(small[5:-5, 5:-5].astype(int)) < 40


def test_the_native_size_of_a_pair_is_that_of_its_frame_in_each_raw_view():
    eye = draw_raw(seed=1, size=256, jitter=0.3)
    half = Image.fromarray(eye.fa).resize((128, 128), Image.Resampling.BOX)
    small = np.asarray(half), (eye.fa_points + 0.5) / 2 - 0.5
    sides = [
        align(eye.cf, fa, Landmarks(eye.cf_points, points), "points", 128, Limits()).native_size
        for fa, points in ((eye.fa, eye.fa_points), small)
    ]
    assert 200 <= sides[0][0] <= 256
    assert sides[1][0] == pytest.approx(sides[0][0], abs=2)
    assert sides[1][1] == pytest.approx(sides[0][1] / 2, abs=2)


@pytest.mark.nightly
def test_points_alone_are_not_registration_and_vessels_mend_it():
    errors = []
    for seed in range(3):
        eye = draw_raw(seed, size=512, jitter=1.0, wrong=2)
        cf, fa, landmarks = View(eye.cf), View(eye.fa), Landmarks(eye.cf_points, eye.fa_points)
        start = register_points(cf, fa, landmarks)
        refined = refine(cf, fa, start.fa_to_cf, landmarks)
        assert 15 <= start.inliers <= 18
        errors.append([_corner_error(found, eye.fa_to_cf, 512) for found in (start.fa_to_cf, refined)])
    before, after = np.median(errors, axis=0)
    assert after < 1.0 < before


@pytest.mark.slow  # the compromise is searched
def test_vessels_that_mislead_make_good_points_no_worse():
    """An FA that shows the vessels in less than half of the field, and others elsewhere, fits best 30 px off."""
    eye = draw_raw(seed=1, size=512, jitter=1.0, wrong=2)
    shown, others = (draw_pair(seed)[1] for seed in (1, 21))
    lit = np.where(np.arange(512) < 230, shown, others)
    lit = warp(lit, ProjectiveTransform(eye.fa_to_cf), order=3, preserve_range=True).round().astype(np.uint8)
    cf, fa, landmarks = View(eye.cf), View(lit), Landmarks(eye.cf_points, eye.fa_points)
    start = register_points(cf, fa, landmarks).fa_to_cf
    found = (start, refine(cf, fa, start, landmarks), refine(cf, fa, start, None))
    before, after, vessels_alone = (_worst_corner(one, eye.fa_to_cf, 512) for one in found)
    assert vessels_alone > 20
    assert after < before


def test_features_find_their_way_without_points():
    eye = draw_raw(seed=4, size=384)
    cf, fa = View(eye.cf), View(eye.fa)
    start = register_features(cf, fa, match_features(cf, fa))
    assert start.inliers > 20
    assert _corner_error(refine(cf, fa, start.fa_to_cf, None), eye.fa_to_cf, 384) < 1.5


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("angle", "scale"),
    [(30.0, 0.6), *(pytest.param(*pose, marks=pytest.mark.slow) for pose in ((-40.0, 1.0), (0.0, 1.8)))],
)
def test_the_search_finds_any_turn_and_scale_in_its_range(angle, scale):
    """To 15 px at 512 in the field's middle, from where the refinement goes on; some of the FA may lie outside."""
    cf, fa = draw_pair(seed=3, size=512)
    pose = SimilarityTransform(scale=scale, rotation=np.deg2rad(angle))
    centre = np.full(2, 255.5)
    truth = (
        SimilarityTransform(translation=-centre) + pose + SimilarityTransform(translation=centre + np.array([8, -5]))
    )
    turned = warp(fa, truth, order=3, preserve_range=True).round().astype(np.uint8)
    middle = centre + 60 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    found = transform_points(search_pose(View(cf), View(turned)), transform_points(np.linalg.inv(truth.params), middle))
    assert np.linalg.norm(found - middle, axis=1).max() < 15


@pytest.mark.nightly
def test_the_search_and_features_are_weighed_by_what_they_lead_to(monkeypatch):
    """One of the two first guesses is quite wrong; the pair is found by the other, and agrees with its features."""
    eye = draw_raw(seed=4, size=384)
    away = np.array([[1.0, 0, 60], [0, 1, -40], [0, 0, 1]]) @ eye.fa_to_cf
    wrong = {"search_pose": lambda *_: away, "register_features": lambda *_: Registration(away, 30)}
    for name, guess in wrong.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"retipair.registration.align.{name}", guess)
            aligned = align(eye.cf, eye.fa, Landmarks(eye.cf_points, eye.fa_points), "features", 512, Limits())
        assert aligned.refused is None
        assert aligned.residual_px < 1
        assert aligned.inliers > 20


GRID = np.stack(np.meshgrid(np.linspace(80, 431, 9), np.linspace(80, 431, 9)), axis=-1).reshape(-1, 2)
GRID = GRID[np.hypot(*(GRID - 255.5).T) < 200]


@pytest.mark.parametrize("bend", [pytest.param(3.0, marks=pytest.mark.slow), 6.0])
@pytest.mark.parametrize("how", ["points", pytest.param("features", marks=pytest.mark.nightly)])
def test_an_eye_whose_curvature_no_homography_fits_is_registered_as_well_as_can_be(how, bend):
    """Errors against the truth on a grid, px at 512: a homography must leave some places `bend` px off."""
    eye = draw_raw(seed=2, size=512, jitter=1.0, bend=bend)
    landmarks = Landmarks(eye.cf_points, eye.fa_points) if how == "points" else None
    found = _register(View(eye.cf), View(eye.fa), landmarks, how).refined
    errors = np.linalg.norm(transform_points(found, GRID) - eye.on_cf(GRID), axis=1)
    print(f"{how}, bend {bend:g}: {np.median(errors):.2f} px (median), {errors.max():.2f} (most)")
    assert np.median(errors) < 0.3 * bend
    assert errors.max() < 1.3 * bend


def test_a_bent_eye_is_bent_as_much_as_it_says():
    """And no homography undoes it: the best one, by least squares, leaves nearly all of it."""
    eye = draw_raw(seed=2, size=512, points=200, bend=6.0)
    assert eye.on_cf(eye.fa_points) == pytest.approx(eye.cf_points, abs=0.01)
    inside = np.hypot(*(GRID - 255.5).T) < 250
    displaced = np.linalg.norm(eye.bend(GRID[inside]), axis=1)
    assert 2 < displaced.max() <= 6
    best = estimate_transform("projective", GRID, GRID + eye.bend(GRID))
    assert np.linalg.norm(best(GRID) - GRID - eye.bend(GRID), axis=1).max() > 0.5 * displaced.max()


def _detail(share: float, cf_is_detail: bool) -> tuple[np.ndarray, np.ndarray, Landmarks]:
    """A view, `share` as wide as the other, with 16 exact points."""
    cf, fa = draw_pair(seed=3, size=1600)
    side, corner = int(1600 * share), np.array([700, 500]) if share < 0.4 else np.array([300, 300])
    on_detail = np.random.default_rng(0).uniform(0.1, 0.9, (16, 2)) * side
    window = slice(corner[1], corner[1] + side), slice(corner[0], corner[0] + side)
    if cf_is_detail:
        return cf[window], fa, Landmarks(on_detail, on_detail + corner)
    return cf, fa[window], Landmarks(on_detail + corner, on_detail)


@pytest.mark.nightly
@pytest.mark.parametrize("cf_is_detail", [False, pytest.param(True, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("share", [0.27, pytest.param(0.2, marks=pytest.mark.slow)])
def test_points_that_agree_are_believed_at_any_scale(share, cf_is_detail):
    cf, fa, landmarks = _detail(share, cf_is_detail)
    wrong = Landmarks(landmarks.cf, landmarks.fa[::-1])
    assert register_points(View(cf), View(fa), landmarks).inliers == 16
    assert register_points(View(cf), View(fa), wrong).inliers < 7
    aligned = align(cf, fa, landmarks, "points", 512, Limits())
    assert aligned.refused is None
    assert aligned.residual_px < 1
    assert aligned.pair.mask.mean() > 0.5  # the frame is that of the detail


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize("zoom", [1.0, 0.25])
def test_nonsense_is_not_believed_at_any_scale(count, zoom):
    """Random points, of which RANSAC finds the few that agree by chance: less than the share that prepare asks for."""
    view = View(np.full((512, 512), 100, dtype=np.uint8))
    most = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cf, fa = rng.uniform(0, 511, (count, 2)), 256 + zoom * rng.uniform(-255, 255, (count, 2))
        most.append(register_points(view, view, Landmarks(cf, fa)).inliers)
    assert np.mean([inliers >= max(4, 0.4 * count) for inliers in most]) <= (0.5 if count == 4 else 0.1)


@pytest.mark.slow  # four registrations by features
def test_fields_of_view_too_far_apart_for_features_are_refused_by_that():
    cf, fa, _ = _detail(0.2, cf_is_detail=True)
    assert "twice as wide" in str(align(cf, fa, None, "features", 512, Limits()).refused)


@pytest.mark.parametrize(
    "how", [pytest.param("points", marks=pytest.mark.nightly), pytest.param("features", marks=pytest.mark.slow)]
)
def test_a_mirrored_fa_is_refused_as_such_or_turned(how):
    eye = draw_raw(seed=4, size=384, jitter=0.3)
    mirrored = np.ascontiguousarray(eye.fa[:, ::-1])
    landmarks = Landmarks(eye.cf_points, np.array([383, 0]) + np.array([-1, 1]) * eye.fa_points)
    refused = align(eye.cf, mirrored, landmarks, how, 512, Limits())
    assert "mirrored" in str(refused.refused)
    assert "--allow_mirror" in str(refused.refused)
    turned = align(eye.cf, mirrored, landmarks, how, 512, Limits(allow_mirror=True))
    upright = align(eye.cf, eye.fa, Landmarks(eye.cf_points, eye.fa_points), how, 512, Limits())
    assert turned.refused is None
    assert "mirrored" in str(turned.doubt)
    assert np.linalg.det(turned.fa_to_frame) < 0 < np.linalg.det(upright.fa_to_frame)
    assert turned.residual_px == pytest.approx(upright.residual_px)
    assert np.array_equal(turned.pair.fa, upright.pair.fa)


@pytest.mark.nightly
def test_what_features_leave_is_measured_by_vessels_and_doubted():
    """The truth and the truth 4, 8 and 30 px off, as a wrong guess would leave it."""
    eye = draw_raw(seed=4, size=512)
    found = []
    for px in (0, 4, 8, 30):
        off = np.array([[1.0, 0, px], [0, 1, 0], [0, 0, 1]]) @ eye.fa_to_cf
        frame = common_square(View(eye.cf), View(eye.fa), off, 512)
        pair = render(View(eye.cf), View(eye.fa), frame, frame @ off, 512)
        found.append(float(np.median(patch_shifts(pair.cf, pair.fa, pair.mask))))
    scale = 1 / 0.97  # about: the frame is the field's square
    assert found[0] < 0.5
    assert found[1:3] == pytest.approx([4 * scale, 8 * scale], abs=1.0)
    assert found[3] > 10


def test_a_registration_that_fits_only_one_side_of_the_field_is_refused(monkeypatch):
    """It is right at the left and 35 px off at the right, which the correlation over all of the field tolerates."""
    eye = draw_raw(seed=4, size=512)
    stretched = np.array([[1.1, 0, -0.1 * 150], [0, 1, 0], [0, 0, 1]]) @ eye.fa_to_cf
    monkeypatch.setattr("retipair.registration.align.refine", lambda cf, fa, guess, landmarks: guess)
    for guess in ("search_pose", "register_features"):
        found = stretched if guess == "search_pose" else Registration(stretched, 30)
        monkeypatch.setattr(f"retipair.registration.align.{guess}", lambda *_, found=found: found)
    aligned = align(eye.cf, eye.fa, None, "features", 512, Limits(min_consistency=-1))
    assert "of the vessel patches fit within" in str(aligned.refused)


def test_four_points_give_a_start_that_does_not_fly_off():
    eye = draw_raw(seed=5, size=256, points=4, jitter=1.0)
    landmarks = Landmarks(eye.cf_points, eye.fa_points)
    start = register_points(View(eye.cf), View(eye.fa), landmarks)
    assert _corner_error(start.fa_to_cf, eye.fa_to_cf, 256) < 15


def test_refinement_keeps_what_it_cannot_mend():
    flat = np.full((128, 128), 100, dtype=np.uint8)
    view = View(np.repeat(flat[..., None], 3, axis=2))
    assert refine(view, View(flat), np.eye(3), None) == pytest.approx(np.eye(3))


def test_views_that_share_nothing_get_a_frame_all_the_same():
    view = View(np.full((64, 64), 100, dtype=np.uint8))
    away = np.array([[1.0, 0, 1000], [0, 1, 0], [0, 0, 1]])
    assert common_square(view, view, away, 64) == pytest.approx(np.eye(3))


@pytest.fixture(scope="module")
def eye():
    return draw_raw(seed=6, size=256, jitter=0.3)


def test_aligned_views_share_a_frame_and_points_are_carried_along(eye):
    landmarks = Landmarks(eye.cf_points, eye.fa_points)
    aligned = align(eye.cf, eye.fa, landmarks, "points", 128, Limits())
    assert aligned.refused is None
    assert aligned.pair.cf.shape == (128, 128, 3)
    assert aligned.pair.fa.shape == aligned.pair.mask.shape == (128, 128)
    assert not aligned.pair.cf[~aligned.pair.mask].any()
    assert not aligned.pair.fa[~aligned.pair.mask].any()
    assert aligned.points[:, 2:] == pytest.approx(apply(aligned.fa_to_frame, eye.fa_points))
    distances = np.linalg.norm(aligned.points[:, :2] - aligned.points[:, 2:], axis=1)
    assert aligned.residual_px == pytest.approx(np.median(distances))
    assert aligned.consistency >= aligned.consistency_before


def test_nonsense_points_are_refused_with_their_number(eye):
    points = np.random.default_rng(0).uniform(40, 200, eye.fa_points.shape)
    aligned = align(eye.cf, eye.fa, Landmarks(eye.cf_points, points), "points", 128, Limits())
    assert aligned.refused is not None
    assert "of 20 points agree" in aligned.refused


def test_a_residual_beyond_the_limit_is_refused(eye):
    aligned = align(
        eye.cf, eye.fa, Landmarks(eye.cf_points, eye.fa_points), "points", 128, Limits(max_residual_px=0.01)
    )
    assert "median residual" in str(aligned.refused)


def test_the_advice_for_an_fa_without_filled_vessels_leads_to_another_fa(eye):
    """Not back to a registration without points, whose advice is to place points."""
    noise = np.random.default_rng(0).normal(40, 8, eye.fa.shape).clip(10, 255)
    early = np.where(eye.fa > 8, noise, 0).astype(np.uint8)  # before the dye arrives
    aligned = align(eye.cf, early, Landmarks(eye.cf_points, eye.fa_points), "matches", 128, Limits())
    assert "that dye fills the FA's veins" in str(aligned.refused)
    assert "without matches" not in str(aligned.refused)


@pytest.mark.nightly
def test_views_of_two_eyes_are_refused(eye):
    other = draw_raw(seed=7, size=256)
    aligned = align(eye.cf, other.fa, None, "features", 128, Limits())
    assert "use an FA in which dye fills the veins, or place points" in str(aligned.refused)


def test_views_that_are_aligned_stay_as_they_are(eye):
    grey = eye.cf[..., 1]
    aligned = align(eye.cf, grey, None, "none", 256, Limits())
    assert aligned.inliers is None
    assert aligned.residual_px is None
    assert aligned.consistency < 0  # a copy of the CF's vessels is dark where an angiogram's would be bright
    side = 256 / aligned.fa_to_frame[0, 0]
    assert aligned.fa_to_frame[1, 1] == pytest.approx(256 / side)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("seed", "scale"), [(4, 0.8), *(pytest.param(seed, 0.5, marks=pytest.mark.nightly) for seed in (1, 3, 5))]
)
def test_points_of_images_of_another_size_are_doubted(seed: int, scale: float) -> None:
    """They agree with one another, so that their residual is small, and some are close enough to be kept."""
    eye = draw_raw(seed=seed, points=20, jitter=1.0)
    right = align(eye.cf, eye.fa, Landmarks(eye.cf_points, eye.fa_points), "points", 512, Limits())
    assert (right.refused, right.doubt) == (None, None)
    scaled = Landmarks(scale * eye.cf_points, scale * eye.fa_points)
    aligned = align(eye.cf, eye.fa, scaled, "points", 512, Limits())
    assert aligned.residual_px is not None
    assert aligned.residual_px < 5
    text = "of its vessel patches fit within 5 px at 512; were its points placed on resized images?"
    assert text in str(aligned.doubt)


def test_aligned_views_that_are_off_are_doubted() -> None:
    cf, fa = draw_pair(3)
    assert align(cf, fa, None, "none", 512, Limits()).doubt is None
    aligned = align(cf, np.roll(fa, 6, axis=1), None, "none", 512, Limits())
    assert (aligned.refused, aligned.residual_px) == (None, None)
    assert "of its vessel patches fit" in str(aligned.doubt)
