"""The forms of the samples, read by the published rules of their readers, give the homography of each sample.

The rules are written down again here from the readers' sources, which the modules of the forms name.
"""

import csv
import json
import os
import pickle
import pickletools
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter, map_coordinates

from retipair.data.manifest import Split
from retipair.data.pair import load_image, save_image
from retipair.data.sources import find_pairs
from retipair.matching.reader_formats import FORMS
from retipair.matching.reader_formats.glue_factory import write_glue_factory
from retipair.matching.reader_formats.megadepth import write_megadepth
from retipair.matching.reader_formats.minima import write_minima
from retipair.matching.reader_formats.numbered import write_numbered
from retipair.matching.reader_formats.segmented import write_segmented
from retipair.matching.samples import MatchSample
from retipair.registration.estimate import register_points
from retipair.registration.landmarks import read_landmarks
from retipair.registration.warp import View, resample, transform_points
from retipair.runtime.errors import UserError

SIZE = 160
CENTRE = (SIZE - 1) / 2
POINTS = CENTRE + 0.5 * SIZE * np.random.default_rng(0).uniform(-0.5, 0.5, (60, 2))
"""Points in the middle of the CF, (60, 2) px, which every warp below leaves in the field of view."""


def warp(degrees: float, scale: float, x: float, y: float, perspective: float) -> np.ndarray:
    """A homography (3, 3) about the centre of the image."""
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    about = np.array([[c, -s, x], [s, c, y], [perspective, -0.7 * perspective, 1]])
    centre = np.array([[1, 0, CENTRE], [0, 1, CENTRE], [0, 0, 1]])
    return np.asarray(-3 * centre @ about @ np.linalg.inv(centre))  # scale and sign of a homography are arbitrary


WARPS = {"aligned": np.eye(3), "warp_1": warp(35, 0.9, 6.5, -4.2, 2e-3), "warp_2": warp(-80, 1.1, -3.1, 2.7, -1.5e-3)}


def write_sample(folder: Path, id: str, variant: str, split: Split, field: str | None = None) -> MatchSample:
    """Write a sample whose FA shows the texture of the CF, warped, so that the images tell the direction of H."""
    rng = np.random.default_rng(len(id))
    texture = gaussian_filter(rng.normal(size=(SIZE, SIZE)), 3)
    grey = np.clip(128 + 60 * texture / texture.std(), 0, 255).astype(np.uint8)
    distance = np.hypot(*(np.mgrid[:SIZE, :SIZE] - CENTRE))
    valid, matrix = distance < 0.48 * SIZE, WARPS[variant]
    mask, vessels = np.uint8(255) * valid, np.uint8(255) * (valid & (texture > 0.1))
    moving = f"{id}/{variant}" if variant != "aligned" else id
    fa = "fa" if variant == "aligned" else "fa_warped"
    sides = ("cf", "cf") if variant == "aligned" else ("cf", "fa")
    images = {
        f"{id}/cf.png": np.repeat((grey * valid)[..., None], 3, axis=2),
        f"{id}/valid_cf.png": mask,
        f"{id}/vessels_cf.png": vessels,
        f"{moving}/{fa}.png": resample(grey * valid, matrix, SIZE),
        f"{moving}/valid_{sides[1]}.png": np.uint8(255) * resample(valid, matrix, SIZE),
        f"{moving}/vessels_{sides[1]}.png": np.uint8(255) * resample(vessels > 0, matrix, SIZE),
    }
    for name, image in images.items():
        save_image(folder / name, image)
    lines = np.hstack([POINTS[:20], transform_points(matrix, POINTS[:20])])
    landmarks = folder / id / variant / "landmarks.txt"
    landmarks.parent.mkdir(exist_ok=True)
    landmarks.write_text("".join(" ".join(f"{value:.3f}" for value in line) + "\n" for line in lines))
    return MatchSample(
        id=id,
        variant=variant,
        split=split,
        eye=f"patient of {id}",
        size=SIZE,
        seed=1,
        cf=f"{id}/cf.png",
        fa=f"{moving}/{fa}.png",
        valid_cf=f"{id}/valid_cf.png",
        valid_fa=f"{moving}/valid_{sides[1]}.png",
        vessels_cf=f"{id}/vessels_cf.png",
        vessels_fa=f"{moving}/vessels_{sides[1]}.png",
        landmarks=f"{id}/{variant}/landmarks.txt",
        h_cf_to_fa=matrix.tolist(),
        synthetic=True,
        source_sha256="0" * 64,
        field=field,
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MatchSample]]:
    """Two eyes of the training split and one of the test split in three variants, and an elastic sample."""
    folder = tmp_path_factory.mktemp("exported")
    splits: dict[str, Split] = {"eye_1": "train", "eye_22": "test", "eye_333": "train"}
    samples = [write_sample(folder, id, variant, split) for id, split in splits.items() for variant in WARPS]
    elastic = write_sample(folder, "eye_4444", "warp_1", "train", field="eye_4444/warp_1/field.npz")
    return folder, [*samples, elastic]


