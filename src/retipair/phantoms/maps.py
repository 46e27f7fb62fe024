"""Render an eye as maps of its structures, from which both CF and FA are rendered.

A map is an image of one structure, with values in [0, 1]. CHANNELS lists the maps.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from retipair.phantoms.anatomy import MACULA_RADIUS, Eye
from retipair.phantoms.lesions import LESION_KINDS, Lesion
from retipair.phantoms.vessels import FA_ONLY, SEEN_BY_BOTH, Tree

FIELD = 12.8
"""Width of the view on the retina, mm. It corresponds to 45 degrees, and to 25 um per pixel in a view 512 px wide."""
WIDEST = 0.2
"""Vessel thickness, mm, that has the value 1 in the maps. Thicker vessels would be clipped to 1."""
CHANNELS = ("artery", "artery_axis", "vein", "vein_axis", "fine", "disc", "cup", "macula", *LESION_KINDS)
"""Names of the maps, all in [0, 1].

artery, vein, fine: the thickness of the vessel along the light path, divided by WIDEST.
artery_axis, vein_axis: 1 on the axis of the vessel, 0 at its wall.
disc, cup and the lesions: 1 inside the structure, 0 outside, with a soft edge. Leakage has no edge: its map is a
Gaussian with the value 1 at the centre.
macula: exp(-distance from the fovea / MACULA_RADIUS).
"""
DISC_ASPECT = 1.08
"""Ratio of the height of the optic disc to its width."""

_SUPERSAMPLE = 2
_MIN_RADIUS = 0.6  # px of the drawn image: vessels of smaller radius are drawn with this radius and less thickness
_SOFT_EDGE = {"disc": 0.05, "cup": 0.10, "microaneurysm": 0.01, "haemorrhage": 0.06, "exudate": 0.01}  # mm: width


@dataclass(frozen=True)
class Frame:
    """The square part of the retina that the maps show.

    size: the side of the maps, px.
    centre: the centre of the square, (x, y) mm.
    field: the side of the square, mm.
    """

    size: int
    centre: tuple[float, float]
    field: float = FIELD

    @property
    def px_per_mm(self) -> float:
        return self.size / self.field

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Convert points (N, 2) from mm to px. Pixel centres have integer coordinates."""
        return (points - self.centre) * self.px_per_mm + (self.size - 1) / 2


def frame_of(eye: Eye, size: int, field: float = FIELD) -> Frame:
    """Return the frame around the centre of the eye's field of view: `size` px and `field` mm wide."""
    return Frame(size, (float(eye.centre[0]), float(eye.centre[1])), field)


def draw_maps(eye: Eye, frame: Frame) -> torch.Tensor:
    """Render the maps of an eye, (len(CHANNELS), size, size) float32 in [0, 1]. This takes tens of milliseconds."""
    fine = Frame(frame.size * _SUPERSAMPLE, frame.centre, frame.field)
    maps = torch.stack([*_vessel_maps(eye, fine), *_region_maps(eye, fine)])
    return F.avg_pool2d(maps[None], _SUPERSAMPLE)[0].clamp(0, 1)


# --- Vessels


def _vessel_maps(eye: Eye, frame: Frame) -> list[torch.Tensor]:
    artery, artery_axis = _draw_tree(eye.arteries, SEEN_BY_BOTH, frame)
    vein, vein_axis = _draw_tree(eye.veins, SEEN_BY_BOTH, frame)
    fine = [_draw_tree(tree, FA_ONLY, frame)[0] for tree in (eye.arteries, eye.veins)]
    return [artery, artery_axis, vein, vein_axis, torch.maximum(*fine)]


