"""Write the scene files and depth maps that LoFTR's loader of MegaDepth reads.

The format follows the code of zju3dv/LoFTR, commit df7ca80; EfficientLoFTR (ffd4a46) and MatchFormer (1b2da5c) have the
same loader and warp:

- src/datasets/megadepth.py: a scene file has `image_paths`, `depth_paths`, `intrinsics` (K), `poses` (T, world to
  camera) and `pair_infos`, entries ((index0, index1), overlap, matches). The loader reads `pair_infos` and deletes it,
  which a zip archive does not allow: the published files are pickled dictionaries in spite of their suffix .npz.
  T_0to1 = T1 inverse(T0), and T_1to0 is the inverse matrix of T_0to1. The values need not be arrays. Here they are
  plain lists, so that a machine with NumPy 1 can read files that were written with NumPy 2.
- src/utils/dataset.py: the depth map is the dataset `depth` of an h5 file, padded to 2000 px, so images are at most
  2000 px wide.
- src/loftr/utils/geometry.py: x1 ~ K1 (T_0to1 (d0 K0^-1 x0)), at integer pixel centres. Points with depth 0 do not
  count, nor do points whose projected depth differs from the depth map of the other image by 20 % or more. The divisor
  of the projection is increased by 1e-4.
- src/loftr/utils/supervision.py: K and depth refer to px of the file; points of a resized image are multiplied by
  `scale`, the width of the file divided by that of the resized image. The resizing itself aligns pixel areas, so in an
  image that is resized, points are wrong by 0.5 (1 - scale) px of the file.

The homography H is in the pose: K0 = K1 = 1, T0 = 1, T1 = diag(H, 1). The depth of the CF is 100, and the depth of the
FA is 100 times the third coordinate of H x0. Both warps are then exact, and the depths agree to about 1 %. The other
choice, K1 = H and depth maps of 1, was not taken: in the warp from FA to CF, the projected depth would then differ from
1 by as much as the perspective changes the scale, and the loader would leave points out. With a depth of 100, the
increase of the divisor moves points by less than 0.001 px; with a depth of 1, it would move them by up to 0.08 px at
512 px.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from retipair.matching.reader_formats.common import WrittenForm, homography, load_mask, without_elastic
from retipair.matching.samples import SAMPLES_NAME, MatchSample
from retipair.runtime.atomic_io import atomic_write, atomic_write_dir, write_text
from retipair.runtime.errors import FileError, UserError

FOLDER = "megadepth"
CF_DEPTH = 100.0
_DEPTH_STEP = 0.5
_MAX_SIZE = 2000  # px to which the loader pads the depth maps
_PICKLE_PROTOCOL = 4  # Python 3.8, which LoFTR runs with, reads it
_IDENTITY = np.eye(3).tolist()


def write_megadepth(folder: Path, samples: Iterable[MatchSample]) -> WrittenForm:
    """Write `folder/megadepth`: scene_info/{split}.npz, {split}_list.txt and depth/.

    The paths in the scene files are relative to `folder`.

    Raises UserError if h5py is not installed, if an image is larger than 2000 px, or if a mask cannot be read.
    """
    import_h5py()
    selected, target = without_elastic(samples), folder / FOLDER
    if large := next((sample for sample in selected.samples if sample.size > _MAX_SIZE), None):
        problem = f"{large.name} is {large.size} px wide, but LoFTR reads at most {_MAX_SIZE} px"
        raise FileError(folder / SAMPLES_NAME, f"{problem}; export with a smaller --size")

    def fill(partial: Path) -> None:
        for split, chosen in selected.by_split().items():
            with atomic_write(partial / "scene_info" / f"{split}.npz") as stream:
                pickle.dump(_scene(chosen), stream, protocol=_PICKLE_PROTOCOL)
            write_text(partial / f"{split}_list.txt", f"{split}\n")
        for sample in selected.samples:
            _write_depths(partial, folder, sample)

    atomic_write_dir(target, fill)
    return WrittenForm(target, len(selected.samples), selected.elastic)


def _scene(samples: list[MatchSample]) -> dict[str, list[Any]]:
    """Return a scene in which sample n has the images 2n (CF) and 2n + 1 (FA)."""
    return {
        "image_paths": [path for sample in samples for path in (sample.cf, sample.fa)],
        "depth_paths": [f"{FOLDER}/{path}" for sample in samples for path in (_cf_depth(sample), _fa_depth(sample))],
        "intrinsics": [_IDENTITY for _ in range(2 * len(samples))],
        "poses": [pose for sample in samples for pose in (np.eye(4).tolist(), _pose(sample))],
        "pair_infos": [((2 * n, 2 * n + 1), 1.0, [0.0] * 4) for n in range(len(samples))],
    }


def _pose(sample: MatchSample) -> list[list[float]]:
    pose = np.eye(4)
    pose[:3, :3] = _normalised(sample)
    return pose.tolist()


def _normalised(sample: MatchSample) -> np.ndarray:
    """Return the homography, scaled so that the third coordinate of the centre of the CF is 1."""
    centre, matrix = (sample.size - 1) / 2, homography(sample)
    return np.asarray(matrix / (matrix @ [centre, centre, 1.0])[2])


def _cf_depth(sample: MatchSample) -> str:
    return f"depth/cf/{PurePosixPath(sample.valid_cf).with_suffix('.h5')}"


def _fa_depth(sample: MatchSample) -> str:
    return f"depth/fa/{sample.name}.h5"


def _write_depths(partial: Path, folder: Path, sample: MatchSample) -> None:
    """Write the depth map of the FA, and that of the CF unless a sample with the same CF mask has written it."""
    if not (partial / _cf_depth(sample)).exists():
        cf = load_mask(folder, sample.valid_cf, sample.size)
        _write_depth(partial / _cf_depth(sample), np.where(cf, CF_DEPTH, 0.0))
    fa = load_mask(folder, sample.valid_fa, sample.size)
    _write_depth(partial / _fa_depth(sample), np.where(fa, _depth_of_fa(sample), 0.0))


def _depth_of_fa(sample: MatchSample) -> np.ndarray:
    """Return the depth map of the FA, (S, S), for the plane whose depth in the CF is `CF_DEPTH`.

    The depth is 0 where the plane is behind the camera of the FA. Depths are rounded up, so that the file is compressed
    well. This moves no point, because the depth cancels in the warp.
    """
    rows, columns = np.mgrid[: sample.size, : sample.size]
    third = np.linalg.inv(_normalised(sample))[2]
    inverse_depth = third[0] * columns + third[1] * rows + third[2]
    depth = CF_DEPTH / np.where(inverse_depth > 0, inverse_depth, np.inf)
    return np.ceil(depth / _DEPTH_STEP) * _DEPTH_STEP


def _write_depth(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with import_h5py().File(path, "w") as file:
        file.create_dataset(
            "depth", data=depth.astype(np.float32), chunks=depth.shape, compression="gzip", shuffle=True
        )


def import_h5py() -> Any:
    """Return the module h5py. Raises UserError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise UserError("the form megadepth needs h5py: pip install 'retipair[matching]'") from None
    return h5py
