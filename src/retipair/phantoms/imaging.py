"""Render the CF (reflected white light) and the FA (fluorescence) of an eye from the same maps.

Rendering is batched, in torch, on any device. Its inputs are the maps of B eyes, (B, C, H, W) with the channels of
`maps.CHANNELS`, B looks (see `cameras`) and B random generators. Views have values in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from retipair.phantoms.anatomy import MACULA_RADIUS
from retipair.phantoms.cameras import Look, stack
from retipair.phantoms.maps import CHANNELS, FIELD, WIDEST
from retipair.vision.modality import CF_FA, Modalities

# Absorption coefficients of blood for RGB, per 0.1 mm. Blood absorbs red light least; venous blood absorbs more than
# arterial blood.
_ARTERY_ABSORBS = (0.10, 0.62, 0.55)
_VEIN_ABSORBS = (0.28, 0.88, 0.75)
_BLOOD = (0.60, 0.26, 0.28)
_LIPID = (1.0, 0.90, 0.50)
_MACULAR_PIGMENT = (0.35, 1.0, 1.4)
_REFERENCE = 512  # px: `Look.blur` and `Look.noise` are given for an image of this width
_BLUR_REACH = 4  # px: radius of the blur kernel for images up to _REFERENCE px wide

Looks = dict[str, torch.Tensor]
Generators = Sequence[torch.Generator]


class _Scene:
    """The maps and looks of B eyes, with methods for rendering both CF and FA.

    A look (see `Look`) is the appearance of the CF and the FA of one pair, for example their exposure and contrast.
    Each channel of the maps is an attribute, (B, 1, H, W), for example `scene.artery`.
    """

    def __init__(self, maps: torch.Tensor, looks: Sequence[Look], generators: Generators) -> None:
        assert maps.shape[1] == len(CHANNELS), maps.shape
        self.look: Looks = stack(list(looks), maps.device)
        self.generators = generators
        self.size = maps.shape[-1]
        self.device = maps.device
        self._maps = maps
        ticks = (torch.arange(self.size, device=maps.device) + 0.5) / self.size * 2 - 1
        self.x, self.y = ticks.view(1, 1, 1, -1), ticks.view(1, 1, -1, 1)  # position in the view, from -1 to 1

    def __getattr__(self, name: str) -> torch.Tensor:
        return self._maps[:, CHANNELS.index(name)][:, None]

    def thickness(self, name: str) -> torch.Tensor:
        """Return the thickness of the vessels in channel `name`, (B, 1, H, W), in units of 0.1 mm."""
        return getattr(self, name) * (WIDEST / 0.1)

    def fovea(self, radius: float) -> torch.Tensor:
        """Return a Gaussian around the fovea, (B, 1, H, W): 1 at the fovea, 1 / e at the distance `radius` mm."""
        distance = -MACULA_RADIUS * self.macula.clamp(min=1e-4).log()
        return torch.exp(-((distance / radius) ** 2))

    def smooth_noise(self, wavelength: float, channels: int = 1) -> torch.Tensor:
        """Sample smooth noise (B, channels, H, W): wavelength about `wavelength` mm, standard deviation about 1."""
        n = max(4, round(FIELD / wavelength))
        grid = self.noise((channels, n, n))
        return 1.4 * F.interpolate(grid, size=(self.size, self.size), mode="bicubic", align_corners=False)

    def noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        samples = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(samples).to(self.device)

    def light(self, view: int) -> torch.Tensor:
        """Return the illumination, (B, 1, H, W): a vignette and a gradient.

        view: 0 for the CF, 1 for the FA.
        """
        look = self.look
        across = look["gradient"][:, 2 * view, None] * self.x + look["gradient"][:, 2 * view + 1, None] * self.y
        lost = look["vignette"][:, view, None] * (self.x**2 + self.y**2).clamp(max=1.3) ** 1.5
        return ((1 - lost) * (1 + across)).clamp(min=0.03)

    def aperture(self) -> torch.Tensor:
        """Return the field of view, (B, 1, H, W) in [0, 1]: a circle, cut off at top and bottom, and perhaps a tab."""
        look = self.look
        x, y = self.x - look["shift"][:, :1], self.y - look["shift"][:, 1:]
        edge = self.size / 2
        circle = (look["radius"] - torch.hypot(x, y)) * edge
        clipped = (look["radius"] * (1 - look["clip"]) - y.abs()) * edge
        angle = look["notch_angle"]
        out = x * angle.cos() + y * angle.sin() - look["radius"]
        aside = y * angle.cos() - x * angle.sin()
        tab = torch.minimum(0.05 - out, 0.045 - aside.abs()) * edge
        tab = torch.where(angle.isnan(), -edge, tab).nan_to_num(-edge)
        tab = torch.where(out > -0.1, tab, -edge)
        return torch.maximum(torch.minimum(circle, clipped), tab).add(0.5).clamp(0, 1)


def _rgb(values: tuple[float, float, float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Views:
    """The rendered views of B eyes. All values lie in [0, 1].

    cf: the CF, (B, 3, H, W), or another first view without colour, (B, 1, H, W).
    fa: the FA, (B, 1, H, W).
    aperture: the field of view, (B, 1, H, W), with a smooth edge.
    clean_cf, clean_fa: the CF and the FA without sensor noise, of the same shapes as `cf` and `fa`.
    """

    cf: torch.Tensor
    fa: torch.Tensor
    aperture: torch.Tensor
    clean_cf: torch.Tensor
    clean_fa: torch.Tensor


@torch.no_grad()
def photograph(
    maps: torch.Tensor, looks: Sequence[Look], generators: Generators, modalities: Modalities = CF_FA
) -> Views:
    """Render the CF and the FA of B eyes: maps (B, C, H, W), one look and one random generator for each eye.

    modalities: what is rendered instead of CF and FA. A first view without colour has one channel.
    """
    scene = _Scene(maps, looks, generators)
    aperture = scene.aperture()
    render_first, render_second = (_RENDERERS[key] for key in modalities.keys)
    cf, clean_cf = (view * aperture for view in _expose(scene, render_first(scene), view=0))
    fa, clean_fa = (view * aperture for view in _expose(scene, render_second(scene), view=1))
    return Views(cf, fa, aperture, clean_cf, clean_fa)


def _colour_fundus(scene: _Scene) -> torch.Tensor:
    """Return the white light that the fundus reflects after absorption by macular pigment and blood, (B, 3, H, W)."""
    look = scene.look
    mottle = 0.8 * scene.smooth_noise(3.0) + 0.35 * scene.smooth_noise(1.0) + 0.3 * scene.smooth_noise(0.35)
    rim = (scene.x**2 + scene.y**2).clamp(max=1.2) ** 2 * look["vignette"][:, :1]
    ground = torch.lerp(look["fundus"], look["edge"], rim.clamp(0, 1)) * (1 + look["texture"] * mottle)
    ground = ground * torch.exp(-look["pigment"] * _rgb(_MACULAR_PIGMENT, ground) * scene.fovea(0.75))
    nerve = torch.lerp(0.5 * (look["disc"] + ground), look["disc"], 0.35 + 0.65 * scene.cup) * 1.05
    ground = torch.lerp(ground, nerve, scene.disc)
    ground = torch.lerp(ground, _rgb(_LIPID, ground) * 0.95, 0.85 * scene.exudate)
    blood = 1 - (1 - _rgb(_BLOOD, ground)) * torch.maximum(scene.haemorrhage, 0.9 * scene.microaneurysm)
    absorbed = scene.thickness("artery") * _rgb(_ARTERY_ABSORBS, ground)
    absorbed = absorbed + scene.thickness("vein") * _rgb(_VEIN_ABSORBS, ground)
    reflex = _reflex(scene.artery_axis, scene.thickness("artery")) + 0.35 * _reflex(
        scene.vein_axis, scene.thickness("vein")
    )
    return ground * blood * torch.exp(-look["contrast"][:, :1] * absorbed) + look["reflex"] * reflex * ground


def _reflex(axis: torch.Tensor, thickness: torch.Tensor) -> torch.Tensor:
    """Return the brightness of the central light reflex, in [0, 1]; 0 for vessels up to 0.06 mm thick.

    axis: 1 on the axis of a vessel, 0 at its wall.
    thickness: the thickness of the vessel, in units of 0.1 mm.
    """
    return torch.exp(-(((1 - axis) / 0.3) ** 2)) * ((thickness - 0.6) / 0.4).clamp(0, 1)


def _angiogram(scene: _Scene) -> torch.Tensor:
    """Return the fluorescent light of choroid, vessels and lesions, (B, 1, H, W)."""
    look = scene.look
    phase = look["phase"]
    granules = 0.5 * scene.smooth_noise(0.10) + 0.4 * scene.smooth_noise(0.3) + 0.4 * scene.smooth_noise(2.5)
    ground = 0.27 * look["flush"] * (0.55 + 0.6 * phase - 0.25 * phase**2) * (1 + look["grain"] * granules)
    ground = ground * (1 - 0.72 * scene.fovea(0.62))
    rim = (4 * scene.disc * (1 - scene.disc)).clamp(0, 1)
    ground = torch.lerp(ground, 0.65 * ground + 0.10 * phase, scene.disc) + 0.14 * rim * (0.3 + phase)
    perfused = 1 - scene.nonperfusion
    ground = ground * (0.55 + 0.45 * perfused) * (1 - 0.08 * scene.exudate)
    capillaries = _ramp(phase, 0.05, 0.35)
    ground = ground + 0.85 * look["fine"] * capillaries * perfused * scene.thickness("fine")
    ground = ground * (1 - 0.78 * scene.haemorrhage) + 0.55 * scene.leakage * phase**1.3
    artery = 0.95 * _ramp(phase, -0.1, 0.1) * (1 - 0.35 * _ramp(phase, 0.4, 1))
    walls = 1 - scene.vein_axis  # laminar flow: the dye fills veins from the walls inwards
    filled = _ramp(phase, 0.2, 0.5)
    vein = 0.92 * _ramp(phase, 0.03, 0.4) * (filled + (1 - filled) * (0.35 + 0.65 * walls))
    vein = vein * (1 - 0.25 * _ramp(phase, 0.6, 1))
    for name, dye in (("vein", vein), ("artery", artery)):
        opacity = 1 - torch.exp(-2.2 * look["contrast"][:, 1:] * scene.thickness(name))
        ground = torch.lerp(ground, dye, opacity * (1 - 0.6 * scene.haemorrhage))
    return torch.maximum(ground, 0.85 * scene.microaneurysm * (0.4 + 0.6 * capillaries))


def _red_free(scene: _Scene) -> torch.Tensor:
    """Return the green light that the fundus reflects, (B, 1, H, W).

    Haemoglobin absorbs green light strongly, so that vessels and haemorrhages are darker than in white light.
    """
    return _colour_fundus(scene)[:, 1:2]


def _autofluorescence(scene: _Scene) -> torch.Tensor:
    """Return the light of lipofuscin in the pigment epithelium under blue light, (B, 1, H, W).

    Blood absorbs the blue light and the fluorescence, so vessels are dark. The disc is dark, because it has no pigment
    epithelium, and the fovea, because macular pigment absorbs blue light (Delori et al. 1995, Invest Ophthalmol Vis Sci
    36:718; Schmitz-Valckenberg et al. 2008, Retina 28:385). In leakage, macular pigment is displaced, so that more
    light passes.
    """
    look = scene.look
    granules = 0.5 * scene.smooth_noise(0.10) + 0.5 * scene.smooth_noise(1.5)
    ground = 0.45 * look["flush"] * (1 + 0.5 * look["grain"] * granules) * (1 + 0.35 * scene.leakage)
    ground = torch.lerp(ground * (1 - 0.65 * scene.fovea(0.75)), 0.12 * look["flush"], scene.disc)
    blocked = torch.maximum(scene.haemorrhage, 0.7 * torch.maximum(scene.microaneurysm, 0.5 * scene.exudate))
    thickness = scene.thickness("artery") + 1.15 * scene.thickness("vein")
    return ground * (1 - 0.75 * blocked) * torch.exp(-0.9 * look["contrast"][:, 1:] * thickness)


def _octa(scene: _Scene) -> torch.Tensor:
    """Return the motion contrast of flowing blood in the retina, (B, 1, H, W), as an en face OCT angiogram shows it.

    Vessels and the mesh of capillaries are bright, without dye and leakage. The foveal avascular zone and areas without
    perfusion are dark (Spaide et al. 2018, Prog Retin Eye Res 64:1).
    """
    look = scene.look
    perfused = (1 - scene.nonperfusion) * (1 - scene.fovea(0.3)) * (1 - 0.6 * scene.haemorrhage)
    mesh = (scene.smooth_noise(0.06).abs() * 0.5 + scene.smooth_noise(0.12).abs() * 0.5).clamp(0, 2)
    capillaries = 0.16 * mesh + 0.9 * look["fine"] * scene.thickness("fine")
    ground = 0.05 + perfused * capillaries
    for name in ("vein", "artery"):
        opacity = 1 - torch.exp(-2.5 * look["contrast"][:, 1:] * scene.thickness(name))
        ground = torch.lerp(ground, torch.full_like(ground, 0.85), opacity)
    return ground


_RENDERERS = {
    "cf": _colour_fundus,
    "red_free": _red_free,
    "fa": _angiogram,
    "autofluorescence": _autofluorescence,
    "octa": _octa,
}
"""The function that renders each modality: scene -> light, (B, 3, H, W) for a CF, else (B, 1, H, W)."""


def _ramp(values: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """Map `values` to [0, 1]: 0 below `start`, a smooth rise from `start` to `end`, and 1 above `end`."""
    t = ((values - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _expose(scene: _Scene, emitted: torch.Tensor, view: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Simulate the camera: illumination, blur, sensor noise and tone curve.

    emitted: the light that the fundus reflects or emits, (B, C, H, W).
    view: 0 for the CF, 1 for the FA.

    Returns (image with sensor noise, image without sensor noise), (B, C, H, W) in [0, 1] each.
    """
    look: dict[str, Any] = scene.look
    lit = emitted * scene.light(view) * look["exposure"][:, view, None]
    sharp = _blur(lit, look["blur"][:, view].flatten() * scene.size / _REFERENCE).clamp(min=0)
    # Shot noise grows with the square root of the light; read noise is constant. An image less than _REFERENCE px wide
    # has larger pixels and thus less noise.
    deviation = look["noise"] * (0.3 + sharp / 0.5).sqrt() * min(1.0, scene.size / _REFERENCE)
    noisy = sharp + deviation * scene.noise(tuple(emitted.shape[1:]))
    gamma = look["gamma"][:, view, None]
    return noisy.clamp(0.004, 1) ** gamma, sharp.clamp(0.004, 1) ** gamma


def _blur(images: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Blur each of the B images (B, C, H, W) with a Gaussian point spread function of its own sigma; sigmas (B,) px."""
    batch, channels = images.shape[:2]
    reach = _BLUR_REACH * max(1, math.ceil(images.shape[-1] / _REFERENCE))
    ticks = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (ticks / sigmas[:, None].clamp(min=0.05)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)  # (B * C, 2 reach + 1)
    flat = F.pad(images.reshape(1, batch * channels, *images.shape[2:]), (reach,) * 4, mode="replicate")
    groups = batch * channels
    flat = F.conv2d(flat, weights.view(groups, 1, 1, -1), groups=groups)
    return F.conv2d(flat, weights.view(groups, 1, -1, 1), groups=groups).view_as(images)
