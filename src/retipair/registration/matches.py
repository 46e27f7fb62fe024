"""Read the point matches of a network from an .npz file."""

from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from retipair.registration.landmarks import Landmarks
from retipair.runtime.errors import DamagedError, FileError, MissingError

_NAMES = (("cf", "fa"), ("keypoints0", "keypoints1"), ("mkpts0_f", "mkpts1_f"), ("mkpts0", "mkpts1"))
"""The names of the two arrays: ours, those of LightGlue and SuperGlue, and those of LoFTR."""
_INDICES = ("matches", "matches0")
_KNOWN = ", or ".join(" and ".join(names) for names in _NAMES)


def read_matches(path: Path, cf_shape: tuple[int, ...], fa_shape: tuple[int, ...]) -> Landmarks:
    """Read the matches of a pair, as a network saved them with `numpy.savez`. The file may contain no match.

    The file has two arrays (N, 2) of x and y in px of the image files, with equal N: row n of both is one match. Their
    names are `cf` and `fa`, or another pair of names in `_NAMES`, of which the first is that of the CF.

    The arrays `keypoints0` and `keypoints1` may instead contain unmatched keypoints. The array `matches` or `matches0`,
    as LightGlue and SuperGlue save it, then matches them: it contains pairs of indices (K, 2), or for each point of the
    CF the index of its match in the FA, or -1 if it has none. Other arrays in the file are ignored.

    cf_shape, fa_shape: the shapes of the images, (H, W, ...).
    Raises UserError, naming the file, if it is no .npz file, if the arrays are missing or have the wrong shape or type,
    if a value is NaN or infinite, or if a point lies outside its image.
    """
    arrays = _load(path)
    names = next((names for names in _NAMES if all(name in arrays for name in names)), None)
    if names is None:
        found = ", ".join(sorted(arrays)) or "none"
        raise FileError(path, f"the points are missing (arrays found: {found}); save two arrays: {_KNOWN}")
    cf, fa = (_points(path, name, arrays[name]) for name in names)
    if (
        names[0] == "keypoints0"
        and (indices := next((arrays[key] for key in _INDICES if key in arrays), None)) is not None
    ):
        cf, fa = _select(path, cf, fa, indices)
    if len(cf) != len(fa):
        problem = f"{names[0]} has {len(cf)} points but {names[1]} has {len(fa)}; row n of both must be one match"
        raise FileError(path, problem)
    for name, points, shape in ((names[0], cf, cf_shape), (names[1], fa, fa_shape)):
        _check_inside(path, name, points, shape)
    return Landmarks(cf, fa)


def _load(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, by name. Arrays with unknown names are not read and are returned empty."""
    if path.exists() and not path.is_file():
        raise FileError(path, "is not a file; give the .npz file with the matches of this pair")
    wanted = {name for names in _NAMES for name in names} | set(_INDICES)
    try:
        with path.open("rb") as stream:
            zipped = is_zipfile(stream)
        if not zipped:
            raise DamagedError(path, "is not an .npz file; save two arrays with numpy.savez(FILE, cf=..., fa=...)")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] if name in wanted else np.empty(0) for name in file.files}
        if strange := [name for name, values in arrays.items() if not isinstance(values, np.ndarray)]:
            raise DamagedError(path, f"{strange[0]} is not a numpy array; save the points with numpy.savez")
        return arrays
    except FileNotFoundError:
        raise MissingError(path, "no such file; give the .npz file with the matches of this pair") from None
    except FileError:
        raise
    except Exception as error:  # numpy and zipfile raise many types of exceptions for malformed files
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(path, f"cannot be read as an .npz file ({problem}); save it with numpy.savez") from None


def _points(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Return an array of points as (N, 2) float64."""
    if not (np.issubdtype(values.dtype, np.floating) or np.issubdtype(values.dtype, np.integer)):
        raise FileError(path, f"{name} has values of type {values.dtype}; save x and y as numbers")
    if values.size == 0:
        return np.empty((0, 2))
    if values.ndim != 2 or values.shape[1] != 2:
        raise FileError(path, f"{name} has the shape {values.shape}; save one row of x and y per point, (N, 2)")
    if not np.isfinite(values).all():
        raise FileError(path, f"{name} contains NaN or infinity; remove these matches")
    return values.astype(np.float64)


def _select(path: Path, cf: np.ndarray, fa: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of CF and FA that are matched with one another, (K, 2) each.

    indices: pairs of indices (K, 2), or for each point of the CF the index of its match or -1, (N,).
    """
    if indices.size == 0:
        return np.empty((0, 2)), np.empty((0, 2))
    pairs: Any = indices
    if indices.ndim == 1 and len(indices) == len(cf):
        pairs = np.column_stack([np.arange(len(cf)), indices])[indices >= 0]
    valid = np.issubdtype(indices.dtype, np.integer) and pairs.ndim == 2 and pairs.shape[1] == 2
    if not valid or (len(pairs) and ((pairs < 0).any() or (pairs >= [len(cf), len(fa)]).any())):
        raise FileError(
            path, "its array of matches does not fit the keypoints; save only the matched points as cf and fa"
        )
    return cf[pairs[:, 0]], fa[pairs[:, 1]]


def _check_inside(path: Path, name: str, points: np.ndarray, shape: tuple[int, ...]) -> None:
    height, width = shape[:2]
    outside = (points < -1).any(axis=1) | (points > [width, height]).any(axis=1)
    if outside.any():
        x, y = points[outside][0]
        problem = f"{name} has the point {x:g} {y:g}, outside its {width} x {height} px image"
        raise FileError(path, f"{problem}; write px of the image file, not of a resized or padded copy")
    if len(points) and points.min() >= 0 and points.max() <= 1:
        raise FileError(path, f"all points of {name} lie within the first pixel; write px, not fractions of the size")
