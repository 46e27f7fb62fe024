"""Rendered views of other modalities: the same eye, grey or in colour, with dark or bright vessels, disc and fovea."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compare import contents
from refusals import Refused
from retipair.data.manifest import read_manifest
from retipair.interfaces.cli import main
from retipair.phantoms import imaging
from retipair.phantoms.draw import Phantom, draw_phantom
from retipair.vision.modality import MODALITIES, find_modalities

SIZE = 256


def _drawn(*keys: str) -> Phantom:
    return draw_phantom(0, 2, SIZE, "rose", "healthy", None, find_modalities(keys))


def _mean_at(image: np.ndarray, where: np.ndarray) -> float:
    return float(image[where].mean())


def _near(place: list[float], radius: float) -> np.ndarray:
    y, x = np.indices((SIZE, SIZE))
    return np.asarray(np.hypot(x - place[0], y - place[1]) < radius)


def test_every_modality_can_be_rendered() -> None:
    assert set(imaging._RENDERERS) == set(MODALITIES)


def test_a_red_free_photograph_is_grey_and_shows_the_eye_of_the_photograph() -> None:
    grey, colour = _drawn("red_free", "fa"), _drawn("cf", "fa")
    assert np.ptp(grey.cf, axis=2).max() == 0
    assert np.ptp(colour.cf, axis=2).max() > 50
    np.testing.assert_array_equal(grey.layers["vessels"], colour.layers["vessels"])
    assert np.corrcoef(grey.cf[..., 0][grey.field], colour.cf[..., 1][grey.field])[0, 1] > 0.95


def test_vessels_disc_and_fovea_are_dark_in_autofluorescence() -> None:
    eye = _drawn("cf", "autofluorescence")
    vessels, disc = (eye.layers[name] > 0 for name in ("vessels", "disc"))
    around = eye.field & ~vessels & ~disc & _near(eye.fovea, 90) & ~_near(eye.fovea, 40)
    usual = _mean_at(eye.fa, around)
    for dark in (vessels & ~disc, disc, _near(eye.fovea, 8)):
        assert _mean_at(eye.fa, dark & eye.field) < 0.9 * usual


def test_vessels_are_bright_in_octa_and_the_avascular_zone_is_dark() -> None:
    eye = _drawn("cf", "octa")
    vessels = eye.layers["vessels"] > 0
    background = _mean_at(eye.fa, eye.field & ~vessels)
    assert _mean_at(eye.fa, vessels & eye.field) > 2 * background
    assert _mean_at(eye.fa, _near(eye.fovea, 4)) < 0.6 * background


def _phantom(out: Path, *flags: str) -> list[str]:
    return ["phantom", str(out), "--amount", "2", "--size", "64", *flags]


def test_the_folder_says_what_its_views_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(_phantom(out, "--modalities", "red_free", "octa")) == 0
    assert {Image.open(path).mode for path in out.glob("[cf]?/*.png")} == {"L"}
    assert [record.modalities for record in read_manifest(out)] == [["red_free", "octa"]] * 2
    assert [record.vessels for record in read_manifest(out)] == [["dark", "bright"]] * 2
    assert json.loads((out / ".phantom.json").read_text())["settings"]["modalities"] == ["red_free", "octa"]


def test_cf_and_fa_by_name_are_the_default(tmp_path: Path) -> None:
    assert main(_phantom(tmp_path / "a")) == main(_phantom(tmp_path / "b", "--modalities", "cf", "fa")) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_kind_of_pair_in_the_same_folder_is_refused(tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    assert main(_phantom(out, "--modalities", "cf", "octa")) == 0
    before = contents(out)
    for flags in ([], ["--modalities", "red_free", "octa"]):
        text = refused(*_phantom(out, *flags))
        assert "--modalities cf octa" in text
        assert text.path == out
    assert contents(out) == before


@pytest.mark.parametrize("names", [("fa", "cf"), ("cf", "cf"), ("cf", "mri")])
def test_unknown_modalities_are_refused(names: tuple[str, str], tmp_path: Path, refused: Refused) -> None:
    assert refused(*_phantom(tmp_path / "out", "--modalities", *names)).setting == "modalities"
    assert not (tmp_path / "out").exists()
