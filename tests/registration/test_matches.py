"""Matches of networks are read under the names that their libraries give them; what cannot be used is refused."""

import pickle
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from refusals import raises_file
from retipair.registration.matches import read_matches
from retipair.runtime.errors import DamagedError, FileError, MissingError

CF = np.array([[1.0, 2], [30, 40], [50, 6], [7, 80], [9, 10]])
FA = CF[::-1] + 0.5
SHAPES = (100, 120, 3), (90, 60)


def read(path: Path, **arrays: Any) -> tuple[np.ndarray, np.ndarray]:
    np.savez(path, **arrays)
    matches = read_matches(path, *SHAPES)
    return matches.cf, matches.fa


@pytest.mark.parametrize(
    "arrays",
    [
        {"cf": CF, "fa": FA, "confidence": np.full(5, np.nan), "names": np.array(["a", "b"])},
        {"keypoints0": CF.astype(np.float32), "keypoints1": FA.astype(np.float32)},
        {"mkpts0_f": CF, "mkpts1_f": FA},
        {"mkpts0": CF, "mkpts1": FA, "mconf": np.ones(5)},
        {"keypoints0": CF, "keypoints1": np.vstack([[0, 0], FA]), "matches": np.array([1, 2, 3, 4, 5])},
        {"keypoints0": np.vstack([CF, [3, 3]]), "keypoints1": FA, "matches0": np.array([0, 1, 2, 3, 4, -1])},
        {"keypoints0": CF[::-1], "keypoints1": FA, "matches": np.array([[4, 0], [3, 1], [2, 2], [1, 3], [0, 4]])},
    ],
    ids=["ours", "keypoints", "loftr", "loftr2", "superglue", "matches0", "lightglue"],
)
def test_the_names_of_the_libraries_are_known(arrays: dict[str, Any], tmp_path: Path) -> None:
    cf, fa = read(tmp_path / "m.npz", **arrays)
    assert np.array_equal(cf, CF)
    assert np.array_equal(fa, FA)
    assert cf.dtype == fa.dtype == np.float64


def test_a_matcher_may_find_nothing(tmp_path: Path) -> None:
    for empty in (np.empty((0, 2)), np.array([])):
        cf, fa = read(tmp_path / "m.npz", cf=empty, fa=empty)
        assert cf.shape == fa.shape == (0, 2)
    cf, fa = read(tmp_path / "m.npz", keypoints0=CF, keypoints1=FA, matches=np.full(5, -1))
    assert cf.shape == fa.shape == (0, 2)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"points": CF}, "arrays found: points"),
        ({"cf": CF}, "save two arrays"),
        ({"cf": CF, "fa": np.where(FA > 40, np.nan, FA)}, "fa contains NaN"),
        ({"cf": CF, "fa": np.where(FA > 40, np.inf, FA)}, "infinity"),
        ({"cf": CF, "fa": FA[:4]}, "5 points but fa has 4"),
        ({"cf": CF.T, "fa": FA.T}, r"the shape \(2, 5\)"),
        ({"cf": CF[None], "fa": FA[None]}, r"the shape \(1, 5, 2\)"),
        ({"cf": CF.astype(str), "fa": FA}, "save x and y as numbers"),
        ({"cf": CF.astype(bool), "fa": FA}, "save x and y as numbers"),
        ({"cf": CF.astype(complex), "fa": FA}, "save x and y as numbers"),
        ({"cf": CF * 10, "fa": FA}, "outside its 120 x 100 px image"),
        ({"cf": CF, "fa": FA + np.array([15, 0])}, "outside its 60 x 90 px image"),
        ({"cf": CF / 100, "fa": FA}, "not fractions"),
        ({"keypoints0": CF, "keypoints1": FA, "matches": np.array([9, 0, 1, 2, 3])}, "does not fit"),
        ({"keypoints0": CF, "keypoints1": FA, "matches": np.array([0.5, 0, 1, 2, 3])}, "does not fit"),
        ({"keypoints0": CF, "keypoints1": FA, "matches": np.array([0, 1])}, "does not fit"),
    ],
)
def test_arrays_that_are_no_matches_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=said) as caught:
        read(tmp_path / "m.npz", **arrays)
    assert caught.value.path == tmp_path / "m.npz"
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    with raises_file(tmp_path / "none.npz", MissingError):
        read_matches(tmp_path / "none.npz", *SHAPES)
    with raises_file(tmp_path):
        read_matches(tmp_path, *SHAPES)
    path = tmp_path / "m.npz"
    np.save(tmp_path / "single.npy", CF)
    with raises_file(tmp_path / "single.npy"):
        read_matches(tmp_path / "single.npy", *SHAPES)
    np.savez(path, cf=np.array([{"x": 1}], dtype=object), fa=FA)  # would run code when it is unpickled
    with raises_file(path, DamagedError):
        read_matches(path, *SHAPES)
    with ZipFile(path, "w") as file:
        file.writestr("cf", "text")
        file.writestr("fa", "text")
    with raises_file(path, DamagedError):
        read_matches(path, *SHAPES)
    np.savez(path, cf=CF, fa=FA)
    for damaged in (b"", b"1 2\n3 4\n", path.read_bytes()[:300], pickle.dumps(CF)):
        path.write_bytes(damaged)
        with raises_file(path, DamagedError):
            read_matches(path, *SHAPES)
