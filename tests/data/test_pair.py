"""Images are read as they are displayed, whatever their file calls them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refusals import raises_file
from retipair.data.pair import image_size, load_image, save_image, synthetic_mark_of
from retipair.runtime.errors import DamagedError
from retipair.runtime.pillow import configure_pillow

VIEW = np.arange(30 * 50, dtype=np.int64).reshape(30, 50) * 255 // (30 * 50)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_read_the_way_up_it_is_displayed(tmp_path: Path, suffix: str, orientation: int) -> None:
    turned = {1: VIEW, 2: VIEW[:, ::-1], 3: VIEW[::-1, ::-1], 4: VIEW[::-1], 5: VIEW.T}
    turned |= {6: np.rot90(VIEW, -1), 7: VIEW[::-1, ::-1].T, 8: np.rot90(VIEW)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"view.{suffix}"
    Image.fromarray(VIEW.astype(np.uint8)).save(path, exif=exif)
    read = load_image(path, "L")
    assert read.shape == turned[orientation].shape
    assert abs(read.astype(int) - turned[orientation]).max() <= 8  # JPEG loses a little
    assert image_size(path) == read.shape[::-1]


def test_commands_lift_the_limit_that_a_host_program_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", VIEW.size // 3)
    save_image(tmp_path / "view.png", VIEW.astype(np.uint8))
    with raises_file(tmp_path / "view.png", DamagedError):
        load_image(tmp_path / "view.png", "L")
    configure_pillow()
    assert load_image(tmp_path / "view.png", "L").shape == VIEW.shape


def test_floats_from_0_to_1_are_no_black_image(tmp_path: Path) -> None:
    Image.fromarray((VIEW / 255).astype(np.float32)).save(tmp_path / "view.tif")
    assert np.array_equal(load_image(tmp_path / "view.tif", "L"), VIEW)


def test_floats_that_are_whole_numbers_are_read_as_those(tmp_path: Path) -> None:
    Image.fromarray(np.where(VIEW > 100, 4095, 0).astype(np.float32)).save(tmp_path / "view.tif")
    assert np.array_equal(load_image(tmp_path / "view.tif", "L"), np.where(VIEW > 100, 255, 0))


def test_other_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray((VIEW / 100).astype(np.float32)).save(tmp_path / "view.tif")
    with raises_file(tmp_path / "view.tif", DamagedError):
        load_image(tmp_path / "view.tif", "L")


def test_values_that_no_camera_has_are_refused(tmp_path: Path) -> None:
    Image.fromarray((VIEW * 1e30).astype(np.float32)).save(tmp_path / "view.tif")
    with raises_file(tmp_path / "view.tif", DamagedError):
        load_image(tmp_path / "view.tif", "L")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_black(tmp_path: Path, mode: str) -> None:
    hidden = Image.new("RGBA", (4, 4), (200, 200, 200, 0))
    hidden.paste((100, 100, 100, 255), (0, 0, 2, 4))
    hidden.convert(mode).save(tmp_path / "view.png")
    assert load_image(tmp_path / "view.png", "L").tolist() == [[100, 100, 0, 0]] * 4
    assert load_image(tmp_path / "view.png", "RGB")[0].tolist() == [[100] * 3, [100] * 3, [0] * 3, [0] * 3]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_that_is_broken_is_no_reason_to_refuse_an_image(tmp_path: Path) -> None:
    for number, exif in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x09\0")
    ):
        Image.fromarray(VIEW.astype(np.uint8)).save(tmp_path / f"{number}.jpg", exif=exif)
        assert load_image(tmp_path / f"{number}.jpg", "L").shape == VIEW.shape


def test_a_synthetic_mark_is_read_without_the_rest_and_only_where_all_files_have_it(tmp_path: Path) -> None:
    grey = VIEW.astype(np.uint8)
    mark = {"Synthetic": "yes: rendered", "Software": "retipair", "Seed": "0, pair 1"}
    texts = {"marked": {**mark, "Patient": "J. Doe"}, "photograph": {"Software": "camera", "Patient": "J. Doe"}}
    texts["source"] = {**mark, "Synthetic": "no: the pair that was varied"}
    paths = {name: tmp_path / f"{name}.png" for name in texts}
    for name, path in paths.items():
        save_image(path, grey, texts[name])
    Image.fromarray(grey).save(jpeg := tmp_path / "view.jpg", comment="J. Doe")
    assert synthetic_mark_of([paths["marked"], paths["marked"]]) == mark
    for other in (paths["photograph"], paths["source"], jpeg):
        assert synthetic_mark_of([paths["marked"], other]) == {}
        assert synthetic_mark_of([other, paths["marked"]]) == {}
