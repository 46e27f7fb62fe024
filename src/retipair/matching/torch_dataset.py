"""Provide warped pairs as a torch dataset, to train a registration network without exporting files."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from retipair.data.dataset import load_pair
from retipair.data.manifest import Split
from retipair.data.pair import to_rgb
from retipair.data.torch_dataset import check_sizes, list_pairs
from retipair.matching.checks import check_ranges, check_variation
from retipair.matching.geometry import RangesName, choose_ranges
from retipair.matching.warped_pair import SegmentedPair, Variation, WarpedPair, segment_pair
from retipair.matching.warps import WarpRanges
from retipair.runtime.console import log_output
from retipair.runtime.errors import SettingError
from retipair.runtime.schema import from_settings

_MAX_LANDMARKS = 256


@dataclass(frozen=True)
class _Settings:
    """The settings of `WarpedPairs` whose types are checked."""

    ranges: RangesName
    elastic: float
    appearance: bool
    seed: int
    size: int | None
    keypoints: int


class WarpedPairs(Dataset[dict[str, Any]]):
    """Dataset of fixed CFs and moving FAs. The FA of each pair is warped by a random transform, which is known.

    An item depends only on the pair, the settings and the epoch, so it does not depend on the number of workers. Pairs
    with the same id and mask in different folders get the same warp. With `appearance=False`, the items of epoch n are
    the variants `warp_n` of `retipair export matches` with the same settings (n from 1). With `appearance=True`, the
    items of epoch 0 equal its variants `appearance`.

    The vessels of a pair are segmented when the pair is first used, which takes about a fifth of a second. Their
    branchings and crossings are kept in memory that all workers share. With `keypoints=0`, vessels are not segmented.

    folders: the path of a prepared or generated folder, or the paths of several. Rejected pairs are left out.
    split: the split to use; None for all splits.
    ranges: the geometry of the warps: a name, as in `retipair export matches --ranges`, or an instance of WarpRanges.
    "auto" and "fitted" use the raw pairs of the first folder with pairs in `split`.
    elastic: the largest smooth displacement before the homography, px in an image 512 px wide; 0 for none, at most 20.
    appearance: whether the appearance of both views is changed at random.
    seed: the seed of the warps.
    size: the side of the views, px, a multiple of 32 from 64 to 4096; None for their size on disk.
    keypoints: the number of rows of `keypoints0` and `keypoints1`, at most 256.
    Raises UserError if a setting is invalid, if there is no folder or no pair, or if the views of the folders differ
    in size and `size` is None.

    An item is a dict with these keys:
    image0: the CF, (3, S, S) float32 in [0, 1].
    image1: the moving FA, (1, S, S) float32 in [0, 1].
    H_0to1: the homography from px of `image0` to px of `image1`, (3, 3) float64. Pixel centres are integers.
    mask0, mask1: the valid pixels of each image, (S, S) bool.
    keypoints0, keypoints1: branchings and crossings of the vessels that are valid in both images, (K, 2) float32 px (x,
    y) of `image0` and of `image1`. The same row of both is the same place; rows without a point are NaN.
    residual_0to1: only if `elastic` is above 0: the position to which the transform maps each pixel of `image0` minus
    the position to which H_0to1 maps it, (S, S, 2) float32 px (x, y).
    id, split, folder: the id of the pair, its split, and the path of its folder, as text.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        split: Split | None = None,
        *,
        ranges: RangesName | WarpRanges = "auto",
        elastic: float = 0.0,
        appearance: bool = False,
        seed: int = 0,
        size: int | None = None,
        keypoints: int = 128,
    ) -> None:
        given = {"elastic": elastic, "appearance": appearance, "seed": seed, "size": size, "keypoints": keypoints}
        named = "auto" if isinstance(ranges, WarpRanges) else ranges
        settings = from_settings(_Settings, {**given, "ranges": named})
        check_variation(settings.elastic, settings.seed, settings.size)
        if isinstance(ranges, WarpRanges):
            check_ranges(ranges)
        if not 0 <= settings.keypoints <= _MAX_LANDMARKS:
            raise SettingError("keypoints", keypoints, f"must be from 0 to {_MAX_LANDMARKS}")
        self.records = list_pairs(folders, split)
        if not self.records:
            raise SettingError("split", split, "no pair is in this split")
        if size is None:
            check_sizes(self.records)
        if not isinstance(ranges, WarpRanges):
            with log_output():
                ranges = choose_ranges(ranges, self.records[0].folder)
        self.variation = Variation(ranges, settings.elastic, settings.seed)
        self.appearance, self.size, self.keypoints = settings.appearance, settings.size, settings.keypoints
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # -1 marks a pair whose landmarks are not known yet.
        self._counts = torch.full((len(self.records),), -1, dtype=torch.int64).share_memory_()
        self._landmarks = torch.zeros(len(self.records), _MAX_LANDMARKS, 2, dtype=torch.float64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """From now on, return variant `epoch` (0 or more) of each pair, also in workers that already run."""
        try:
            number = operator.index(epoch)
        except TypeError:
            number = -1
        if not 0 <= number < 2**63:
            raise SettingError("epoch", epoch, "must be an integer of 0 or more")
        self._epoch.fill_(number)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy made by `pickle` or `copy.deepcopy`, and move its tensors to shared memory again."""
        self.__dict__.update(state)
        for tensor in (self._epoch, self._counts, self._landmarks):
            tensor.share_memory_()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        warped = self.variation.make(self._source(index), record.id, int(self._epoch), self.appearance)
        # Noise differs between channels, so a grey first view is made grey again, as its exported file is.
        warped = replace(warped, cf=to_rgb(record.modalities.stored(warped.cf)))
        return _tensors(warped, self.keypoints) | {"id": record.id, "split": record.split, "folder": str(record.folder)}

    def _source(self, index: int) -> SegmentedPair:
        """Return a pair with its landmarks. Its mask of vessels is empty, because items do not contain vessels."""
        pair = load_pair(self.records[index], self.size)
        if self.keypoints and self._counts[index] < 0:
            found = segment_pair(pair).landmarks[:_MAX_LANDMARKS]
            self._landmarks[index, : len(found)] = torch.from_numpy(found)
            self._counts[index] = len(found)
        landmarks = self._landmarks[index, : max(0, int(self._counts[index]))].numpy()
        return SegmentedPair(pair, np.zeros_like(pair.mask), landmarks)


def _tensors(warped: WarpedPair, keypoints: int) -> dict[str, Any]:
    points = np.full((keypoints, 4), np.nan, dtype=np.float32)
    found = len(warped.landmarks)
    shown = np.arange(keypoints) * found // keypoints if found > keypoints else slice(None)  # spread over the image
    points[: min(found, keypoints)] = warped.landmarks[shown]
    item = {
        "image0": torch.from_numpy(np.ascontiguousarray(warped.cf.transpose(2, 0, 1))).float() / 255,
        "image1": torch.from_numpy(warped.fa[None].copy()).float() / 255,
        "H_0to1": torch.from_numpy(warped.warp.homography.copy()),
        "mask0": torch.from_numpy(warped.valid_cf.copy()),
        "mask1": torch.from_numpy(warped.valid_fa.copy()),
        "keypoints0": torch.from_numpy(points[:, :2].copy()),
        "keypoints1": torch.from_numpy(points[:, 2:].copy()),
    }
    if warped.warp.displacement:
        item["residual_0to1"] = torch.from_numpy(warped.warp.residual(len(warped.fa)).astype(np.float32))
    return item
