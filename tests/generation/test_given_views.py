"""`--mode cf2fa` and `--mode fa2cf`: one view is given and stays, the other is drawn to fit it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compare import contents
from conftest import VIEW, Fill
from eyes import draw_pair, write_raw
from generating import command, draw, images, pixels, records
from killing import Death, kill_all
from refusals import Refused, raises_file
from retipair.config import PhantomConfig
from retipair.data.dataset import read_dataset
from retipair.data.layout import Layout
from retipair.data.pair import save_image, synthetic_mark_of
from retipair.data.sources import find_pairs, scan_pairs
from retipair.diffusion.halves import half_of
from retipair.generation.given_views import crop_view, read_views, views_sha256
from retipair.generation.modes import REPEATS
from retipair.generation.pair_generator import GeneratedImages
from retipair.generation.plan import plan_generation
from retipair.interfaces import cli
from retipair.interfaces.cli import main
from retipair.models.base import open_base
from retipair.models.denoiser import Denoiser
from retipair.models.lora import PEFT_WEIGHTS, read_adapter_metadata
from retipair.models.trained_views import NAME as RECORDED
from retipair.models.trained_views import TrainedViews
from retipair.models.vae import encode_mean
from retipair.phantoms.phantom import phantom
from retipair.registration.warp import resample
from retipair.runtime.atomic_io import write_json
from retipair.runtime.errors import DamagedError, FileError, MissingError, OccupiedError, UserError
from retipair.runtime.schema import to_values
from retipair.vision.appearance import Appearance, appearance
from retipair.vision.field_of_view import field_of_view
from retipair.vision.modality import find_modalities
from retipair.vision.ridges import resize_to_reference, segment, vesselness
from single_file import add_to_file

Folder = Callable[[str], Path]
Drawn = Callable[[str, str], Path]
GIVEN: dict[str, Any] = {"cf2fa": "cf", "fa2cf": "fa"}
DRAWN = {"cf2fa": "fa", "fa2cf": "cf"}
both_modes = pytest.mark.parametrize("mode", ["cf2fa", pytest.param("fa2cf", marks=pytest.mark.nightly)])


@pytest.fixture(params=["sd15", pytest.param("sdxl", marks=pytest.mark.nightly)])
def system(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def drawn(once: Callable[[str, Fill], Path], trained: Folder, prepared: Path) -> Drawn:
    """(system, mode) -> pairs of the first four prepared views, drawn in one go; read only."""

    def folder(system: str, mode: str) -> Path:
        return once(f"given-{system}-{mode}", lambda out: draw(trained(system), out, *flags(mode, prepared)))

    return folder


@pytest.fixture(scope="module")
def half_clean_base(once: Callable[[str, Fill], Path], base_folder: Folder) -> Folder:
    """system -> a base that records that it was trained with half-clean samples."""

    def fill(system: str, folder: Path) -> None:
        shutil.copytree(base_folder(system), folder)
        write_json(folder / RECORDED, to_values(TrainedViews(half_clean_fraction=0.5)))

    return lambda system: once(f"half-clean-{system}", lambda folder: fill(system, folder))


def flags(mode: str, data: Path) -> list[object]:
    return ["--mode", mode, "--data", data]


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (300, 200)) -> Path:
    """A CF on a black canvas of (width, height) px; returns its path."""
    side = min(size)
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    canvas[:side, -side:] = draw_pair(seed, side)[0]
    save_image(path, canvas)
    return path


def alone(base: Path, data: Path, out: Path, *more: object) -> Path:
    """Draw with a base and without an adapter."""
    words = ["generate", "--base", base, "--mode", "cf2fa", "--data", data, "--out", out, "--steps", 2, *more]
    assert main([str(word) for word in words]) == 0
    return out


# What is written


@both_modes
def test_the_given_view_is_kept_and_the_drawn_one_ends_where_it_ends(mode: str, drawn: Drawn, prepared: Path) -> None:
    folder = drawn("sd15", mode)
    for record in records(folder):
        given = pixels(prepared / GIVEN[mode] / f"{record.source_id}.png")
        assert np.array_equal(pixels(folder / f"{record.index}/{GIVEN[mode]}.png"), given)
        assert pixels(folder / f"{record.index}/{DRAWN[mode]}.png").shape[:2] == (VIEW, VIEW)
        assert record.source_id == f"eye{record.index - 1}"
        assert (record.mode, record.source_eye) == (mode, record.source_id)
        assert (record.fa_chroma == 0) == (mode == "fa2cf")
        assert record.source_size == [VIEW, VIEW]
    assert not any(entry.variation for entry in read_dataset(folder))


def test_a_photograph_is_cropped_and_the_drawn_view_fits_it(base_folder: Folder, tmp_path: Path) -> None:
    path = photograph(tmp_path / "one.png")
    out = alone(base_folder("sd15"), path, tmp_path / "o")
    assert set(contents(out)) == {
        "manifest.jsonl",
        "settings.json",
        *(f"1/{view}.png" for view in ("cf", "fa", "joint", "cf_fa_chessboard", "fa_in_source")),
    }
    [record] = records(out)
    assert (record.adapter_sha256, record.source_size) == (None, [300, 200])
    given = crop_view(read_views(path, "cf")[0], "cf", VIEW)
    assert np.allclose(record.source_to_pair, given.to_pair)
    cf, fa = pixels(out / "1/cf.png"), pixels(out / "1/fa.png")
    assert np.array_equal(cf, given.image)
    assert not fa[~given.mask].any()
    assert fa[given.mask].any()
    whole = pixels(out / "1/fa_in_source.png")
    assert whole.shape == (200, 300)
    # Cropped as the photograph was, the drawn view is the pair's again.
    back = resample(whole, given.to_pair, VIEW)
    assert np.corrcoef(back[given.mask], fa[given.mask])[0, 1] > 0.99
    outside = ~field_of_view(pixels(path))
    assert np.mean(whole[outside] > 8) < 0.02  # but for the edge


def test_what_is_drawn_is_marked_and_what_is_given_is_not(base_folder: Folder, tmp_path: Path) -> None:
    out = alone(base_folder("sd15"), photograph(tmp_path / "MEIER.png"), tmp_path / "o")
    for path in (out / "1").iterdir():
        texts = Image.open(path).text  # type: ignore[attr-defined]
        assert texts["Synthetic"].startswith(
            "no: " if path.stem == "cf" else "yes: drawn by a diffusion model, from a "
        )
        assert path.stem == "cf" or "data of the person" in texts["Synthetic"]
    assert [name for name, content in contents(out).items() if b"MEIER" in content] == ["manifest.jsonl"]
    asked = alone(base_folder("sd15"), tmp_path / "MEIER.png", tmp_path / "asked", "--record_source")
    assert Image.open(asked / "1/fa.png").text["Source"] == "MEIER"  # type: ignore[attr-defined]


def test_a_given_view_that_is_synthetic_stays_marked(base_folder: Folder, tmp_path: Path) -> None:
    mark = {"Synthetic": "yes: a rendered eye", "Seed": "3"}
    save_image(tmp_path / "a.png", draw_pair(0, 200)[0], mark)
    out = alone(base_folder("sd15"), tmp_path / "a.png", tmp_path / "o")
    assert synthetic_mark_of([out / "1/cf.png"]) == mark


@pytest.mark.parametrize("adding", ["--per_view", "--amount"])
def test_several_pairs_of_a_view_differ_and_more_are_added(
    adding: str, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    number = {"--per_view": 2, "--amount": 10}[adding]
    out = alone(base_folder("sd15"), prepared, tmp_path / "o")
    first = contents(out)
    assert [record.source_id for record in records(out)] == [f"eye{i}" for i in range(5)]
    alone(base_folder("sd15"), prepared, out, adding, number)
    assert [record.source_id for record in records(out)] == [f"eye{i % 5}" for i in range(10)]
    assert images(out, 1)["cf.png"] == images(out, 6)["cf.png"]
    assert images(out, 1)["fa.png"] != images(out, 6)["fa.png"]
    assert {name: contents(out)[name] for name in first if name.endswith(".png")} == {
        name: content for name, content in first.items() if name.endswith(".png")
    }


# What the network is given


def inputs_of_the_network(
    base: Path, mode: str, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: object
) -> list[torch.Tensor]:
    """What the network was given in two steps, each (B, C, h, w); a second row is for guidance."""
    seen: list[torch.Tensor] = []
    call = Denoiser.__call__

    def watched(self: Denoiser, latents: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(latents)
        return call(self, latents, *more)

    monkeypatch.setattr(Denoiser, "__call__", watched)
    alone(base, data, out, "--mode", mode, *more)
    return seen


def clean_half(base: Path, system: str, mode: str, path: Path) -> torch.Tensor:
    """The latents of the given view, (1, C, h, w / 2)."""
    given = crop_view(read_views(path, GIVEN[mode])[0], GIVEN[mode], VIEW)
    half = Layout("squeezed" if system == "sd15" else "side_by_side", VIEW).half(given.image)
    return encode_mean(open_base(str(base)).vae(), half[None])


@pytest.mark.parametrize("sampler", ["ddpm", "euler", pytest.param("dpmpp", marks=pytest.mark.nightly)])
@both_modes
def test_the_network_sees_the_given_half_without_noise_at_every_step(
    mode: str, sampler: str, system: str, half_clean_base: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, base = tmp_path / "view.png", half_clean_base(system)
    save_image(path, draw_pair(0, VIEW)[mode == "fa2cf"])
    clean = clean_half(base, system, mode, path)
    guided = ("--sampler", sampler, "--pair_guidance_from", 0)
    seen = inputs_of_the_network(base, mode, path, tmp_path / "o", monkeypatch, *guided)
    assert len(seen) == 2
    for latents in seen:
        assert len(latents) == 2
        for row in latents:
            assert torch.equal(half_of(row[None], GIVEN[mode]), clean)
        assert half_of(latents, DRAWN[mode]).std() > 0.1  # type: ignore[arg-type]


def test_without_half_clean_training_the_given_half_gets_the_noise_of_the_step_and_steps_are_repeated(
    base_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, base = tmp_path / "view.png", base_folder("sd15")
    save_image(path, draw_pair(0, VIEW)[0])
    clean = clean_half(base, "sd15", "cf2fa", path)
    seen = inputs_of_the_network(base, "cf2fa", path, tmp_path / "o", monkeypatch)
    assert "neither base nor adapter was trained with --half_clean_fraction" in capsys.readouterr().err
    assert len(seen) == 2 * REPEATS
    errors = [float((half_of(latents[:1], "cf") - clean).std()) for latents in seen]
    assert min(errors[:REPEATS]) > max(errors[REPEATS:]) > 0.03  # the noise of t = 1
    assert len(set(errors)) == len(errors)  # other noise each time


def test_a_sampler_with_a_memory_cannot_repeat_steps(base_folder: Folder, refused: Refused, tmp_path: Path) -> None:
    given = flags("cf2fa", photograph(tmp_path / "a.png"))
    line = refused("generate", "--base", base_folder("sd15"), *given, "--out", tmp_path / "o", "--sampler", "euler")
    assert line.setting == "sampler"


def test_the_network_is_given_the_view_as_it_learnt_views_and_the_view_itself_is_written(
    trained: Folder, prepared: Path, tmp_path: Path
) -> None:
    """A darker photograph gets the brightness and the contrast of the training views, but only for the network."""
    dark = pixels(prepared / "cf/eye0.png") // 2
    save_image(tmp_path / "dark.png", dark)
    asked = [*flags("cf2fa", tmp_path / "dark.png"), "--amount", 1]
    plan = plan_generation(cli._parse(command(trained("sd15"), tmp_path / "o", *asked))[1])
    given = plan.given(1)
    wanted = plan.trained_appearance
    assert wanted is not None
    assert wanted == read_adapter_metadata(plan.adapter).views.appearance["cf"]  # type: ignore[arg-type, union-attr]
    assert appearance(given.image, given.mask).mean[0] < 0.7 * wanted.mean[0]
    assert np.allclose(appearance(given.model_input, given.mask).mean, wanted.mean, atol=2)
    assert np.array_equal(pixels(draw(trained("sd15"), tmp_path / "o", *asked) / "1/cf.png"), given.image)


def test_pair_guidance_changes_the_drawn_view_alone(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    plain = alone(base_folder("sd15"), prepared, tmp_path / "plain", "--amount", 1, "--pair_guidance", 1)
    guided = alone(base_folder("sd15"), prepared, tmp_path / "guided", "--amount", 1)
    assert "Pair guidance" not in Image.open(plain / "1/fa.png").text  # type: ignore[attr-defined]
    assert Image.open(guided / "1/fa.png").text["Pair guidance"].startswith("2, timesteps from 0.35 ")  # type: ignore[attr-defined]
    assert images(plain, 1)["fa.png"] != images(guided, 1)["fa.png"]
    assert np.array_equal(pixels(plain / "1/cf.png"), pixels(guided / "1/cf.png"))


# Repeating


def test_given_views_are_encoded_one_by_one(half_clean_base: Folder) -> None:
    """On a GPU, a whole batch needs more memory than is estimated, and rounds differently."""
    vae = open_base(str(half_clean_base("sd15"))).vae()
    views = np.stack([draw_pair(number, VIEW)[0] for number in range(3)])
    sizes: list[int] = []
    vae.encoder.register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    latents = encode_mean(vae, views)
    assert sizes == [1, 1, 1]
    assert torch.equal(latents[1:2], encode_mean(vae, views[1:2]))


@both_modes
def test_bytes_do_not_depend_on_the_batch_size(
    mode: str, drawn: Drawn, trained: Folder, prepared: Path, tmp_path: Path
) -> None:
    out = draw(trained("sd15"), tmp_path / "o", *flags(mode, prepared), "--batch_size", 3)
    assert contents(out) == contents(drawn("sd15", mode))


@both_modes
def test_a_killed_run_goes_on_where_it_stopped(
    mode: str, drawn: Drawn, trained: Folder, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    asked = flags(mode, prepared)
    kill_all([Death(command(trained("sd15"), out, *asked), "retipair.generation.output:save_image", 8)])
    assert len(records(out)) == 1
    draw(trained("sd15"), out, *asked)
    assert contents(out) == contents(drawn("sd15", mode))


def test_pairs_of_other_views_are_not_mixed(
    drawn: Drawn, trained: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    save_image(data / "cf/eye3.png", draw_pair(17, VIEW)[0])
    line = refused(*command(trained("sd15"), drawn("sd15", "cf2fa"), *flags("cf2fa", data)))
    assert (line.kind, line.path) == (OccupiedError, drawn("sd15", "cf2fa"))


def test_the_best_of_several_attempts_is_kept(
    base_folder: Folder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts are those that --per_view and the filter make, and their number is recorded."""
    seen: list[float] = []
    wanted = {0: 0.1, 1: 0.3, 2: 0.2}

    def consistency(self: GeneratedImages) -> float:
        seen.append(wanted[self.attempt])
        return wanted[self.attempt]

    monkeypatch.setattr(GeneratedImages, "consistency", property(consistency))
    out = alone(base_folder("sd15"), prepared, tmp_path / "o", "--best_of", 3, "--amount", 2)
    assert [(record.attempt, record.consistency) for record in records(out)] == [(1, 0.3), (1, 0.3)]
    assert sorted(set(seen)) == [0.1, 0.2, 0.3]
    assert "attempt 1" in Image.open(out / "1/fa.png").text["Seed"]  # type: ignore[attr-defined]


