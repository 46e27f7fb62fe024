"""Modalities: CF and FA stay what they were, wrong names are refused, and the polarity decides what a vessel is."""

import numpy as np
import pytest

from retipair.config import DEFAULT_PROMPT
from retipair.phantoms.draw import draw_phantom
from retipair.vision.modality import CF_FA, MODALITIES, find_modalities
from retipair.vision.ridges import flattened, vesselness_correlation


def test_cf_and_fa_are_the_default_and_nothing_is_recorded_of_them() -> None:
    assert find_modalities(None) is find_modalities(("cf", "fa"))
    assert find_modalities(None) == CF_FA
    assert CF_FA.prompt == DEFAULT_PROMPT
    assert (CF_FA.legend, CF_FA.hashed, set(CF_FA.recorded.values())) == ("", [], {None})


def test_what_is_recorded_gives_the_same_modalities_back() -> None:
    kinds = [find_modalities(("cf", "autofluorescence")), CF_FA.with_second("dark"), find_modalities(("fa", "octa"))]
    for modalities in kinds:
        assert (
            find_modalities(**{"keys": modalities.recorded["modalities"], "vessels": modalities.recorded["vessels"]})
            == modalities
        )
    assert len({str(modalities) for modalities in kinds}) == 3
    assert str(CF_FA.with_second("dark")) == "cf and fa with dark vessels"


@pytest.mark.parametrize(
    ("keys", "vessels"),
    [
        (("cf",), None),
        (("cf", "fa", "octa"), None),
        (("cf", "xray"), None),
        (("fa", "fa"), None),
        (("fa", "cf"), None),
        (("cf", "fa"), ("dark", "grey")),
        (("cf", "fa"), ("dark",)),
    ],
)
def test_other_modalities_and_vessels_are_refused(keys: tuple[str, ...], vessels: tuple[str, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"must be|twice|in colour"):
        find_modalities(keys, vessels)


def test_dark_vessels_are_the_bright_vessels_of_the_negative() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    mask = np.ones((64, 64), dtype=bool)
    np.testing.assert_array_equal(flattened(255 - image, mask, dark=True), flattened(image, mask, dark=False))
    np.testing.assert_array_equal(flattened(image, mask), flattened(image, mask, dark=False))
    rgb = np.repeat(image[..., None], 3, axis=2)
    np.testing.assert_array_equal(flattened(rgb, mask), flattened(image, mask, dark=True))


@pytest.mark.parametrize("second", ["autofluorescence", "octa"])
def test_the_views_agree_only_with_the_right_vessels(second: str) -> None:
    modalities = find_modalities(("cf", second))
    eye = draw_phantom(0, 1, 384, None, None, None, modalities)
    right = MODALITIES[second].vessels == "dark"
    assert vesselness_correlation(eye.cf, eye.fa, eye.field, (True, right)) > 0.5
    assert vesselness_correlation(eye.cf, eye.fa, eye.field, (True, not right)) < 0.1
