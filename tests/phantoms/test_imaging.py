"""Two imaging models over one geometry: what each view shows, and what it does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retipair.phantoms.anatomy import draw_eye
from retipair.phantoms.cameras import CAMERAS, Look, draw_look
from retipair.phantoms.imaging import _blur, photograph
from retipair.phantoms.maps import CHANNELS, draw_maps, frame_of

SIZE = 512


@pytest.fixture(scope="module")
def maps() -> torch.Tensor:
    """A healthy eye, (channels, SIZE, SIZE)."""
    eye = draw_eye(np.random.default_rng(21), "healthy")
    return draw_maps(eye, frame_of(eye, SIZE))


def look() -> Look:
    """A late photograph without a tab."""
    drawn = draw_look(np.random.default_rng(1), CAMERAS["rose"])
    return replace(drawn, phase=0.6)


def views(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CF (3, S, S) and FA (S, S), with the same noise each time."""
    seen = photograph(maps[None], [look()], [torch.Generator().manual_seed(3)])
    return seen.cf[0], seen.fa[0, 0]


def with_blob(maps: torch.Tensor, kind: str, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with one lesion where few vessels are, and where it is (S, S) bool."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    blob = torch.hypot(x - 220.0, y - 280.0) < radius
    changed = maps.clone()
    changed[CHANNELS.index(kind)] = blob.float()
    return changed, blob


CHANGES = {  # of green in the CF and of the FA, where the lesion is: -1 darker, 0 the same, 1 brighter
    "microaneurysm": (-1, 1),
    "haemorrhage": (-1, -1),
    "exudate": (1, 0),
    "nonperfusion": (0, -1),
    "leakage": (0, 1),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_lesion_looks_as_it_does_in_each_view(maps: torch.Tensor, kind: str) -> None:
    changed, blob = with_blob(maps, kind, radius=3 if kind == "microaneurysm" else 8)
    (cf, fa), (cf_ill, fa_ill) = views(maps), views(changed)
    changes = float((cf_ill - cf)[1][blob].mean()), float((fa_ill - fa)[blob].mean())
    for change, expected in zip(changes, CHANGES[kind], strict=True):
        assert abs(change) < 0.02 if expected == 0 else change * expected > 0.03
    if CHANGES[kind][0] == 0:
        assert (cf_ill == cf).all()
    away = torch.nn.functional.max_pool2d(blob.float()[None], 11, 1, 5)[0] == 0
    assert (cf_ill == cf)[:, away].all()
    assert (fa_ill == fa)[away].all()


def test_the_finest_vessels_are_in_the_fa_alone(maps: torch.Tensor) -> None:
    without = maps.clone()
    without[CHANNELS.index("fine")] = 0
    (cf, fa), (cf_without, fa_without) = views(maps), views(without)
    fine = maps[CHANNELS.index("fine")] > 0.03
    assert fine.float().mean() > 0.02
    assert (cf == cf_without).all()
    assert (fa - fa_without)[fine].mean() > 0.005


def test_vessels_are_dark_in_the_cf_and_bright_in_the_fa(maps: torch.Tensor) -> None:
    without = maps.clone()
    without[: CHANNELS.index("fine")] = 0
    (cf, fa), (cf_without, fa_without) = views(maps), views(without)
    thick = torch.maximum(maps[CHANNELS.index("artery")], maps[CHANNELS.index("vein")]) > 0.3
    assert (cf - cf_without)[1][thick].mean() < -0.05
    assert (fa - fa_without)[thick].mean() > 0.1


def test_a_photograph_does_not_depend_on_those_beside_it(maps: torch.Tensor) -> None:
    looks = [draw_look(np.random.default_rng(n), camera) for n, camera in enumerate(list(CAMERAS.values())[:3])]
    generators = [torch.Generator().manual_seed(n) for n in range(len(looks))]
    batch = photograph(maps.expand(len(looks), -1, -1, -1), looks, generators)
    alone = photograph(maps[None], looks[2:3], [torch.Generator().manual_seed(2)])
    for name in ("cf", "fa", "aperture", "clean_cf", "clean_fa"):
        together, single = getattr(batch, name), getattr(alone, name)
        assert torch.allclose(together[2], single[0], rtol=0, atol=1e-5)
        assert together.min() >= 0
        assert together.max() <= 1


@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_optics_blur_the_same_whatever_the_size(size: int) -> None:
    sigma = 1.3 * size / 512
    line = torch.zeros(1, 1, 1, size)
    line[..., size // 2] = 1
    spread = _blur(line, torch.tensor([sigma]))[0, 0, 0]
    at = torch.arange(size) - size // 2
    assert float((spread * at**2).sum().sqrt()) == pytest.approx(sigma, rel=0.01)
