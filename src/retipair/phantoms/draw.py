"""Render one synthetic pair, with its ground truth, from a seed and the number of the pair."""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch

from retipair.phantoms import truth
from retipair.phantoms.anatomy import draw_eye
from retipair.phantoms.cameras import BASE_CAMERAS, CAMERAS, Look, draw_look
from retipair.phantoms.clicks import Clicks, forks_and_crossings, place
from retipair.phantoms.imaging import photograph
from retipair.phantoms.lesions import Disease
from retipair.phantoms.maps import FIELD, draw_maps, frame_of
from retipair.phantoms.pose import MARGIN, draw_pose, seen_by_cf_camera, seen_by_fa_camera
from retipair.registration.landmarks import Landmarks
from retipair.vision.modality import CF_FA, Modalities

BASE_DISEASES: tuple[Disease, ...] = ("healthy", "diabetic")
"""Diseases from which one is chosen at random, with equal probability, if none is requested."""


@dataclass(frozen=True)
class Phantom:
    """One rendered pair with its ground truth.

    cf: the CF, (S, S, 3) uint8, black outside its field of view; grey if its modality has no colour.
    fa: the FA, (S, S) uint8, black outside its field of view.
    field: the field of view of the CF, (S, S) bool.
    fa_to_cf: the homography (3, 3) from FA px to CF px; the identity for a registered pair.
    landmarks: the simulated landmarks; None for a registered pair.
    layers: the label images, by the names in `truth.LAYERS`.

    The other fields have the same meaning as in `truth.Truth`.
    """

    cf: np.ndarray
    fa: np.ndarray
    field: np.ndarray
    fa_to_cf: np.ndarray
    landmarks: Landmarks | None
    wrong_points: list[int]
    side: str
    disease: Disease
    camera: str
    phase: float
    disc: list[float]
    disc_radii: list[float]
    fovea: list[float]
    lesions: list[dict[str, str | float]]
    layers: dict[str, np.ndarray]


def draw_phantom(
    seed: int,
    number: int,
    size: int,
    camera: str | None,
    disease: Disease | None,
    clicks: Clicks | None,
    modalities: Modalities = CF_FA,
) -> Phantom:
    """Render one pair, registered or not.

    seed, number: the seed and the number of the pair. Together with the disease, they determine the vessels; camera,
    size and clicks do not affect the vessels.
    size: the side of the views, px.
    camera: a name in CAMERAS; None to choose one of BASE_CAMERAS at random.
    disease: the disease of the eye; None to choose one of BASE_DISEASES at random.
    clicks: the parameters of the landmarks; None for a registered pair. If given, the camera of the FA is moved
    relative to that of the CF.
    modalities: the modalities of the two views; they do not affect the vessels.
    """
    disease = disease or BASE_DISEASES[_rng(seed, number, "disease").integers(len(BASE_DISEASES))]
    camera = camera or BASE_CAMERAS[_rng(seed, number, "camera").integers(len(BASE_CAMERAS))]
    eye = draw_eye(_rng(seed, number, "eye"), disease)
    rng = _rng(seed, number, "look")
    look = draw_look(rng, CAMERAS[camera])
    frame, fa_to_cf = frame_of(eye, size), np.eye(3)
    if clicks is None:
        maps = draw_maps(eye, frame)
        cf, fa, field = _photographs(rng, maps, look, modalities)
        landmarks, wrong = None, cast("list[int]", [])
    else:
        side = size + 2 * int(size * MARGIN)
        wide = draw_maps(eye, frame_of(eye, side, FIELD * side / size))
        fa_to_cf = draw_pose(_rng(seed, number, "pose"), size)
        maps = seen_by_cf_camera(wide, size)
        cf, _, field = _photographs(rng, maps, look, modalities)
        moved_look = replace(look, shift=draw_look(rng, CAMERAS[camera]).shift)
        _, fa, fa_field = _photographs(rng, seen_by_fa_camera(wide, size, fa_to_cf), moved_look, modalities)
        places = frame.pixels(forks_and_crossings(eye))
        landmarks, wrong = place(_rng(seed, number, "clicks"), places, (field, fa_field), fa_to_cf, clicks)
    disc, disc_radii, fovea = truth.places(eye, frame)
    return Phantom(
        cf=cf,
        fa=fa,
        field=field,
        fa_to_cf=fa_to_cf,
        landmarks=landmarks,
        wrong_points=wrong,
        side=eye.side,
        disease=disease,
        camera=camera,
        phase=look.phase,
        disc=disc,
        disc_radii=disc_radii,
        fovea=fovea,
        lesions=truth.seen_lesions(eye, frame, field),
        layers=truth.draw_layers(eye, maps, frame, field),
    )


def _photographs(
    rng: np.random.Generator, maps: torch.Tensor, look: Look, modalities: Modalities
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (CF (S, S, 3) uint8, FA (S, S) uint8, field of view (S, S) bool); the views are black outside it."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    views = photograph(maps[None], [look], [generator], modalities)
    field = (views.aperture[0, 0] > 0.5).numpy()
    cf_image, fa_image = ((view[0] * 255).round().byte().numpy() for view in (views.cf, views.fa))
    cf_image = np.broadcast_to(cf_image.transpose(1, 2, 0), (*field.shape, 3))
    return cf_image * field[..., None], fa_image[0] * field, field


def _rng(seed: int, number: int, purpose: str) -> np.random.Generator:
    """Return the random generator of a pair for one purpose, for example "eye" or "camera".

    A setting that changes how many numbers are drawn for one purpose does not change the numbers for other purposes.
    """
    return np.random.default_rng([seed, number, int.from_bytes(purpose.encode(), "little")])
