"""An eye as maps of what lies where: the one geometry that both imaging models see."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from retipair.phantoms.anatomy import MACULA_RADIUS, Eye
from retipair.phantoms.lesions import LESION_KINDS, Lesion
from retipair.phantoms.vessels import FA_ONLY, SEEN_BY_BOTH, Tree

FIELD = 12.8
"""Width of the view, mm: 45 degrees, 25 um a pixel at 512."""
WIDEST = 0.2
"""Vessel thickness is given as a share of this, mm, so that all maps lie in [0, 1]."""
CHANNELS = ("artery", "artery_axis", "vein", "vein_axis", "fine", "disc", "cup", "macula", *LESION_KINDS)
"""artery, vein, fine: length of the light's way through the vessel / WIDEST; _axis: 1 in the middle of the vessel, 0 at
its wall; disc, cup and lesions: coverage; macula: exp(-distance to the fovea / MACULA_RADIUS). All in [0, 1]."""
DISC_ASPECT = 1.08
"""Its height / its width."""

_SUPERSAMPLE = 2
_THINNEST = 0.6  # px, supersampled: thinner vessels are drawn this wide and as much fainter
_SOFT_EDGE = {"disc": 0.05, "cup": 0.10, "microaneurysm": 0.01, "haemorrhage": 0.06, "exudate": 0.01}  # mm


@dataclass(frozen=True)
class Frame:
    """What part of the retina the maps show: pixels and mm, the centre in mm, the width `field` in mm."""

    size: int
    centre: tuple[float, float]
    field: float = FIELD

    @property
    def px_per_mm(self) -> float:
        return self.size / self.field

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """mm (N, 2) -> px (N, 2), pixel centres at whole numbers."""
        return (points - self.centre) * self.px_per_mm + (self.size - 1) / 2


def frame_of(eye: Eye, size: int, field: float = FIELD) -> Frame:
    """The frame around the field that the eye was grown for."""
    return Frame(size, (float(eye.centre[0]), float(eye.centre[1])), field)


def draw_maps(eye: Eye, frame: Frame) -> torch.Tensor:
    """Maps (len(CHANNELS), size, size) float32 in [0, 1]; takes some ten milliseconds."""
    wide = Frame(frame.size * _SUPERSAMPLE, frame.centre, frame.field)
    drawn = torch.stack([*_vessel_maps(eye, wide), *_region_maps(eye, wide)])
    return F.avg_pool2d(drawn[None], _SUPERSAMPLE)[0].clamp(0, 1)


# --- Vessels


def _vessel_maps(eye: Eye, frame: Frame) -> list[torch.Tensor]:
    artery, artery_axis = _draw_tree(eye.arteries, SEEN_BY_BOTH, frame)
    vein, vein_axis = _draw_tree(eye.veins, SEEN_BY_BOTH, frame)
    fine = [_draw_tree(tree, FA_ONLY, frame)[0] for tree in (eye.arteries, eye.veins)]
    return [artery, artery_axis, vein, vein_axis, torch.maximum(*fine)]


def _draw_tree(tree: Tree, level: int, frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """Thickness / WIDEST and nearness to the axis, (size, size) each, of one level of a tree."""
    child, parent = tree.segments()
    wanted = tree.levels[child] == level
    child, parent = child[wanted], parent[wanted]
    ends = frame.pixels(tree.points)
    start, end, radius = ends[parent], ends[child], tree.radii[child] * frame.px_per_mm
    thickness, axis = (torch.zeros(frame.size**2) for _ in range(2))
    reach = np.ceil(np.maximum(radius, _THINNEST) + np.linalg.norm(end - start, axis=1) / 2 + 1).astype(int)
    for width in np.unique(reach):  # segments of about one size at a time
        some = reach == width
        pixels, drawn, nearness = _draw_segments(start[some], end[some], radius[some], int(width), frame.size)
        thickness.scatter_reduce_(0, pixels, drawn / (frame.px_per_mm * WIDEST), "amax")
        axis.scatter_reduce_(0, pixels, nearness, "amax")
    shape = (frame.size, frame.size)
    return thickness.view(shape), axis.view(shape)


def _draw_segments(
    start: np.ndarray, end: np.ndarray, radius: np.ndarray, reach: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat pixel numbers, thickness px and nearness to the axis, (P,) each, within `reach` px of every segment."""
    a, b, r = (torch.from_numpy(values).float() for values in (start, end, radius))
    ticks = torch.arange(-reach, reach + 1)
    window = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).view(1, -1, 2)
    pixel = ((a + b) / 2).round().long()[:, None] + window  # (segments, window, 2) x, y
    along = (b - a)[:, None]
    share = ((pixel - a[:, None]) * along).sum(-1) / (along**2).sum(-1).clamp(min=1e-6)
    distance = (pixel - a[:, None] - share.clamp(0, 1)[..., None] * along).norm(dim=-1)
    drawn_r = r.clamp(min=_THINNEST)[:, None]
    thickness = 2 * (drawn_r**2 - distance**2).clamp(min=0).sqrt() * (r[:, None] / drawn_r) ** 2
    nearness = (1 - distance / drawn_r).clamp(min=0)
    seen = ((pixel >= 0) & (pixel < size)).all(-1) & (thickness > 0)
    return (pixel[..., 1] * size + pixel[..., 0])[seen], thickness[seen], nearness[seen]