def test_views_that_agree_too_little_are_drawn_again_or_given_up(
    base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    words = ["generate", "--base", base_folder("sd15"), *flags("cf2fa", prepared), "--out", tmp_path / "o"]
    line = refused(*words, "--steps", 2, "--amount", 1, "--min_consistency", 0.99, "--max_tries", 2, "--best_of", 2)
    assert "no pair passed the filter, 2 rounds of 2 attempts rejected" in line
    assert "lower --min_consistency" in line


# Where views are found


def test_every_image_of_a_folder_is_a_view_and_tables_name_them(tmp_path: Path) -> None:
    for name in ("b", "a_1", "a_2", "c"):  # a_1 and a_2 are both in colour: two photographs, not a pair
        photograph(tmp_path / f"{name}.png", seed=ord(name[0]) + len(name))
    (tmp_path / "notes.md").write_text("none")
    (tmp_path / "eyes.csv").write_text("id,eye,patient\nb,b-left,MEIER\nc,c-left,\n")
    assert [(view.id, view.group) for view in read_views(tmp_path, "cf")] == [
        ("a_1", "a_1"),
        ("a_2", "a_2"),
        ("b", "MEIER"),
        ("c", "c-left"),
    ]
    table = tmp_path / "list.csv"
    table.write_text("id,cf,eye\nx,a_1.png,left\ny,c.png,right\n")
    assert [(view.id, view.path.name, view.group) for view in read_views(table, "cf")] == [
        ("x", "a_1.png", "left"),
        ("y", "c.png", "right"),
    ]


def test_of_two_grey_views_the_names_tell_which_is_given(tmp_path: Path) -> None:
    write_raw(tmp_path, n=2, size=VIEW)
    for path in tmp_path.rglob("*_01.png"):
        save_image(path, pixels(path)[..., 1])
    red_free = find_modalities(("red_free", "fa"))
    for view, number in (("cf", 1), ("fa", 2)):
        found = read_views(tmp_path, view, red_free)  # type: ignore[arg-type]
        assert [one.path.name for one in found] == [f"{n:03d}_{number:02d}.png" for n in (1, 2)]


@pytest.mark.parametrize("form", ["{id}/{id}_01.png", "{id}_1.png", "cf/{id}.png"])
def test_partners_in_a_raw_folder_are_left_aside(form: str, tmp_path: Path) -> None:
    for number in range(2):
        cf, fa = draw_pair(number, 128)
        first = tmp_path / form.format(id="ab"[number])
        save_image(first, cf)
        save_image(Path(str(first).replace("1.png", "2.png").replace("/cf/", "/fa/")), fa)
    for view in ("cf", "fa"):
        found = read_views(tmp_path, view)  # type: ignore[arg-type]
        assert [single.id for single in found] == ["a", "b"]
        assert all(Image.open(single.path).mode == {"cf": "RGB", "fa": "L"}[view] for single in found)


def test_eyes_csv_names_the_patients_of_two_photographs_with_numbers(tmp_path: Path) -> None:
    """IMG_1 and IMG_2 look like a pair by their names; in another spelling of Unicode, and of the name of the table."""
    for number in (1, 2):
        photograph(tmp_path / f"Jose\u0301_{number}.png", seed=number)
    (tmp_path / "Eyes.csv").write_text("id,eye,patient\nJos\u00e9_1,left,MEIER\nJos\u00e9_2,right,MEIER\n", "utf-8")
    found = [(view.id, view.group) for view in read_views(tmp_path, "cf")]
    assert found == [("Jos\u00e9_1", "MEIER"), ("Jos\u00e9_2", "MEIER")]


def test_where_the_folder_names_the_view_numbers_make_no_pairs(tmp_path: Path) -> None:
    """As in `prepare`, the id of cf/a_1.png is a_1; a view that is no photograph is refused, not left aside."""
    for number in (1, 2):
        photograph(tmp_path / f"cf/a_{number}.png", seed=number)
    assert [view.id for view in read_views(tmp_path, "cf")] == ["a_1", "a_2"]
    save_image(tmp_path / "cf/a_2.png", draw_pair(2, 128)[1])
    with raises_file(tmp_path / "cf/a_2.png"):
        read_views(tmp_path, "cf")


def test_beside_a_photograph_a_tinted_angiogram_is_no_photograph(tmp_path: Path) -> None:
    cf, fa = draw_pair(0, 128)
    save_image(tmp_path / "a_01.png", cf)
    save_image(tmp_path / "a_02.png", (fa[..., None] * [1, 0.95, 0.9]).astype(np.uint8))
    assert [(view.id, view.path.name) for view in read_views(tmp_path, "cf")] == [("a", "a_01.png")]
    assert [(view.id, view.path.name) for view in read_views(tmp_path, "fa")] == [("a", "a_02.png")]


def test_views_of_the_isfahan_layout_have_the_ids_of_their_pairs(tmp_path: Path) -> None:
    for kind, names in (("ABNORMAL", ("1", "1-1")), ("NORMAL", ("1-1", "1"))):
        for name, image in zip(names, draw_pair(len(kind), 128), strict=True):
            save_image(tmp_path / kind / f"{name}.png", image)
    ids = [pair.id for pair in find_pairs(tmp_path)]
    for view in ("cf", "fa"):
        assert [single.id for single in read_views(tmp_path, view)] == ids  # type: ignore[arg-type]


def test_views_of_a_table_have_the_ids_of_their_pairs(tmp_path: Path) -> None:
    names = ("Jose\u0301_01", "Jose\u0301 late", "b_1", "b_2")  # decomposed on disk, composed in the table
    for name, image in zip(names, (*draw_pair(0, 128), *draw_pair(1, 128)), strict=True):
        save_image(tmp_path / f"{name}.png", image)
    table = tmp_path / "list.csv"
    table.write_text("cf,fa\nJos\u00e9_01.png,Jos\u00e9 late.png\nb_1.png,b_2.png\n", "utf-8")
    for view in ("cf", "fa"):
        assert (
            [single.id for single in read_views(table, view)]
            == ["Jos\u00e9", "b"]
            == [  # type: ignore[arg-type]
                pair.id for pair in scan_pairs(table)[0]
            ]
        )


def test_a_view_of_a_generated_pair_can_be_given(drawn: Drawn, base_folder: Folder, tmp_path: Path) -> None:
    out = alone(base_folder("sd15"), drawn("sd15", "cf2fa"), tmp_path / "o", "--amount", 1)
    assert (records(out)[0].source_id, records(out)[0].source_eye) == ("1", "eye0")


# Truth


@pytest.mark.nightly
def test_a_mask_made_on_the_photograph_fits_the_drawn_angiogram(tmp_path: Path) -> None:
    """With the bundled base: the true vessels, at the photograph's own size, as well as in the pair's frame."""
    eyes, photos, out = tmp_path / "eyes", tmp_path / "photos", tmp_path / "o"
    phantom(PhantomConfig(out=eyes, amount=2, size=512, unregistered=True))
    photos.mkdir()
    for number in (1, 2):
        shutil.copy(eyes / f"raw/{number:04d}/{number:04d}_01.png", photos / f"{number}.png")
    words = ["generate", "--base", "tiny-sdxl", *flags("cf2fa", photos), "--out", out, "--steps", 20]
    assert main([str(word) for word in words]) == 0
    for view in read_views(photos, "cf"):
        given = crop_view(view, "cf", 256)
        truth = pixels(eyes / f"truth/000{view.id}/vessels.png") > 0
        own = dice(pixels(out / view.id / "fa_in_source.png"), truth, field_of_view(pixels(view.path)))
        framed = dice(pixels(out / view.id / "fa.png"), resample(truth, given.to_pair, 256), given.mask)
        assert framed > 0.3
        assert own >= 0.9 * framed


def dice(fa: np.ndarray, vessels: np.ndarray, field: np.ndarray) -> float:
    fa, vessels, field = (resize_to_reference(image) for image in (fa, vessels, field))
    found = segment(vesselness(fa, field), field)
    return 2 * np.sum(found & vessels & field) / (np.sum(found) + np.sum(vessels & field))


# Bad input: one line


def test_views_that_cannot_be_used_are_named(base_folder: Folder, refused: Refused, tmp_path: Path) -> None:
    cf, fa = draw_pair(0, 128)
    damaged, grey, coloured, black, tiny = (tmp_path / name for name in ("d.png", "g.png", "c.png", "b.png", "t.png"))
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n no more")
    save_image(grey, fa)
    save_image(coloured, cf)
    save_image(black, np.zeros((64, 64, 3), np.uint8))
    save_image(tiny, cf[:20, :20])
    (tmp_path / "empty").mkdir()
    out = tmp_path / "o"

    def refusal(mode: str, data: Path) -> Any:
        line = refused("generate", "--base", base_folder("sd15"), *flags(mode, data), "--out", out)
        assert not out.exists()
        return line.kind, line.path

    assert refusal("cf2fa", damaged) == (DamagedError, damaged)
    assert refusal("cf2fa", grey) == (FileError, grey)
    assert refusal("fa2cf", coloured) == (FileError, coloured)
    assert refusal("cf2fa", black) == (FileError, black)
    assert refusal("fa2cf", black) == (FileError, black)
    assert refusal("cf2fa", tiny) == (FileError, tiny)
    assert refusal("cf2fa", tmp_path / "empty") == (MissingError, tmp_path / "empty")
    assert refusal("cf2fa", tmp_path / "gone") == (MissingError, tmp_path / "gone")


def test_views_without_a_usable_name_or_place_are_named(tmp_path: Path) -> None:
    space = photograph(tmp_path / "space/9.41\u202fAM.png")  # as macOS names screenshots
    unknown = tmp_path / "eye.dcm"
    unknown.write_bytes(b"DICM")
    deeper = photograph(tmp_path / "deeper/cf/more/a.png").parent
    photograph(tmp_path / "deeper/cf/b.png")
    pairs = photograph(tmp_path / "pairs/a.png").with_name("pairs.csv")
    pairs.write_text("cf,fa\na.png,b.png\n")
    found = {"space": space, "eye.dcm": unknown, "deeper": deeper, "pairs": pairs}
    for name, path in found.items():
        with raises_file(path):
            read_views(tmp_path / name, "cf")


def test_a_dark_view_in_which_no_field_is_found_is_refused(tmp_path: Path) -> None:
    faint = np.zeros((200, 200, 3), np.uint8)
    faint[40:160, 40:160] = (5, 5, 24)  # enough blue to be seen in colour, and not in grey
    save_image(tmp_path / "a.png", faint)
    with raises_file(tmp_path / "a.png"):
        read_views(tmp_path / "a.png", "fa")


def test_tables_that_cannot_be_used_name_the_line(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png")
    table = tmp_path / "list.csv"
    for text, line in (
        (f"cf\n{'a' * 300}.png\n", 2),
        ("id,cf\na,a.png\na,a.png\n", 3),
        ("cf,patient\na.png,P\u3000Q\n", 2),
    ):
        table.write_text(text, "utf-8")
        with pytest.raises(UserError, match=rf"list\.csv, line {line}: "):
            read_views(table, "cf")
    (tmp_path / "eyes.csv").write_text("id,eye\na,left\n")
    table.write_text("cf\na.png\n")
    with raises_file(tmp_path / "eyes.csv"):
        read_views(table, "cf")


def test_a_table_of_other_modalities_is_refused_and_one_without_modalities_is_not(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png")
    table, columns = tmp_path / "list.csv", "id,cf,cf_modality,fa_modality\n"
    pairs = find_modalities(("red_free", "autofluorescence"))
    for row, column in (("cf,autofluorescence", "cf_modality is cf"), (",octa", "fa_modality is octa")):
        table.write_text(f"{columns}a,a.png,red_free,\nb,a.png,{row}\n")
        with pytest.raises(UserError, match=rf"list\.csv, line 3: {column}, .* red_free and autofluorescence;"):
            read_views(table, "cf", pairs)
    table.write_text(f"{columns}a,a.png,red_free,autofluorescence\nb,a.png,red_free,\nc,a.png,,\n")
    assert [one.id for one in read_views(table, "cf", pairs)] == ["a", "b", "c"]
    with pytest.raises(UserError, match="line 2: cf_modality is red_free, .* cf and fa;"):
        read_views(table, "cf")


def test_prepared_views_with_a_damaged_mask_are_named_before_anything_is_drawn(prepared: Path, tmp_path: Path) -> None:
    mask = shutil.copytree(prepared, tmp_path / "data") / "mask/eye3.png"
    save_image(mask, np.full((VIEW, VIEW // 2), 255, np.uint8))
    with raises_file(mask):
        read_views(tmp_path / "data", "cf")
    mask.unlink()
    with raises_file(mask, MissingError):
        read_views(tmp_path / "data", "cf")


def test_pairs_hang_on_the_masks_and_the_patients_of_their_views(prepared: Path, tmp_path: Path) -> None:
    """More draws of a view whose patient is named later would be another patient's, perhaps in another split."""
    data = shutil.copytree(prepared, tmp_path / "data")
    before = views_sha256(read_views(data, "cf"))
    save_image(data / "mask/eye3.png", np.tri(VIEW, dtype=np.uint8) * 255)
    assert views_sha256(read_views(data, "cf")) != before
    photograph(tmp_path / "raw/a.png")
    before = views_sha256(read_views(tmp_path / "raw", "cf"))
    (tmp_path / "raw/eyes.csv").write_text("id,eye\na,left\n")
    assert views_sha256(read_views(tmp_path / "raw", "cf")) != before


def test_records_of_the_appearance_with_missing_channels_are_damaged(
    half_clean_base: Folder, trained: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    views = TrainedViews(appearance={"cf": Appearance([1.0, 2.0], [1.0, 2.0], [1.0, 2.0])})
    base = shutil.copytree(half_clean_base("sd15"), tmp_path / "base")
    write_json(base / RECORDED, to_values(views))
    line = refused("generate", "--base", base, *flags("cf2fa", prepared), "--out", tmp_path / "o")
    assert (line.kind, line.path) == (DamagedError, base / RECORDED)
    adapter = next(trained("sd15").rglob("best_checkpoint/unet_lora"))
    adapter = shutil.copytree(adapter, tmp_path / "unet_lora")
    description = replace(read_adapter_metadata(adapter), views=views)  # type: ignore[type-var]
    add_to_file(adapter / PEFT_WEIGHTS, {}, {"retipair": json.dumps(to_values(description))})
    with raises_file(adapter, DamagedError):
        read_adapter_metadata(adapter)


def test_settings_that_do_not_fit_the_mode_are_named(base_folder: Folder, refused: Refused, tmp_path: Path) -> None:
    words = ["generate", "--base", base_folder("sd15"), "--out", tmp_path / "o"]
    given = flags("cf2fa", photograph(tmp_path / "a.png"))
    assert "needs --data" in refused(*words, "--mode", "cf2fa")
    assert refused(*words, "--per_view", 2).setting == "per_view"
    assert refused(*words, *given, "--per_view", 2, "--amount", 3).setting == "per_view"
    assert refused(*words, *given, "--per_view", 0).setting == "per_view"
    assert refused(*words, *given, "--per_view", 10**9).setting == "per_view"
    assert refused(*words, *given, "--best_of", 0).setting == "best_of"
    assert refused(*words, *given, "--max_copy", 0.5).setting == "max_copy"
    assert refused(*words, *given, "--strength", 0.5).setting == "strength"
    assert refused(*words, "--record_source").setting == "record_source"
    assert not (tmp_path / "o").exists()
