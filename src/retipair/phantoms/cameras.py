"""Define cameras, and sample the appearance of one photograph."""

from dataclasses import dataclass, fields

import numpy as np
import torch

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """Typical parameters of a camera, its flash and its patients; each look varies around them.

    fundus, disc, edge: RGB in [0, 1] of the retina, the optic disc, and the rim of the field. vignette: fraction of
    light lost at the rim, CF and FA. radius: of the field, relative to half the view. clip: fraction of the radius
    clipped at top and bottom. notch: whether the rim has a tab. blur: PSF sigma, px at 512. noise: standard deviation
    of mid grey at 512 px, in [0, 1]. gamma: tone curve of CF and FA. grain: contrast of the FA's background texture.
    """

    fundus: Colour
    disc: Colour
    edge: Colour
    vignette: tuple[float, float]
    radius: float
    clip: float
    notch: bool
    blur: float
    noise: float
    gamma: tuple[float, float]
    grain: float


CAMERAS: dict[str, Camera] = {
    "amber": Camera(
        fundus=(0.80, 0.42, 0.15), disc=(1.0, 0.82, 0.50), edge=(0.35, 0.16, 0.05), vignette=(0.30, 0.35),
        radius=0.98, clip=0.0, notch=True, blur=0.9, noise=0.020, gamma=(1.0, 1.0), grain=0.16,
    ),
    "rose": Camera(
        fundus=(0.82, 0.50, 0.42), disc=(0.95, 0.68, 0.58), edge=(0.55, 0.30, 0.25), vignette=(0.20, 0.25),
        radius=0.94, clip=0.12, notch=False, blur=1.3, noise=0.015, gamma=(0.9, 1.15), grain=0.10,
    ),
    "umber": Camera(
        fundus=(0.56, 0.30, 0.13), disc=(0.95, 0.72, 0.42), edge=(0.18, 0.07, 0.03), vignette=(0.45, 0.45),
        radius=1.02, clip=0.08, notch=True, blur=1.0, noise=0.028, gamma=(1.0, 0.9), grain=0.18,
    ),
    "sallow": Camera(
        fundus=(0.74, 0.55, 0.26), disc=(0.92, 0.80, 0.55), edge=(0.40, 0.34, 0.14), vignette=(0.25, 0.30),
        radius=1.08, clip=0.16, notch=False, blur=1.1, noise=0.022, gamma=(0.95, 0.85), grain=0.14,
    ),
    # Used by the demo: the bundled bases were not trained on it.
    "teal": Camera(
        fundus=(0.60, 0.44, 0.30), disc=(0.85, 0.92, 0.70), edge=(0.14, 0.46, 0.42), vignette=(0.62, 0.60),
        radius=0.90, clip=0.20, notch=True, blur=1.1, noise=0.020, gamma=(1.10, 0.80), grain=0.16,
    ),
}  # fmt: skip
BASE_CAMERAS = ("amber", "rose", "umber", "sallow")
"""Cameras that the bundled bases were trained on."""


@dataclass(frozen=True)
class Look:
    """Appearance of one photograph, sampled around a camera; every field is a number or a tuple of numbers.

    phase: of the dye, 0 arterial, about .2 laminar, .5 full veins, 1 late. gradient: relative change of light in x and
    y, CF and FA. texture: contrast of the choroid in the CF. contrast: of the vessels in CF and FA. exposure: of CF and
    FA. reflex: brightness of the central reflex of vessels. pigment: absorption by macular pigment. flush: brightness
    of the choroid in the FA. fine: brightness of the finest vessels in the FA. shift: of the field in x and y,
    relative to half the view. notch_angle: rad, NaN without a notch. Others as in Camera.
    """

    fundus: Colour
    disc: Colour
    edge: Colour
    vignette: tuple[float, float]
    gradient: tuple[float, float, float, float]
    exposure: tuple[float, float]
    contrast: tuple[float, float]
    gamma: tuple[float, float]
    texture: float
    reflex: float
    pigment: float
    phase: float
    flush: float
    grain: float
    fine: float
    blur: tuple[float, float]
    noise: float
    radius: float
    clip: float
    shift: tuple[float, float]
    notch_angle: float


def draw_look(rng: np.random.Generator, camera: Camera) -> Look:
    """Sample the look of one photograph."""

    def about(value: float, sigma: float) -> float:
        return float(value * np.exp(sigma * np.clip(rng.normal(), -2, 2)))

    def colour(values: Colour, sigma: float) -> Colour:
        r, g, b = (min(1.0, about(value, sigma)) for value in values)
        return r, g, b

    tint = 0.08
    return Look(
        fundus=colour(camera.fundus, tint),
        disc=colour(camera.disc, 0.05),
        edge=colour(camera.edge, tint),
        vignette=(about(camera.vignette[0], 0.25), about(camera.vignette[1], 0.25)),
        gradient=tuple(rng.normal(0, 0.08, 4)),
        exposure=(about(0.95, 0.08), about(1.0, 0.12)),
        contrast=(about(1.0, 0.15), about(1.0, 0.12)),
        gamma=(about(camera.gamma[0], 0.06), about(camera.gamma[1], 0.08)),
        texture=about(0.065, 0.25),
        reflex=about(0.10, 0.3),
        pigment=about(0.30, 0.3),
        phase=float(rng.beta(2.2, 2.2)),
        flush=about(1.0, 0.2),
        grain=about(camera.grain, 0.2),
        fine=about(0.8, 0.3),
        blur=(about(camera.blur, 0.12), about(1.1 * camera.blur, 0.12)),
        noise=about(camera.noise, 0.2),
        radius=min(1.12, about(camera.radius, 0.015)),
        clip=about(camera.clip, 0.1),
        shift=tuple(rng.normal(0, 0.012, 2)),
        notch_angle=float(np.deg2rad(rng.choice([38, 142]) + rng.normal(0, 2))) if camera.notch else float("nan"),
    )


def stack(looks: list[Look], device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Stack each field of B looks to a tensor (B, values, 1, 1), which broadcasts with maps (B, channels, H, W)."""
    columns = {}
    for field in fields(Look):
        values = torch.tensor([getattr(look, field.name) for look in looks], dtype=torch.float32, device=device)
        columns[field.name] = values.view(len(looks), -1, 1, 1)
    return columns