def expected(samples: list[MatchSample], split: str) -> list[MatchSample]:
    return [sample for sample in samples if sample.split == split and sample.field is None]


def is_shown_by_images(cf: np.ndarray, fa: np.ndarray, warped: np.ndarray) -> bool:
    """Whether the FA (H, W) has, at the warped points, the grey values of the CF (H, W) at `POINTS`."""
    values = [
        map_coordinates(image.astype(float), points.T[::-1], order=1) for image, points in ((cf, POINTS), (fa, warped))
    ]
    return float(np.corrcoef(values)[0, 1]) > 0.97


def test_images_tell_the_direction_of_a_homography(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    for sample in samples:
        cf, fa, matrix = load_image(folder / sample.cf, "L"), load_image(folder / sample.fa, "L"), WARPS[sample.variant]
        assert is_shown_by_images(cf, fa, transform_points(matrix, POINTS))
        wrong = transform_points(np.linalg.inv(matrix), POINTS)
        assert sample.variant == "aligned" or not is_shown_by_images(cf, fa, wrong)


# --- glue-factory: gluefactory/datasets/image_pairs.py, gluefactory/utils/image.py


def glue_factory_pairs(path: Path) -> list[tuple[str, str, np.ndarray]]:
    """Names and H_0to1 of each line; the dataset then converts H to float32."""
    lines = [line.rstrip().split(" ") for line in path.read_text().splitlines()]
    return [(line[0], line[1], np.array([float(word) for word in line[2:11]]).reshape(3, 3)) for line in lines]


@pytest.mark.parametrize("resized", [SIZE, SIZE // 2, 2 * SIZE + 80])
def test_glue_factory_matches_its_keypoints_exactly_at_any_size(
    exported: tuple[Path, list[MatchSample]], resized: int
) -> None:
    folder, samples = exported
    written = write_glue_factory(folder, samples)
    assert (written.samples, written.elastic) == (9, 1)
    assert {path.name for path in written.folder.iterdir()} == {"pairs_train.txt", "pairs_test.txt"}
    for split in ("train", "test"):
        pairs = glue_factory_pairs(written.folder / f"pairs_{split}.txt")
        for sample, (name0, name1, matrix) in zip(expected(samples, split), pairs, strict=True):
            assert (name0, name1) == (sample.cf, sample.fa)
            scale = resized / SIZE
            resize = np.diag([scale, scale, 1])  # its ImagePreprocessor
            h_0to1 = resize @ matrix @ np.linalg.inv(resize)
            detected = [(points + 0.5) * scale - 0.5 for points in (POINTS, moved(sample))]  # px of the resized images
            keypoints0, keypoints1 = (points + 0.5 for points in detected)  # its extractors
            assert np.abs(transform_points(h_0to1, keypoints0) - keypoints1).max() < 1e-9


def moved(sample: MatchSample) -> np.ndarray:
    return transform_points(np.array(sample.h_cf_to_fa), POINTS)


def test_h_for_integer_pixel_centres_would_be_half_a_pixel_off_in_glue_factory() -> None:
    """Its keypoints are at half-integers: H applied to p + 0.5 is not H p + 0.5 unless H is a translation."""
    quarter = np.array([[0.0, -1, SIZE - 1], [1, 0, 0], [0, 0, 1]])
    errors = transform_points(quarter, POINTS + 0.5) - (transform_points(quarter, POINTS) + 0.5)
    assert np.allclose(np.linalg.norm(errors, axis=1), 1.0)


def test_a_path_with_white_space_is_refused_before_glue_factory_splits_it(
    exported: tuple[Path, list[MatchSample]], tmp_path: Path
) -> None:
    sample = write_sample(tmp_path, "an eye", "aligned", "train")
    with pytest.raises(UserError, match="'an eye/cf.png' has white space"):
        write_glue_factory(tmp_path, [sample])
    assert not (tmp_path / "glue_factory").exists()


# --- LoFTR: src/datasets/megadepth.py, src/utils/dataset.py, src/loftr/utils/geometry.py


class Loftr:
    """A scene as LoFTR's loader reads it. Everything after the scene file is float32, as there."""

    def __init__(self, root: Path, path: Path) -> None:
        self.root, self.scene = root, np.load(path, allow_pickle=True)
        self.pairs = self.scene["pair_infos"].copy()
        del self.scene["pair_infos"]
        self.pairs = [pair for pair in self.pairs if pair[1] > 0.4]

    def pair(self, number: int) -> tuple[list[Path], list[np.ndarray], list[np.ndarray], np.ndarray]:
        """Image paths, depths padded to 2000 px, K of both images, and T_0to1."""
        indices, _overlap, _matches = self.pairs[number]
        images = [self.root / self.scene["image_paths"][index] for index in indices]
        depths = []
        for index in indices:
            with h5py.File(self.root / self.scene["depth_paths"][index], "r") as file:
                depth = np.array(file["depth"])
            depths.append(np.pad(depth, [(0, 2000 - side) for side in depth.shape]))
        intrinsics = [np.array(self.scene["intrinsics"][index].copy(), dtype=np.float32) for index in indices]
        t0, t1 = (self.scene["poses"][index] for index in indices)
        return images, depths, intrinsics, np.matmul(t1, np.linalg.inv(t0)).astype(np.float32)


def loftr_warp(
    points: np.ndarray, depths: list[np.ndarray], intrinsics: list[np.ndarray], pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Warped points (N, 2), whether each counts (N,), and the relative differences of the depths (N,), NaN outside."""
    points = points.astype(np.float32)
    x, y = points.round().astype(int).T
    depth = depths[0][y, x]
    rays = np.column_stack([points, np.ones(len(points), np.float32)]) * depth[:, None]
    camera = pose[:3, :3] @ (np.linalg.inv(intrinsics[0]) @ rays.T) + pose[:3, 3:]
    projected = (intrinsics[1] @ camera).T
    warped = projected[:, :2] / (projected[:, 2:] + np.float32(1e-4))
    height, width = depths[1].shape
    inside = ((warped > 0) & (warped < [width - 1, height - 1])).all(axis=1)
    column, row = np.where(inside[:, None], warped, 0).astype(int).T
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.abs((depths[1][row, column] - camera[2]) / depths[1][row, column])
    return warped, (depth != 0) & inside & (difference < 0.2), difference


def test_loftr_warps_points_by_the_homography(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    written = write_megadepth(folder, samples)
    assert (written.samples, written.elastic) == (9, 1)
    for split in ("train", "test"):
        names = [name.split()[0] for name in (written.folder / f"{split}_list.txt").read_text().splitlines()]
        assert names == [split]
        scene = Loftr(folder, written.folder / "scene_info" / f"{names[0]}.npz")
        assert len(scene.pairs) == len(expected(samples, split))
        for number, sample in enumerate(expected(samples, split)):
            images, depths, intrinsics, pose = scene.pair(number)
            assert images == [folder / sample.cf, folder / sample.fa]
            for points, truth, *pair in (
                (POINTS, moved(sample), depths, intrinsics, pose),
                (moved(sample), POINTS, depths[::-1], intrinsics[::-1], np.linalg.inv(pose)),
            ):
                warped, counts, difference = loftr_warp(points, *pair)
                assert np.linalg.norm(warped - truth, axis=1).max() < 0.005  # px
                assert counts.all()
                assert difference.max() < 0.02  # the depth is that of the pixel, and not of the point within it


def test_loftr_does_not_count_points_outside_the_valid_masks(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    sample = expected(samples, "train")[1]
    _, depths, intrinsics, pose = Loftr(folder, write_megadepth(folder, samples).folder / "scene_info/train.npz").pair(
        1
    )
    every = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=-1).reshape(-1, 2)
    for side, (name, others) in enumerate(((sample.valid_cf, (1, 1)), (sample.valid_fa, (-1, -1)))):
        valid = load_image(folder / name, "L") > 127
        assert np.array_equal(depths[side][:SIZE, :SIZE] > 0, valid)
        assert not depths[side][SIZE:].any()
        _, counts, _ = loftr_warp(every, depths[:: others[0]], intrinsics, pose if side == 0 else np.linalg.inv(pose))
        assert not counts[~valid.ravel()].any()
        assert counts[valid.ravel()].mean() > 0.7


def test_loftr_is_half_a_pixel_of_the_difference_in_size_off_at_another_size(
    exported: tuple[Path, list[MatchSample]],
) -> None:
    """Its coarse grid is multiplied by `scale`, although its images are resized with their pixel areas aligned."""
    folder, samples = exported
    _, depths, intrinsics, pose = Loftr(folder, write_megadepth(folder, samples).folder / "scene_info/train.npz").pair(
        1
    )
    grid = 8 * np.stack(np.meshgrid(np.arange(7, 13), np.arange(7, 13)), axis=-1).reshape(-1, 2).astype(float)
    for resized, limit in ((SIZE, 0.005), (SIZE * 5 // 4, 0.3)):
        scale = SIZE / resized
        warped = loftr_warp(grid * scale, depths, intrinsics, pose)[0] / scale
        truth = (transform_points(WARPS["warp_1"], (grid + 0.5) * scale - 0.5) + 0.5) / scale - 0.5
        errors = np.linalg.norm(warped - truth, axis=1)
        assert errors.max() < limit
        assert scale == 1 or errors.min() > 0.02


def test_scene_files_can_be_read_by_any_version_of_numpy(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    data = (write_megadepth(folder, samples).folder / "scene_info/train.npz").read_bytes()
    assert {op.name for op, _, _ in pickletools.genops(data)}.isdisjoint({"GLOBAL", "STACK_GLOBAL", "REDUCE"})
    assert isinstance(pickle.loads(data), dict)


def test_the_cf_of_an_eye_has_one_depth_map(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    depths = write_megadepth(folder, samples).folder / "depth"
    assert len(list((depths / "cf").rglob("*.h5"))) == 3
    assert len(list((depths / "fa").rglob("*.h5"))) == 9


def test_megadepth_names_the_extra_that_it_needs(
    exported: tuple[Path, list[MatchSample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, samples = exported
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'retipair\[matching\]'"):
        write_megadepth(folder, samples)


# --- MINIMA: test_relative_homo_mmim.py


def minima_pairs(root: Path, choose_model: int) -> list[tuple[Path, Path, np.ndarray]]:
    """image0, image1 and the homography from image0 to image1, in px that are counted from 0."""
    one_less = np.array([[1, 0, -1], [0, 1, -1], [0, 0, 1]])
    pairs = []
    for name in (root / ("test_list.txt", "test_list_2.txt")[choose_model]).read_text().splitlines():
        folder = root / "Multimodal_Image_Matching_Datasets" / name.strip()
        for mat, image1, image0 in json.loads((folder / "list.json").read_text()).values():
            matrix = loadmat(folder / mat)["T"].T
            matrix = one_less @ matrix @ np.linalg.inv(one_less)
            pairs.append((folder / image0, folder / image1, matrix / matrix[2, 2]))
    return pairs


def test_minima_reads_the_homography_from_cf_to_fa(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    written = write_minima(folder, samples)
    assert (written.samples, written.elastic) == (9, 1)
    pairs = minima_pairs(written.folder, choose_model=0)
    for sample, (image0, image1, matrix) in zip(expected(samples, "test"), pairs, strict=True):
        warped = transform_points(matrix, POINTS)
        assert np.abs(warped - moved(sample)).max() < 1e-9
        assert is_shown_by_images(load_image(image0, "L"), load_image(image1, "L"), warped)
        assert (image0.name, image1.name) == (f"{sample.name}_cf.png", f"{sample.name}_fa.png")
    assert minima_pairs(written.folder, choose_model=1) == []  # no validation split
    assert len(json.loads((written.folder / "Multimodal_Image_Matching_Datasets/train/list.json").read_text())) == 6


# --- Numbered folders


def test_prepare_finds_numbered_folders_and_recovers_the_homography(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    written = write_numbered(folder, samples)
    assert (written.samples, written.elastic) == (9, 1)
    pairs = {pair.id: pair for pair in find_pairs(written.folder)}
    chosen = {f"{sample.id}-{sample.variant}": sample for sample in samples if sample.field is None}
    assert pairs.keys() == chosen.keys()
    for name, sample in chosen.items():
        pair = pairs[name]
        assert (pair.eye, pair.split) == (sample.eye, sample.split)
        assert pair.cf_points is not None
        assert pair.fa_points is not None
        cf, fa = View(load_image(pair.cf, "RGB")), View(load_image(pair.fa, "L"))
        landmarks = read_landmarks(pair.cf_points, pair.fa_points, cf.image.shape, fa.image.shape)
        found = np.linalg.inv(register_points(cf, fa, landmarks).fa_to_cf)
        assert np.abs(transform_points(found, POINTS) - moved(sample)).max() < 0.02


def test_fewer_landmarks_than_prepare_needs_are_left_out(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "eye", "aligned", "train")
    (tmp_path / sample.landmarks).write_text("1 2 3 4\n" * 3)
    [pair] = find_pairs(write_numbered(tmp_path, [sample]).folder)
    assert (pair.cf_points, pair.fa_points) == (None, None)


@pytest.mark.parametrize("line", ["1 2 3", "1 2 3 4 5", "1 2 3 x", "1 2 3 nan", ""])
def test_landmarks_that_are_not_four_numbers_are_refused(tmp_path: Path, line: str) -> None:
    sample = write_sample(tmp_path, "eye", "aligned", "train")
    (tmp_path / sample.landmarks).write_text(f"1 2 3 4\n{line}\n")
    with pytest.raises(UserError, match="landmarks.txt, line 2: must be 'cf_x cf_y fa_x fa_y'"):
        write_numbered(tmp_path, [sample])
    assert not (tmp_path / "numbered").exists()


def test_images_are_copied_where_links_are_impossible(
    exported: tuple[Path, list[MatchSample]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, samples = exported
    view = write_numbered(folder, samples).folder / "eye_1-warp_1/eye_1-warp_1_02.png"
    assert view.samefile(folder / "eye_1/warp_1/fa_warped.png")

    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    write_numbered(folder, samples)
    assert not view.samefile(folder / "eye_1/warp_1/fa_warped.png")
    assert view.read_bytes() == (folder / "eye_1/warp_1/fa_warped.png").read_bytes()


# --- Segmented folders


def test_segmented_folders_are_the_aligned_pairs_with_their_vessels(exported: tuple[Path, list[MatchSample]]) -> None:
    folder, samples = exported
    written = write_segmented(folder, samples)
    assert (written.samples, written.elastic) == (3, 0)
    found = sorted(path.relative_to(written.folder).as_posix() for path in written.folder.glob("*/*"))
    assert found == ["test/1_A_seg", "train/1_A_seg", "train/2_A_seg"]
    assert all(re.fullmatch(r"\d+_[A-Z]_seg", Path(name).name) for name in found)
    for name, id in (("train/1_A_seg", "eye_1"), ("train/2_A_seg", "eye_333"), ("test/1_A_seg", "eye_22")):
        cf, fa, seg = (load_image(written.folder / name / f"{part}.png", "L") for part in ("cf_gen", "fa_gen", "seg"))
        assert np.array_equal(cf, load_image(folder / id / "cf.png", "L"))
        assert np.array_equal(cf, fa)  # the FA of these samples shows the texture of the CF
        assert np.array_equal(np.unique(seg), [0, 255])
        assert np.array_equal(seg, load_image(folder / id / "vessels_cf.png", "L"))


# --- All forms


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_replaced_by_the_same_bytes(exported: tuple[Path, list[MatchSample]], name: str) -> None:
    folder, samples = exported
    first = contents(FORMS[name](folder, samples).folder)
    (folder / name / "leftover.txt").write_text("of an earlier export")
    written = FORMS[name](folder, iter(samples))
    assert written.folder == folder / name
    assert contents(written.folder) == first


@pytest.mark.parametrize("name", FORMS)
def test_elastic_samples_are_left_out_and_counted(exported: tuple[Path, list[MatchSample]], name: str) -> None:
    folder, samples = exported
    written = FORMS[name](folder, samples)
    assert not [path for path, data in contents(written.folder).items() if "eye_4444" in path or b"eye_4444" in data]
    assert ("1 elastic samples left out" in str(written)) == (name != "segmented")


@pytest.mark.parametrize("name", ["megadepth", "minima", "numbered", "segmented"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    sample = write_sample(tmp_path, "eye", "aligned", "train")
    for path in ("cf.png", "valid_cf.png"):
        (tmp_path / "eye" / path).unlink()
    with pytest.raises(UserError, match=r"eye/(valid_)?cf.png: no such file"):
        FORMS[name](tmp_path, [sample])
    assert not (tmp_path / name).exists()


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "eye", "warp_1", "train")
    save_image(tmp_path / sample.valid_fa, np.zeros((SIZE, SIZE + 1), np.uint8))
    with pytest.raises(UserError, match=f"valid_fa.png: must be {SIZE} x {SIZE} px"):
        write_megadepth(tmp_path, [sample])


def test_eyes_with_commas_keep_their_names(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, "eye, left", "aligned", "train")
    write_numbered(tmp_path, [sample])
    with (tmp_path / "numbered/eyes.csv").open(newline="") as stream:
        assert list(csv.reader(stream))[1] == ["eye, left-aligned", "patient of eye, left", "train"]
