"""Define cameras, and sample looks.

A *look* is the appearance of the CF and the FA of one pair: colours, light, contrast, dye phase, sharpness and noise.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """The typical appearance of the photographs of one camera. `draw_look` varies most of these parameters.

    fundus, disc, edge: the colours of the retina, the optic disc, and the rim of the field of view, RGB in [0, 1].
    vignette: the fraction of light that is lost at the rim, for CF and FA.
    radius: the radius of the field of view, relative to half the side of the image.
    clip: the fraction of this radius that is cut off at the top, and at the bottom.
    notch: True if a tab (orientation mark) protrudes from the rim.
    blur: the sigma of the point spread function of the CF, px in a view 512 px wide. The FA has 1.1 times this sigma.
    noise: the standard deviation of the sensor noise at an intensity of 0.35, in a view 512 px wide.
    gamma: the exponents of the tone curves of CF and FA.
    grain: the contrast of the background texture of the FA.
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
    # Only the demo uses this camera by default. The bundled bases were not trained on it.
    "teal": Camera(
        fundus=(0.60, 0.44, 0.30), disc=(0.85, 0.92, 0.70), edge=(0.14, 0.46, 0.42), vignette=(0.62, 0.60),
        radius=0.90, clip=0.20, notch=True, blur=1.1, noise=0.020, gamma=(1.10, 0.80), grain=0.16,
    ),
}  # fmt: skip
BASE_CAMERAS = ("amber", "rose", "umber", "sallow")
"""Cameras that the bundled bases were trained on."""


@dataclass(frozen=True)
class Look:
    """The appearance of the CF and the FA of one pair.

    Each field is a number or a tuple of numbers. Fields that are not listed here have the same meaning as in Camera.

    gradient: the relative change of light from the centre to the edge, for x and y of the CF, then for x and y of the
        FA.
    exposure: the factors by which exposure scales the light, for CF and FA.
    contrast: the contrast of the vessels, for CF and FA.
    texture: the contrast of the background texture of the CF.
    reflex: the brightness of the central light reflex of vessels in the CF.
    pigment: the absorption by the macular pigment in the CF.
    phase: the phase of the dye: 0 arterial, about 0.2 laminar flow in the veins, 0.5 veins filled, 1 late.
    flush: the brightness of the choroid in the FA.
    fine: the brightness of the finest vessels in the FA.
    blur: the sigmas of the point spread functions of CF and FA, px in a view 512 px wide.
    shift: the displacement of the field of view in x and y, relative to half the side of the image.
    notch_angle: the direction of the tab from the centre, rad; NaN without a tab.
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
    """Sample a look: the parameters of `camera` with random deviations, and parameters independent of the camera."""

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
    """Stack B looks. Return a tensor (B, K, 1, 1) for each field, K being the number of values of the field.

    The tensors broadcast with maps (B, C, H, W).
    """
    columns = {}
    for field in fields(Look):
        values = torch.tensor([getattr(look, field.name) for look in looks], dtype=torch.float32, device=device)
        columns[field.name] = values.view(len(looks), -1, 1, 1)
    return columns
