import dataclasses
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from conftest import prepared_record
from eyes import apply
from refusals import raises_file
from retipair.data.manifest import write_manifest
from retipair.matching.geometry import choose_ranges, fit_ranges
from retipair.matching.warps import TYPICAL, WIDE, WarpRanges, centred, compose, decompose, sample_warp

SIZE = 128
MASK = np.ones((SIZE, SIZE), dtype=bool)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_homography_is_turned_scaled_and_shifted_about_the_centre_of_the_image() -> None:
    quarter_turn = compose(np.pi / 2, 2.0, np.array([0.25, 0.0]), np.zeros(2), 5)
    np.testing.assert_allclose(apply(quarter_turn, np.array([[2.0, 2.0], [3.0, 2.0]])), [[3.25, 2], [3.25, 4]])


def test_what_is_composed_is_decomposed() -> None:
    angle, scale, shift, tilt = 0.3, 0.8, np.array([0.1, -0.2]), np.array([0.02, 0.01])
    to_centred = centred(SIZE, SIZE)
    matrix = to_centred @ compose(angle, scale, shift, tilt, SIZE) @ np.linalg.inv(to_centred)
    for found, true in zip(decompose(matrix), (angle, scale, shift, tilt), strict=True):
        np.testing.assert_allclose(found, true, atol=1e-12)


def test_samples_stay_within_their_ranges() -> None:
    to_centred = centred(SIZE, SIZE)
    for seed in range(200):
        matrix = to_centred @ sample_warp(WIDE, 0, MASK, generator(seed)).homography @ np.linalg.inv(to_centred)
        angle, scale, shift, tilt = decompose(matrix)
        assert abs(np.degrees(angle)) <= WIDE.rotation[1] + 1e-9
        assert WIDE.scale[0] - 1e-9 <= scale <= WIDE.scale[1] + 1e-9
        assert np.hypot(*shift) <= WIDE.shift[1] + 1e-9
        assert np.hypot(*tilt) <= WIDE.perspective[1] * 512 + 1e-9


def test_a_sample_shows_enough_of_the_photograph() -> None:
    far = WarpRanges(rotation=(0, 0), scale=(1, 1), shift=(0.0, 1.0), perspective=(0, 0))
    for seed in range(50):
        shift = sample_warp(far, 0, MASK, generator(seed)).homography[:2, 2] / SIZE
        assert np.prod(1 - np.abs(shift)) >= 0.28  # the overlap is measured on a grid
    hidden = sample_warp(dataclasses.replace(far, shift=(0.9, 1.0)), 0, MASK, generator())
    assert np.isfinite(hidden.homography).all()  # no sample shows enough: one of them is returned


def test_quantiles_are_reproduced() -> None:
    ranges = dataclasses.replace(TYPICAL, scale=(0.9, 1.0, 1.3))
    scales = [
        decompose(centred(SIZE, SIZE) @ sample_warp(ranges, 0, MASK, generator(seed)).homography)[1] * SIZE
        for seed in range(400)
    ]
    assert np.mean(np.array(scales) < 1.0) == pytest.approx(0.5, abs=0.08)
    assert np.mean(np.array(scales) < 1.15) == pytest.approx(0.75, abs=0.08)


def test_a_displacement_is_as_long_as_asked_and_is_inverted() -> None:
    warp = sample_warp(WIDE, 20.0, MASK, generator(3))
    longest = np.linalg.norm(warp.residual(SIZE), axis=2).max()
    assert 0.4 * 20 * SIZE / 512 < longest < 1.4 * 20 * SIZE / 512  # the homography scales it
    positions = warp.inverse(SIZE).reshape(2, -1)[::-1].T
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    np.testing.assert_allclose(warp.transform(positions), np.column_stack([columns.ravel(), rows.ravel()]), atol=1e-3)


def write_raw_geometry(folder: Path, homographies: list[np.ndarray]) -> None:
    """Pairs whose raw CF (600 x 400) was cropped, and whose raw FA (300 x 200) has these transforms from it."""
    crop = np.array([[0.5, 0, -30.25], [0, 0.5, -10.25], [0, 0, 1]])
    records = [
        structs.replace(
            prepared_record(f"{number}", "train"),
            fa_to_cf=(crop @ np.linalg.inv(homography)).tolist(),
            raw_sizes=[[600, 400], [300, 200]],
            raw_cf_to_cf=crop.tolist(),
        )
        for number, homography in enumerate(homographies)
    ]
    folder.mkdir(exist_ok=True)
    write_manifest(folder, records)


def raw_homography(angle: float, scale: float, shift: float, tilt: float) -> np.ndarray:
    """From the raw CF to the raw FA, whose views are 600 and 300 px wide."""
    centred_transform = centred(600, 600) @ compose(angle, scale, np.array([shift, 0]), np.array([0, tilt]), 600)
    matrix = centred_transform @ np.linalg.inv(centred(600, 600))
    return np.asarray(np.linalg.inv(centred(300, 200)) @ matrix @ centred(600, 400))


def test_the_geometry_of_raw_pairs_is_fitted(tmp_path: Path) -> None:
    angles = np.radians([-2, -1, 0, 1, 2])
    homographies = [raw_homography(angle, 0.9 + 0.05 * n, 0.1 * n, 0.01 * n) for n, angle in enumerate(angles.tolist())]
    mirrored = homographies[0] @ np.diag([-1.0, 1, 1])
    write_raw_geometry(tmp_path, [*homographies, mirrored])
    ranges = fit_ranges(tmp_path)
    np.testing.assert_allclose([ranges.rotation[i] for i in (0, 5, 10)], [0, 1, 2], atol=1e-9)
    np.testing.assert_allclose([ranges.scale[i] for i in (0, 5, 10)], [0.9, 1.0, 1.1])
    np.testing.assert_allclose([ranges.shift[i] for i in (0, 5, 10)], [0, 0.2, 0.4], atol=1e-12)
    np.testing.assert_allclose([ranges.perspective[i] * 512 for i in (0, 5, 10)], [0, 0.02, 0.04], atol=1e-12)


def test_too_few_raw_pairs_are_refused_or_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raw_geometry(tmp_path, [np.eye(3)] * 4)
    with raises_file(tmp_path):
        fit_ranges(tmp_path)
    with raises_file(tmp_path):
        choose_ranges("fitted", tmp_path)
    assert capsys.readouterr().out == ""
    assert choose_ranges("auto", tmp_path) == TYPICAL
    assert "--ranges typical" in capsys.readouterr().out
    assert choose_ranges("wide", tmp_path) == WIDE
    write_raw_geometry(tmp_path, [np.eye(3)] * 5)
    assert choose_ranges("auto", tmp_path).scale == pytest.approx((2.0,) * 11)  # the FA is half as wide
