"""Join the two views of a pair into one joint image, which the diffusion model processes, and split it again."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from retipair.data.pair import chroma, to_rgb

LayoutName = Literal["side_by_side", "squeezed"]
LAYOUTS = get_args(LayoutName)


@dataclass(frozen=True)
class Layout:
    """The arrangement of two views of S x S px in a joint image: CF on the left, FA on the right.

    name: "side_by_side" keeps the size of the views, so that the joint image is (S, 2S).
    "squeezed" resizes each view bilinearly to (S, S / 2), so that the joint image is (S, S).
    view_size: the side S of a view in pixels.
    """

    name: LayoutName
    view_size: int

    @property
    def joint_size(self) -> tuple[int, int]:
        """The (height, width) of the joint image in pixels."""
        return self.view_size, 2 * self._half_width

    @property
    def _half_width(self) -> int:
        return self.view_size if self.name == "side_by_side" else self.view_size // 2

    def join(self, cf: np.ndarray, fa: np.ndarray) -> np.ndarray:
        """Join CF (S, S, 3) and FA (S, S), uint8, into a joint image (H, W, 3) uint8."""
        return np.concatenate([self.half(cf), self.half(fa)], axis=1)

    def half(self, view: np.ndarray) -> np.ndarray:
        """Return the half of the joint image, (H, W / 2, 3) uint8, for CF (S, S, 3) or FA (S, S)."""
        return _to_width(to_rgb(view), self._half_width)

    def split(self, joint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Split a joint image (H, W, 3) uint8 into CF and FA, (S, S, 3) uint8 each.

        The FA still has the colours that the model generated; `to_grey` removes them.
        """
        assert joint.shape[:2] == self.joint_size, f"{joint.shape} is not a {self} image"
        halves = joint[:, : self._half_width], joint[:, self._half_width :]
        cf, fa = (_to_width(half, self.view_size) for half in halves)
        return cf, fa


def _to_width(view: np.ndarray, width: int) -> np.ndarray:
    if view.shape[1] == width:
        return view
    return np.asarray(Image.fromarray(view).resize((width, view.shape[0]), Image.Resampling.BILINEAR))


def to_grey(fa_rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """Convert a generated FA (H, W, 3) uint8 to grey; return (grey (H, W) uint8, mean chroma in [0, 255]).

    A real angiogram has no colour, so the chroma measures an error of the model (see `pair.chroma`).
    """
    return np.rint(fa_rgb.mean(axis=2)).astype(np.uint8), chroma(fa_rgb)