def vessel_mask(tree: Tree, level: int, frame: Frame) -> np.ndarray:
    """Pixels whose centre lies within a vessel of that level, (size, size) bool; none is thinner than a pixel."""
    return (_draw_tree(tree, level, frame)[0] > 0).numpy()


# --- Everything else


def _region_maps(eye: Eye, frame: Frame) -> list[torch.Tensor]:
    x_disc, y_disc = eye.disc
    disc = Lesion("exudate", x_disc, y_disc, eye.disc_radius, aspect=DISC_ASPECT, angle=np.pi / 2)
    cup = Lesion("exudate", x_disc + 0.03, y_disc, eye.cup_radius, aspect=1.05, angle=np.pi / 2)
    x, y = _grid(frame)
    macula = torch.exp(-torch.hypot(x, y) / MACULA_RADIUS)
    lesions = [_blobs([one for one in eye.lesions if one.kind == kind], kind, frame) for kind in LESION_KINDS]
    return [_blobs([disc], "disc", frame), _blobs([cup], "cup", frame), macula, *lesions]


def _grid(frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of every pixel, mm, (size, size) each."""
    ticks = (torch.arange(frame.size) - (frame.size - 1) / 2) / frame.px_per_mm
    y, x = torch.meshgrid(ticks + frame.centre[1], ticks + frame.centre[0], indexing="ij")
    return x, y


def _blobs(lesions: list[Lesion], kind: str, frame: Frame) -> torch.Tensor:
    """Coverage (size, size) in [0, 1]: a soft edge, or for leakage and dropped-out tissue a slow fall."""
    canvas = torch.zeros(frame.size, frame.size)
    for one in lesions:
        reach = int(np.ceil((one.radius * one.aspect * 2.2 + 0.1) * frame.px_per_mm))
        column, row = np.rint(frame.pixels(np.array([[one.x, one.y]])))[0].astype(int)
        top, left = max(0, row - reach), max(0, column - reach)
        part = canvas[top : max(0, row + reach + 1), left : max(0, column + reach + 1)]
        if part.numel():
            drawn = _blob(one, kind, *(axis[top:, left:][: part.shape[0], : part.shape[1]] for axis in _grid(frame)))
            part.copy_(torch.maximum(part, drawn))
    return canvas


def _blob(one: Lesion, kind: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dx, dy = x - one.x, y - one.y
    along = (dx * np.cos(one.angle) + dy * np.sin(one.angle)) / one.aspect**0.5
    across = (dy * np.cos(one.angle) - dx * np.sin(one.angle)) * one.aspect**0.5
    turn = torch.atan2(across, along)
    wavering = sum(a * torch.cos(k * turn + 7 * a) for k, a in zip((2, 3, 5), one.outline, strict=True))
    distance = torch.hypot(along, across) / (1 + wavering)
    if kind == "leakage":
        return torch.exp(-2 * (distance / one.radius) ** 2)
    if kind == "nonperfusion":
        return torch.sigmoid((one.radius - distance) / 0.08)
    return torch.sigmoid((one.radius - distance) / (_SOFT_EDGE[kind] / 2))
