"""Train the small descriptor of `retipair utility` on corresponding points of warped pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from retipair.data.pair import Pair
from retipair.matching.utility.keypoints import DESCRIPTOR_LENGTH, describe, find_keypoints, view_maps
from retipair.matching.utility.scores import Level
from retipair.matching.warped_pair import SegmentedPair, Variation

_POINTS = 192
_DISTANCE = 8  # px at 512: least distance between the points of a variant, which are negatives of one another
_MIN_POINTS = 16
_SCATTER_PX = 1.5
"""px at 512: standard deviation, per view and axis, of the random errors of the points.

Hand-placed landmarks scatter like this: their positions in CF and FA are then 2.5 px apart (median). Without these
errors, pairs shifted by a few px would seem to be better training pairs than aligned ones, because only they would
prepare the descriptors for the scatter of the tested landmarks.
"""
_WIDTH = 512
_TEMPERATURE = 0.05
_LEARNING_RATE = 3e-4  # with 1e-3, the descriptors became worse than the raw ones
_WEIGHT_DECAY = 1e-2
_VARIANTS_A_STEP = 4
_POINTS_A_VARIANT = 64


class ResidualDescriptor(nn.Module):
    """Network that adds a learned change to raw descriptors. Before training, it changes nothing.

    Input: raw descriptors of norm 1, (N, DESCRIPTOR_LENGTH). Output: descriptors of norm 1 of the same shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(DESCRIPTOR_LENGTH, _WIDTH), nn.Linear(_WIDTH, DESCRIPTOR_LENGTH)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return F.normalize(raw + self.last(F.relu(self.first(raw * DESCRIPTOR_LENGTH**0.5))), dim=1)


@dataclass(frozen=True)
class TrainingPair:
    """A pair to make variants of, at a width of 512 px, and the points to describe.

    id, index: a name and a number on which the random numbers of its variants depend.
    points: (N, 2) px.
    """

    id: str
    index: int
    pair: Pair
    points: np.ndarray


@dataclass(frozen=True)
class Correspondences:
    """Raw descriptors of corresponding points of a CF and a warped FA, (N, DESCRIPTOR_LENGTH) float16 each."""

    cf: np.ndarray
    fa: np.ndarray


def training_pair(id: str, index: int, pair: Pair) -> TrainingPair:
    """Choose the points of a pair: the strongest ridges of both views together."""
    ridges = sum(view_maps(view, pair.mask).ridges.astype(np.float32) for view in (pair.cf, pair.fa))
    return TrainingPair(id, index, pair, find_keypoints(np.asarray(ridges), _POINTS, _DISTANCE))


def make_variant(source: TrainingPair, level: Level, number: int, seed: int) -> Correspondences:
    """Warp the FA of a pair by the ranges of a level, change the appearance of both views, and describe the points."""
    segmented = SegmentedPair(source.pair, source.pair.mask, source.points)
    warped = Variation(level.ranges, seed=seed).make(segmented, source.id, number, appearance=True)
    rng = np.random.default_rng([seed, number, source.index])
    points = warped.landmarks + rng.normal(0, _SCATTER_PX, warped.landmarks.shape)
    cf = describe(view_maps(warped.cf, warped.valid_cf), points[:, :2])
    fa = describe(view_maps(warped.fa, warped.valid_fa), points[:, 2:])
    return Correspondences(cf.astype(np.float16), fa.astype(np.float16))


def train_descriptor(variants: Sequence[Correspondences], steps: int, seed: int) -> ResidualDescriptor:
    """Train a descriptor by the contrastive loss InfoNCE (van den Oord et al. 2018, arXiv 1807.03748).

    Each step takes up to 64 points of each of 4 variants. The negatives of a point are the other points of the step.
    """
    usable = [variant for variant in variants if len(variant.cf) >= _MIN_POINTS]
    torch.manual_seed(seed)
    model, rng = ResidualDescriptor(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps if usable else 0):
        cf, fa = (model(torch.from_numpy(raw)) for raw in _draw_batch(usable, rng))
        similarity = cf @ fa.T / _TEMPERATURE
        target = torch.arange(len(cf))
        loss = F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _draw_batch(variants: Sequence[Correspondences], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw corresponding points, two arrays (B, DESCRIPTOR_LENGTH) float32."""
    cf, fa = [], []
    for index in rng.integers(len(variants), size=_VARIANTS_A_STEP):
        variant = variants[index]
        rows = rng.permutation(len(variant.cf))[:_POINTS_A_VARIANT]
        cf.append(variant.cf[rows])
        fa.append(variant.fa[rows])
    return np.concatenate(cf).astype(np.float32), np.concatenate(fa).astype(np.float32)