def _draw_tree(tree: Tree, level: int, frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """Render the vessels of one level of a tree. Return (thickness / WIDEST, nearness to the axis), (size, size) each.

    level: SEEN_BY_BOTH or FA_ONLY.
    """
    child, parent = tree.segments()
    on_level = tree.levels[child] == level
    child, parent = child[on_level], parent[on_level]
    ends = frame.pixels(tree.points)
    start, end, radius = ends[parent], ends[child], tree.radii[child] * frame.px_per_mm
    thickness, axis = (torch.zeros(frame.size**2) for _ in range(2))
    reach = np.ceil(np.maximum(radius, _MIN_RADIUS) + np.linalg.norm(end - start, axis=1) / 2 + 1).astype(int)
    for width in np.unique(reach):  # draw segments of similar size together
        batch = reach == width
        pixels, depth, nearness = _draw_segments(start[batch], end[batch], radius[batch], int(width), frame.size)
        thickness.scatter_reduce_(0, pixels, depth / (frame.px_per_mm * WIDEST), "amax")
        axis.scatter_reduce_(0, pixels, nearness, "amax")
    shape = (frame.size, frame.size)
    return thickness.view(shape), axis.view(shape)


def _draw_segments(
    start: np.ndarray, end: np.ndarray, radius: np.ndarray, reach: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw vessel segments. Return (pixel indices, thickness in px, nearness to the axis), (P,) each.

    A pixel index is row * size + column. A pixel is returned once for each segment that covers it.

    start, end: the ends of the segments, (M, 2) px each.
    radius: the radii of the segments, (M,) px.
    reach: all pixels that a segment covers lie within this distance from its middle in x and in y, px.
    size: the side of the image, px.
    """
    a, b, r = (torch.from_numpy(values).float() for values in (start, end, radius))
    ticks = torch.arange(-reach, reach + 1)
    window = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1).view(1, -1, 2)
    pixel = ((a + b) / 2).round().long()[:, None] + window  # (M, window pixels, 2), x and y
    along = (b - a)[:, None]
    position = ((pixel - a[:, None]) * along).sum(-1) / (along**2).sum(-1).clamp(min=1e-6)
    distance = (pixel - a[:, None] - position.clamp(0, 1)[..., None] * along).norm(dim=-1)
    drawn_r = r.clamp(min=_MIN_RADIUS)[:, None]
    thickness = 2 * (drawn_r**2 - distance**2).clamp(min=0).sqrt() * (r[:, None] / drawn_r) ** 2
    nearness = (1 - distance / drawn_r).clamp(min=0)
    visible = ((pixel >= 0) & (pixel < size)).all(-1) & (thickness > 0)
    return (pixel[..., 1] * size + pixel[..., 0])[visible], thickness[visible], nearness[visible]


def vessel_mask(tree: Tree, level: int, frame: Frame) -> np.ndarray:
    """Return a mask (size, size) bool of the vessels of one level of a tree. Each vessel is at least one pixel wide."""
    return (_draw_tree(tree, level, frame)[0] > 0).numpy()


# --- Everything else


def _region_maps(eye: Eye, frame: Frame) -> list[torch.Tensor]:
    x_disc, y_disc = eye.disc
    disc = Lesion("exudate", x_disc, y_disc, eye.disc_radius, aspect=DISC_ASPECT, angle=np.pi / 2)
    cup = Lesion("exudate", x_disc + 0.03, y_disc, eye.cup_radius, aspect=1.05, angle=np.pi / 2)
    x, y = _grid(frame)
    macula = torch.exp(-torch.hypot(x, y) / MACULA_RADIUS)
    lesions = [_blobs([lesion for lesion in eye.lesions if lesion.kind == kind], kind, frame) for kind in LESION_KINDS]
    return [_blobs([disc], "disc", frame), _blobs([cup], "cup", frame), macula, *lesions]


def _grid(frame: Frame) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coordinates x and y of all pixel centres, (size, size) mm each."""
    ticks = (torch.arange(frame.size) - (frame.size - 1) / 2) / frame.px_per_mm
    y, x = torch.meshgrid(ticks + frame.centre[1], ticks + frame.centre[0], indexing="ij")
    return x, y


def _blobs(lesions: list[Lesion], kind: str, frame: Frame) -> torch.Tensor:
    """Render the map of all lesions of one kind, (size, size) in [0, 1], with soft edges.

    Leakage and nonperfusion have the softest edges. Optic disc and cup are rendered in the same way.
    """
    canvas = torch.zeros(frame.size, frame.size)
    for lesion in lesions:
        reach = int(np.ceil((lesion.radius * lesion.aspect * 2.2 + 0.1) * frame.px_per_mm))
        column, row = np.rint(frame.pixels(np.array([[lesion.x, lesion.y]])))[0].astype(int)
        top, left = max(0, row - reach), max(0, column - reach)
        part = canvas[top : max(0, row + reach + 1), left : max(0, column + reach + 1)]
        if part.numel():
            coverage = _blob(
                lesion, kind, *(axis[top:, left:][: part.shape[0], : part.shape[1]] for axis in _grid(frame))
            )
            part.copy_(torch.maximum(part, coverage))
    return canvas


def _blob(lesion: Lesion, kind: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dx, dy = x - lesion.x, y - lesion.y
    along = (dx * np.cos(lesion.angle) + dy * np.sin(lesion.angle)) / lesion.aspect**0.5
    across = (dy * np.cos(lesion.angle) - dx * np.sin(lesion.angle)) * lesion.aspect**0.5
    polar_angle = torch.atan2(across, along)
    irregularity = sum(a * torch.cos(k * polar_angle + 7 * a) for k, a in zip((2, 3, 5), lesion.outline, strict=True))
    distance = torch.hypot(along, across) / (1 + irregularity)
    if kind == "leakage":
        return torch.exp(-2 * (distance / lesion.radius) ** 2)
    if kind == "nonperfusion":
        return torch.sigmoid((lesion.radius - distance) / 0.08)
    return torch.sigmoid((lesion.radius - distance) / (_SOFT_EDGE[kind] / 2))
