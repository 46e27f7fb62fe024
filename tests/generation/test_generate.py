"""`retipair generate`: the original's tree, pairs that depend on (seed, i) alone, sources that were trained on."""

import json
import re
import shutil
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from msgspec.structs import replace
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compare import contents
from conftest import VIEW, Fill, train_command, write_prepared
from generating import command, draw, images, pixels, records
from killing import Death, kill_all
from refusals import Refused
from retipair import __version__
from retipair.config import DEFAULT_PROMPT, GenerateConfig
from retipair.data.augmentation import apply_variant, draw_variant
from retipair.data.dataset import content_sha256, read_dataset
from retipair.data.layout import Layout, to_grey
from retipair.data.manifest import GeneratedPair, PreparedPair, read_manifest, write_manifest
from retipair.data.pair import Pair, save_image, synthetic_mark_of
from retipair.data.rejected import REJECTED_NAME
from retipair.diffusion.noise import generator
from retipair.generation import generate
from retipair.generation.filters import (
    QualityFilter,
    Rejection,
    RejectionLog,
    descriptor_of,
    read_rejection_log,
    rejection_line,
)
from retipair.generation.modes import MODES, FromImages, FromNoise
from retipair.generation.output import PAIRS_PER_FOLDER, GeneratedFolder, check_folder
from retipair.generation.pair_generator import PairGenerator, with_parameters
from retipair.generation.plan import plan_generation
from retipair.interfaces.cli import main
from retipair.metrics import memorisation
from retipair.metrics.fourier_mellin import spectra
from retipair.metrics.memorisation import COPY
from retipair.models.base import open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import adapter_sha256, read_adapter_metadata
from retipair.models.vae import decode, encode_moments
from retipair.runtime.atomic_io import append_line
from retipair.runtime.errors import MissingError, OccupiedError, UserError
from retipair.runtime.schema import from_values
from retipair.vision.field_of_view import field_of_view
from retipair.vision.modality import CF_FA

Folder = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
Drawn = Callable[[str, str], Path]
VIEWS = {"cf.png", "fa.png", "joint.png", "cf_fa_chessboard.png"}
ORIGINALS = {"cf_original.png", "fa_original.png"}
LAYOUT: dict[str, Any] = {"sdxl": "side_by_side", "sd15": "squeezed"}
JOINT = {"sdxl": (2 * VIEW, VIEW), "sd15": (VIEW, VIEW)}
"""(width, height) px"""
TRAINED_EYES = ["eye0", "eye2", "eye4"]


@pytest.fixture(params=["sd15", pytest.param("sdxl", marks=pytest.mark.nightly)])
def system(request: pytest.FixtureRequest) -> str:
    """What the families share; what they do not is tested with both in tests/models."""
    return request.param


def unet_lora(results: Path, system: str, step: int = 4, name: str = "exp") -> Path:
    return results / f"out_joint_{system}_cffa_pairs/{name}/latest_checkpoints/step_{step:06d}/unet_lora"


@pytest.fixture(scope="module")
def drawn(once: Callable[[str, Fill], Path], trained: Folder) -> Drawn:
    """(system, mode) -> four pairs drawn in one go; read only."""

    def folder(system: str, mode: str) -> Path:
        return once(f"drawn-{system}-{mode}", lambda out: draw(trained(system), out, *mode_flags(mode)))

    return folder


def mode_flags(mode: str) -> list[object]:
    return ["--mode", mode, *(["--strength", 0.5] if mode == "from_data" else [])]


both_modes = pytest.mark.parametrize("mode", ["noise", "from_data"])


# The tree


@both_modes
def test_the_tree_is_the_originals(system: str, mode: str, trained: Folder, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained(system), results)
    flags = ["-n", "exp", "--savedir", "a", "--amount", 2, "--steps", 2, "--results", results, *mode_flags(mode)]
    assert main([str(part) for part in ("generate", *flags)]) == 0
    out = results / f"out_joint_{system}_cffa_pairs_preds/exp/a"
    views = VIEWS | (ORIGINALS if mode == "from_data" else set())
    assert set(contents(out)) == {
        "manifest.jsonl",
        "settings.json",
        *(f"{index}/{view}" for index in (1, 2) for view in views),
    }


@both_modes
def test_views_are_square_and_the_angiogram_is_grey(system: str, mode: str, drawn: Drawn) -> None:
    folder = drawn(system, mode)
    layout = Layout(LAYOUT[system], VIEW)
    for record in records(folder):
        pair = (folder / record.cf).parent
        opened = {path.stem: Image.open(path) for path in pair.iterdir()}
        assert opened["cf"].mode == opened["joint"].mode == "RGB"
        assert opened["fa"].mode == "L"
        assert opened["joint"].size == JOINT[system]
        assert {view.size for name, view in opened.items() if name != "joint"} == {(VIEW, VIEW)}
        cf, fa = layout.split(pixels(pair / "joint.png"))  # both halves, brought back as the layout does
        assert np.array_equal(pixels(pair / "cf.png"), cf)
        grey, chroma = to_grey(fa)
        assert np.array_equal(pixels(pair / "fa.png"), grey)
        assert record.fa_chroma == pytest.approx(chroma, abs=1e-3)
        assert chroma > 0  # an untrained autoencoder's is not grey: there was something to remove
        board, tile = pixels(pair / "cf_fa_chessboard.png"), VIEW // 8
        assert np.array_equal(board[:tile, :tile], cf[:tile, :tile])
        assert np.array_equal(board[:tile, tile : 2 * tile, 0], grey[:tile, tile : 2 * tile])


@both_modes
def test_the_manifest_says_how_each_pair_was_made(
    system: str, mode: str, drawn: Drawn, trained: Folder, base_folder: Folder
) -> None:
    folder = drawn(system, mode)
    best = trained(system) / f"out_joint_{system}_cffa_pairs/exp/best_checkpoint/unet_lora"
    lines = records(folder)
    assert [record.index for record in lines] == [1, 2, 3, 4]
    for record in lines:
        assert record.id == str(record.index)
        assert (record.seed, record.attempt, record.mode, record.size) == (0, 0, mode, VIEW)
        assert record.strength == (0.5 if mode == "from_data" else None)
        assert record.prompt == DEFAULT_PROMPT
        assert record.base == base_folder(system).name
        assert record.adapter_sha256 == adapter_sha256(best)
        assert -1 <= record.consistency <= 1
    assert len({record.settings_sha256 for record in lines}) == 1
    assert len(read_dataset(folder)) == 4  # other readers take it as it is


@both_modes
def test_every_drawn_image_says_that_it_is_synthetic_and_how_and_no_original_does(
    system: str, mode: str, drawn: Drawn, base_folder: Folder
) -> None:
    folder = drawn(system, mode)
    for path in folder.rglob("*.png"):
        texts = Image.open(path).text  # type: ignore[attr-defined]
        if path.name in ORIGINALS:
            assert texts["Synthetic"].startswith("no: ")
            continue
        how = {"noise": "from noise", "from_data": "a variation of a training pair at strength 0.5"}[mode]
        assert texts.pop("Synthetic").startswith(f"yes: drawn by a diffusion model, {how}; ")
        prompt, values = parse_parameters(texts.pop("parameters"))
        assert prompt == DEFAULT_PROMPT
        size = {"sdxl": f"{2 * VIEW}x{VIEW}", "sd15": f"{VIEW}x{VIEW}"}[system]
        assert values == {
            **{"Steps": "2", "Sampler": "ddpm", "CFG scale": "1", "Seed": "0", "Size": size},
            **{"Model": texts["Base"], "Lora hashes": f"retipair: {texts['Adapter']}", "Pair": path.parent.name},
            **({"Denoising strength": "0.5"} if mode == "from_data" else {}),
            **{"Pair guidance": texts["Pair guidance"], "Version": texts["Software"]},
        }
        assert texts == {
            "Software": f"retipair {__version__}",
            "Seed": f"0, pair {path.parent.name}",
            "Base": base_folder(system).name,
            "Adapter": records(folder)[0].adapter_sha256[:12],
            "Mode": mode,
            "Prompt": DEFAULT_PROMPT,
            "Steps": "2",
            "Sampler": "ddpm",
            "Guidance": "1",
            "Pair guidance": "5, timesteps from 0.35 of the schedule",
            "Size": str(VIEW),
            **({"Strength": "0.5"} if mode == "from_data" else {}),
        }


def parse_parameters(text: str) -> tuple[str, dict[str, str]]:
    """The prompt and the values of the text "parameters", by the rule of AUTOMATIC1111's web UI."""
    *prompts, line = text.split("\n")
    assert prompts[-1] == "Negative prompt: "  # without it, ComfyUI does not read the text
    prompt = "\n".join(prompts[:-1])
    found = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', line)
    return prompt, {name: json.loads(value) if value.startswith('"') else value for name, value in found}


def test_a_prompt_of_several_lines_is_one_line_of_the_parameters() -> None:
    mark = {"Prompt": "an eye\nNegative prompt: blur\nSteps: 1", "Steps": "2", "Sampler": "ddpm", "Guidance": "1"}
    texts = with_parameters({**mark, "Seed": "0, pair 1", "Base": "b", "Software": "s"}, (64, 128))
    assert texts["Prompt"] == mark["Prompt"]
    assert parse_parameters(texts["parameters"])[0] == "an eye Negative prompt: blur Steps: 1"


def test_the_texts_follow_the_settings_of_each_pair(trained: Folder, tmp_path: Path) -> None:
    flags = ["--prompt", "an early angiogram, \u00e4lter", "--sampler", "ddim", "--guidance_scale", 1.5, "--seed", 7]
    out = draw(trained("sd15"), tmp_path / "o", *flags, "--steps", 3, "--amount", 1, "--checkpoint", "latest")
    for path in (out / "1").iterdir():
        texts = Image.open(path).text  # type: ignore[attr-defined]
        asked = {key: texts[key] for key in ("Prompt", "Sampler", "Guidance", "Seed", "Steps")}
        assert list(asked.values()) == ["an early angiogram, \u00e4lter", "ddim", "1.5", "7, pair 1", "3"]
        assert texts["Adapter"] == adapter_sha256(unet_lora(trained("sd15"), "sd15"))[:12]


@pytest.mark.nightly
@pytest.mark.parametrize("asked", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_no_file_of_a_variation_names_its_source_unless_asked(asked: bool, base_folder: Folder, tmp_path: Path) -> None:
    """But for the manifest, which groups variations by it."""
    data = write_prepared(tmp_path / "data", ["train", "val", "train"])
    seen = [record for record in read_manifest(data) if isinstance(record, PreparedPair)]
    write_manifest(data, [replace(one, id=f"MEIER{one.id}", patient=f"P-MEIER{one.id}") for one in seen])
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0)) == 0
    out = draw(tmp_path, tmp_path / "o", *mode_flags("from_data"), *(["--record_source"] if asked else []))
    named = {name for name, content in contents(out).items() if b"MEIER" in content}
    every = {f"{index}/{view}" for index in range(1, 5) for view in VIEWS | ORIGINALS}
    assert named == {"manifest.jsonl"} | (every if asked else set())
    assert records(out)[0].source_id == "MEIEReye0"


def test_what_is_prepared_from_generated_views_says_how_they_were_made(drawn: Drawn, tmp_path: Path) -> None:
    folder = drawn("sd15", "from_data")
    paths = [folder / "1/cf.png", folder / "1/fa.png"]
    assert synthetic_mark_of(paths) == Image.open(paths[0]).text  # type: ignore[attr-defined]


def test_what_is_prepared_from_guided_views_says_so(trained: Folder, tmp_path: Path) -> None:
    path = draw(trained("sd15"), tmp_path / "o", "--amount", 1, "--pair_guidance", 3) / "1/fa.png"
    assert synthetic_mark_of([path])["Pair guidance"] == Image.open(path).text["Pair guidance"]  # type: ignore[attr-defined]


def test_very_many_pairs_lie_in_shards(
    drawn: Drawn, trained: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past 10,000; here past two. The pairs are the same, and readers find them."""
    flat = drawn("sd15", "noise")
    assert PAIRS_PER_FOLDER == 10_000
    monkeypatch.setattr("retipair.generation.output.PAIRS_PER_FOLDER", 2)
    out = draw(trained("sd15"), tmp_path / "o")
    assert [record.cf for record in records(out)] == ["1/cf.png", "2/cf.png", "3-4/3/cf.png", "3-4/4/cf.png"]
    assert len(read_dataset(out)) == 4
    assert (out / "3-4/4/joint.png").read_bytes() == (flat / "4/joint.png").read_bytes()


# from_data


def test_sources_are_the_training_pairs_in_turn_and_lie_beside(
    system: str, trained: Folder, prepared: Path, tmp_path: Path
) -> None:
    out = draw(trained(system), tmp_path / "o", *mode_flags("from_data"), "--amount", 7)
    lines = records(out)
    assert [record.source_id for record in lines] == [TRAINED_EYES[i % 3] for i in range(7)]
    for record in lines:
        for view in ("cf", "fa"):
            original = pixels(out / str(record.index) / f"{view}_original.png")
            assert np.array_equal(original, pixels(prepared / view / f"{record.source_id}.png"))
    assert images(out, 1)["cf.png"] != images(out, 4)["cf.png"]  # the same eye again, varied otherwise


def test_the_original_of_a_synthetic_pair_stays_marked_as_synthetic(
    trained: Folder, prepared: Path, tmp_path: Path
) -> None:
    data, mark = shutil.copytree(prepared, tmp_path / "data"), {"Synthetic": "yes: a rendered eye", "Seed": "3"}
    for view in ("cf", "fa"):
        for path in (data / view).iterdir():
            save_image(path, pixels(path), mark)
    flags = [*mode_flags("from_data"), "--data", data, "--amount", 1]
    out = draw(trained("sd15"), tmp_path / "o", *flags)
    for view in ("cf", "fa"):
        texts = Image.open(out / f"1/{view}_original.png").text  # type: ignore[attr-defined]
        assert texts == mark


def test_noise_has_no_source(drawn: Drawn, system: str) -> None:
    assert {record.source_id for record in records(drawn(system, "noise"))} == {None}


@pytest.mark.nightly
def test_less_strength_stays_closer_to_the_source(system: str, trained: Folder, prepared: Path, tmp_path: Path) -> None:
    """Measured against what the autoencoder alone makes of the source."""
    base, layout = open_base(records_base(trained, system)), Layout(LAYOUT[system], VIEW)
    joint = layout.join(pixels(prepared / "cf/eye0.png"), pixels(prepared / "fa/eye0.png"))
    vae = base.vae()
    there_and_back = decode(vae, encode_moments(vae, joint[None]).mean)[0].astype(float)

    def distance(strength: float) -> float:
        flags = ("--mode", "from_data", "--strength", strength, "--steps", 10, "--amount", 1)
        out = draw(trained(system), tmp_path / str(strength), *flags)
        return np.abs(pixels(out / "1/joint.png") - there_and_back).mean()

    distances = [distance(strength) for strength in (0.1, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < 0.95 * distances[-1]


def records_base(trained: Folder, system: str) -> str:
    config = trained(system) / f"out_joint_{system}_cffa_pairs/exp/config.json"
    return str(json.loads(config.read_text())["settings"]["base"])


def test_other_pairs_can_be_varied(trained: Folder, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["test", "val", "train", "train"])
    out = draw(trained("sd15"), tmp_path / "o", *mode_flags("from_data"), "--data", data)
    assert [record.source_id for record in records(out)] == ["eye2", "eye3", "eye2", "eye3"]


@pytest.mark.nightly
def test_a_source_is_heard_with_its_own_caption(base_folder: Folder, tmp_path: Path) -> None:
    """And one without a caption with the prompt that it was trained with, never with another eye's words."""
    captions = {0: "early phase", 2: "late phase"}
    data = write_prepared(tmp_path / "data", ["train", "val", "train", "train"], captions)
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0)) == 0
    varied = draw(tmp_path, tmp_path / "o", *mode_flags("from_data"), "--amount", 9)
    assert [record.prompt for record in records(varied)] == ["early phase", "late phase", DEFAULT_PROMPT] * 3


# (seed, i) and nothing else


def test_a_source_without_a_caption_is_heard_with_the_default_even_if_that_is_a_caption_too(
    base_folder: Folder, tmp_path: Path
) -> None:
    captions = {0: DEFAULT_PROMPT, 2: "rare", 3: "common", 4: "common"}
    data = write_prepared(tmp_path / "data", ["train", "val", "train", "train", "train", "train", "train"], captions)
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0, "--max_steps", 1)) == 0
    job = plan_generation(GenerateConfig(name="exp", results=tmp_path, mode="from_data"))
    own = {index: captions.get(int(str(source.id)[3:])) for index in range(1, 31) if (source := job.source(index))}
    assert {index: job.prompt(index) for index in own} == {i: text or DEFAULT_PROMPT for i, text in own.items()}


@both_modes
def test_bytes_do_not_depend_on_the_batch_size(
    system: str, mode: str, drawn: Drawn, trained: Folder, tmp_path: Path
) -> None:
    out = draw(trained(system), tmp_path / "o", *mode_flags(mode), "--batch_size", 3)
    assert contents(out) == contents(drawn(system, mode))


@both_modes
def test_more_pairs_are_added_to_those_that_are_there(
    system: str, mode: str, drawn: Drawn, trained: Folder, tmp_path: Path
) -> None:
    out = draw(trained(system), tmp_path / "o", *mode_flags(mode), "--amount", 1)
    first = (out / "1/joint.png").stat().st_mtime_ns
    draw(trained(system), out, *mode_flags(mode), "--amount", 4)
    assert contents(out) == contents(drawn(system, mode))
    assert (out / "1/joint.png").stat().st_mtime_ns == first  # not drawn again


def test_nothing_is_drawn_twice(trained: Folder, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*parts: object, **more: object) -> None:
        raise AssertionError("painted again")

    before = contents(drawn("sd15", "noise"))  # trained and drawn here where no other test has been
    monkeypatch.setattr(PairGenerator, "sample", never)
    for amount in (4, 2):
        draw(trained("sd15"), drawn("sd15", "noise"), "--amount", amount)
    assert contents(drawn("sd15", "noise")) == before


def test_another_seed_draws_other_pairs(system: str, drawn: Drawn, trained: Folder, tmp_path: Path) -> None:
    one, other = drawn(system, "noise"), draw(trained(system), tmp_path / "o", "--seed", 1)
    joints = [pixels(folder / f"{index}/joint.png") for folder in (one, other) for index in range(1, 5)]
    assert len({joint.tobytes() for joint in joints}) == 8


@pytest.mark.parametrize("gone", [(4,), (3, 4), (2,), (1, 3)])
def test_what_has_no_line_is_drawn_again_as_it_was(
    gone: tuple[int, ...], drawn: Drawn, trained: Folder, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "from_data"), out)
    write_manifest(out, [record for record in records(out) if record.index not in gone])
    for index in gone:
        shutil.rmtree(out / str(index))
    draw(trained("sd15"), out, *mode_flags("from_data"))
    assert contents(out) == contents(drawn("sd15", "from_data"))


def reject(out: Path, how: str, index: int) -> None:
    """As a user would: by the list, by deleting the folder, or both; also when a view is lost beside."""
    if "listed" in how:
        (out / REJECTED_NAME).write_text(f"# blurred\n{index}\n")
    if "deleted" in how:
        shutil.rmtree(out / str(index))
    if "torn" in how:
        (out / str(index) / "fa.png").unlink()


@pytest.mark.parametrize("how", ["listed", "deleted", "listed, deleted", "listed, torn"])
def test_a_rejected_pair_is_not_drawn_again_and_nobody_reads_it(
    how: str, drawn: Drawn, trained: Folder, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    reject(out, how, 2)
    before = contents(out)
    capsys.readouterr()
    draw(trained("sd15"), out)
    assert contents(out) == before
    said = capsys.readouterr().err
    assert "1 pair is rejected" in said
    assert "3 synthetic pairs" in said
    draw(trained("sd15"), out, "--amount", 5)
    assert [entry.id for entry in read_dataset(out)] == ["1", "3", "4", "5"]
    assert len(records(out)) == 5
    assert images(out, 1) == images(drawn("sd15", "noise"), 1)


def test_an_id_that_is_no_pair_is_refused_and_one_that_is_still_to_come_is_not(
    drawn: Drawn, trained: Folder, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    for wrong in ("pair_2", "5", "0", "02", "-1", "2.5"):
        (out / REJECTED_NAME).write_text(f"1\n{wrong}\n")
        line = refused(*command(trained("sd15"), out))
        assert (line.path, line.line) == (out / REJECTED_NAME, 2)
    (out / REJECTED_NAME).write_text("1\n5\n")
    draw(trained("sd15"), out, "--amount", 5)
    assert [entry.id for entry in read_dataset(out)] == ["2", "3", "4"]


def test_where_every_pair_is_rejected_it_is_said(
    drawn: Drawn, trained: Folder, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    (out / REJECTED_NAME).write_text("1\n2\n3\n4\n")
    assert main(command(trained("sd15"), out)) == 2
    assert "every pair is rejected" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.nightly
def test_rejected_training_pairs_are_not_varied_but_copies_of_them_are_found(
    base_folder: Folder, tmp_path: Path, capsys: Capture
) -> None:
    """Rejected after the training, of which the adapter knows them still."""
    data = write_prepared(tmp_path / "data", ["train", "val", "train", "train"])
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0)) == 0
    (data / REJECTED_NAME).write_text("eye2\n")
    capsys.readouterr()
    out = draw(tmp_path, tmp_path / "o", *mode_flags("from_data"))
    assert [record.source_id for record in records(out)] == ["eye0", "eye3", "eye0", "eye3"]
    assert "1 listed in rejected.txt (eye2)" in capsys.readouterr().err
    found = plan_generation(GenerateConfig(name="exp", results=tmp_path, max_copy=0.5))
    assert [entry.id for entry in found.known] == ["eye0", "eye2", "eye3"]


def test_copies_are_looked_for_among_rejected_pairs_whenever_they_were_rejected(
    base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val", "train", "train"])
    (data / REJECTED_NAME).write_text("eye0\n")
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0)) == 0
    (data / REJECTED_NAME).write_text("eye0\neye2\n")
    assert refused(*command(tmp_path, tmp_path / "o", "--max_copy", 0.5)).path == data
    for more in ("", "eye3\n"):
        (data / REJECTED_NAME).write_text(f"eye0\neye2\n{more}")
        found = plan_generation(GenerateConfig(name="exp", results=tmp_path, max_copy=0.5, data=data))
        assert [entry.id for entry in found.known] == ["eye0", "eye2", "eye3"]


def test_training_leaves_rejected_pairs_out(base_folder: Folder, tmp_path: Path, capsys: Capture) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val", "train", "train"], {2: "a caption of its own"})
    (data / REJECTED_NAME).write_text("eye2\n")
    for view in ("cf", "fa", "mask"):
        (data / view / "eye3.png").unlink()
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0)) == 0
    assert capsys.readouterr().err.count("pairs skipped: 1 listed in rejected.txt (eye2), 1 whose files") == 1
    description = read_adapter_metadata(unet_lora(tmp_path, "sd15"))
    assert description is not None
    assert [tuple(prompt) for prompt in description.prompts] == [(DEFAULT_PROMPT, 1)]
    assert description.data_sha256 == content_sha256(read_dataset(data))


@pytest.mark.parametrize("view", ["cf", "fa"])
def test_a_missing_view_is_drawn_again(view: str, drawn: Drawn, trained: Folder, tmp_path: Path) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    (out / f"3/{view}.png").unlink()
    draw(trained("sd15"), out)
    assert contents(out) == contents(drawn("sd15", "noise"))


def test_a_torn_last_line_is_drawn_again(drawn: Drawn, trained: Folder, tmp_path: Path) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    manifest = out / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    draw(trained("sd15"), out)
    assert contents(out) == contents(drawn("sd15", "noise"))


def _counted(said: str) -> list[str]:
    return [line for line in said.splitlines() if "synthetic pairs" in line]


def test_lines_that_are_there_twice_are_counted_once(
    drawn: Drawn, trained: Folder, tmp_path: Path, capsys: Capture
) -> None:
    """As after a kill between the merge of the parts and their deletion."""
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    (out / REJECTED_NAME).write_text("2\n")
    manifest = out / "manifest.jsonl"
    shutil.copy(manifest, out / "manifest.1.jsonl")
    manifest.write_text(manifest.read_text() + manifest.read_text().splitlines(keepends=True)[0])
    capsys.readouterr()
    draw(trained("sd15"), out)
    assert contents(out) == {**contents(drawn("sd15", "noise")), REJECTED_NAME: b"2\n"}
    said = capsys.readouterr().err
    assert _counted(said) == [f"3 synthetic pairs: {out}"]
    assert "1 pair is rejected" in said


@pytest.mark.parametrize("part", ["manifest.jsonl", "manifest.1.jsonl"])
def test_lines_that_generate_did_not_write_are_named_and_stay(
    part: str, drawn: Drawn, trained: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "o"
    shutil.copytree(drawn("sd15", "noise"), out)
    lines = (out / "manifest.jsonl").read_text()
    foreign = (prepared / "manifest.jsonl").read_text().splitlines(keepends=True)[0]
    other = json.dumps({**json.loads(lines.splitlines()[0]), "consistency": 0.99}) + "\n"
    for line in (foreign, other):
        (out / part).write_text(lines + line)
        before = contents(out)
        for amount in (4, 5):
            assert f"{out / part}, line 5: " in refused(*command(trained("sd15"), out, "--amount", amount))
            assert contents(out) == before


KILLED = [
    ("sd15", "from_data", "retipair.generation.generate:append_line", 2),  # the images are there, the line is not
    *(
        pytest.param(*case, marks=pytest.mark.nightly)
        for case in (
            ("sdxl", "noise", "retipair.generation.generate:append_line", 3),
            ("sdxl", "from_data", "retipair.generation.output:save_image", 16),  # in the middle of a pair
            ("sd15", "noise", "retipair.generation.output:save_image", 1),  # before the first image
        )
    ),
]


@pytest.mark.parametrize(("system", "mode", "function", "call"), KILLED)
def test_a_killed_run_goes_on_where_it_stopped(
    system: str, mode: str, function: str, call: int, drawn: Drawn, trained: Folder, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    kill_all([Death(command(trained(system), out, *mode_flags(mode)), function, call)])
    before = contents(out)
    assert len(before.get("manifest.jsonl", b"").splitlines()) < 4
    times = {path: path.stat().st_mtime_ns for record in records(out) for path in (out / record.cf).parent.iterdir()}
    draw(trained(system), out, *mode_flags(mode))
    assert contents(out) == contents(drawn(system, mode))
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    "change",
    [
        ("--steps", 3),
        ("--seed", 1),
        ("--sampler", "ddim"),
        ("--prompt", "another eye"),
        ("--guidance_scale", 2),
        ("--mode", "from_data"),
        ("--precision", "bf16"),
        ("--checkpoint", "latest"),
    ],
    ids=lambda change: change[0],
)
def test_pairs_of_other_settings_are_not_mixed(
    change: tuple[object, ...], drawn: Drawn, trained: Folder, refused: Refused
) -> None:
    folder = drawn("sd15", "noise")
    before = contents(folder)
    line = refused(*command(trained("sd15"), folder, *change))
    assert (line.kind, line.path) == (OccupiedError, folder)
    assert contents(folder) == before


@pytest.mark.parametrize("change", [("--strength", 0.9), ("--data", None)], ids=["strength", "data"])
def test_variations_of_other_settings_are_not_mixed(
    change: tuple[object, ...], refused: Refused, drawn: Drawn, trained: Folder, tmp_path: Path
) -> None:
    folder = drawn("sd15", "from_data")
    before = contents(folder)
    flag, value = change
    value = value or write_prepared(tmp_path / "data", ["train", "val", "train"])
    line = refused(*command(trained("sd15"), folder, *mode_flags("from_data"), flag, value))
    assert (line.kind, line.path) == (OccupiedError, folder)
    assert contents(folder) == before


def test_a_folder_with_other_things_in_it_is_left_alone(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o/thesis.txt").write_text("all of it")
    line = refused(*command(trained("sd15"), tmp_path / "o"))
    assert (line.kind, line.path) == (OccupiedError, tmp_path / "o")
    assert contents(tmp_path / "o") == {"thesis.txt": b"all of it"}


def test_command_and_manifest_have_the_modes_of_the_generator() -> None:
    for record in (GenerateConfig, GeneratedPair):
        assert set(MODES) == set(get_args(get_type_hints(record)["mode"]))


# Which adapter, which base


@pytest.mark.parametrize("mode", ["noise", "from_data"])
def test_the_untrained_adapter_draws_what_the_base_alone_draws(
    system: str, mode: str, trained: Folder, prepared: Path, tmp_path: Path
) -> None:
    flags = [*mode_flags(mode), "--checkpoint", unet_lora(trained(system), system, step=0), "--pair_guidance", 1]
    out = draw(trained(system), tmp_path / "o", *flags)
    base, layout = open_base(records_base(trained, system)), Layout(LAYOUT[system], VIEW)
    heard = encode_prompts(base, [DEFAULT_PROMPT], layout.joint_size, "cpu").rows([0])
    denoise = Denoiser(base.unet().eval(), torch.float32, "cpu")
    painter = PairGenerator(base, layout, denoise, base.vae(), "ddpm", steps=2)
    for index, eye in ((1, "eye0"), (3, "eye4")):
        source = layout.join(pixels(prepared / f"cf/{eye}.png"), pixels(prepared / f"fa/{eye}.png"))[None]
        start = FromImages(painter.vae, source, 0.5) if mode == "from_data" else FromNoise()
        (alone,) = painter.sample(heard, [generator(0, index, 0)], start)
        assert np.array_equal(pixels(out / f"{index}/joint.png"), alone.joint)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, base_folder: Folder, prepared: Path) -> Path:
    """RESULTS with a run that has learnt enough to be seen."""
    results = tmp_path_factory.mktemp("moved")
    flags = ("--learning_rate", "1e-1", "--num_samples", 0)
    assert main(train_command("exp", base_folder("sd15"), prepared, results, *flags)) == 0
    return results


def test_what_was_learnt_is_drawn(moved: Path, drawn: Drawn, tmp_path: Path) -> None:
    out = draw(moved, tmp_path / "o", "--checkpoint", "latest", "--amount", 1)
    difference = pixels(out / "1/joint.png").astype(int) - pixels(drawn("sd15", "noise") / "1/joint.png")
    assert np.abs(difference).mean() > 0.5


def test_best_latest_and_a_path_are_what_they_say(moved: Path, tmp_path: Path) -> None:
    run = moved / "out_joint_sd15_cffa_pairs/exp"
    folders = {
        "best": run / "best_checkpoint/unet_lora",
        "latest": run / "latest_checkpoints/step_000004/unet_lora",
        str(run / "latest_checkpoints/step_000002"): run / "latest_checkpoints/step_000002/unet_lora",
    }
    for number, (which, folder) in enumerate(folders.items()):
        out = draw(moved, tmp_path / str(number), "--checkpoint", which, "--amount", 1)
        assert records(out)[0].adapter_sha256 == adapter_sha256(folder)


@both_modes
def test_a_path_needs_no_name(system: str, mode: str, trained: Folder, prepared: Path, tmp_path: Path) -> None:
    adapter = unet_lora(trained(system), system)
    named = draw(trained(system), tmp_path / "named", *mode_flags(mode), "--checkpoint", "latest", "--amount", 1)
    for number, path in enumerate((adapter, adapter.parent)):
        out = tmp_path / str(number)
        flags = ["--checkpoint", path, "--out", out, "--amount", 1, "--steps", 2, *mode_flags(mode)]
        flags += ["--data", prepared] if mode == "from_data" else []
        assert main([str(part) for part in ("generate", *flags)]) == 0
        assert contents(out) == contents(named)


def test_without_a_name_it_needs_a_path_and_a_place(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    path = unet_lora(trained("sd15"), "sd15")
    for flags in (
        [],
        ["--checkpoint", path],
        ["--out", tmp_path / "o"],
        ["--checkpoint", "best", "--out", tmp_path / "o"],
    ):
        line = refused("generate", *flags)
        assert "-n" in line
        assert "--out" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.nightly
def test_a_name_under_both_systems_needs_the_base(
    refused: Refused, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    for system in ("sdxl", "sd15"):
        shutil.copytree(trained(system), results, dirs_exist_ok=True)
    assert "--base" in refused(*command(results, tmp_path / "o"))
    assert not (tmp_path / "o").exists()
    for system in ("sdxl", "sd15"):
        out = draw(results, tmp_path / system, "--base", base_folder(system), "--amount", 1)
        assert Image.open(out / "1/joint.png").size == JOINT[system]


def test_an_adapter_of_the_other_system_is_refused(
    system: str, refused: Refused, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    other = {"sdxl": "sd15", "sd15": "sdxl"}[system]
    flags = ["--checkpoint", unet_lora(trained(system), system), "--out", tmp_path / "o", "--base", base_folder(other)]
    line = refused("generate", *flags)
    assert line.path == flags[1]
    assert "--base" in line
    assert not (tmp_path / "o").exists()


def test_an_adapter_of_a_base_of_another_shape_is_refused(
    refused: Refused, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder("sd15"), base)
    config = UNet2DConditionModel.load_config(base / "unet")
    wider = {**config, "block_out_channels": [2 * width for width in config["block_out_channels"]]}
    UNet2DConditionModel.from_config(wider).save_pretrained(base / "unet")
    line = refused(*command(trained("sd15"), tmp_path / "o", "--base", base))
    assert line.path == trained("sd15") / "out_joint_sd15_cffa_pairs/exp/best_checkpoint/unet_lora"
    assert "--base" in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("moved_to", ["base", "another name"])
@pytest.mark.parametrize("weights", ["same", "other"])
def test_other_weights_of_the_same_shape_get_a_warning_whatever_their_name(
    moved_to: str, weights: str, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    adapter = tmp_path / "unet_lora"
    shutil.copytree(unet_lora(trained("sd15"), "sd15"), adapter)
    redescribe(adapter, lambda values: values.update({"base": "base"}))
    base = shutil.copytree(base_folder("sd15"), tmp_path / moved_to)
    if weights == "other":
        for path in (base / "unet").glob("*.safetensors"):
            save_file({name: 1.01 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    job = plan_generation(GenerateConfig(checkpoint=str(adapter), out=tmp_path / "o", base=str(base)))
    assert any("its weights differ" in warning for warning in job.warnings) == (weights == "other")


@pytest.mark.parametrize("named", [True, False])
def test_pairs_are_drawn_with_the_tokenizers_of_the_training(named: bool, base_folder: Folder, tmp_path: Path) -> None:
    base, other, data = base_folder("sd15"), tmp_path / "tokenizers", write_prepared(tmp_path / "d", ["train", "val"])
    shutil.copytree(base / "tokenizer", other / "tokenizer")
    flags = ("--tokenizer", other, "--num_samples", 0, "--max_steps", 1)
    assert main(train_command("exp", base, data, tmp_path, *flags)) == 0
    given = str(base) if named else None
    assert plan_generation(GenerateConfig(name="exp", results=tmp_path, base=given)).base.tokenizer == other
    own = GenerateConfig(name="exp", results=tmp_path, base=given, tokenizer=base)
    assert plan_generation(own).base.tokenizer == base
    shutil.rmtree(other)
    assert plan_generation(GenerateConfig(name="exp", results=tmp_path, base=given)).base.tokenizer is None


@pytest.mark.parametrize("step", [0, 2])
def test_an_adapter_from_before_any_training_gets_a_warning(step: int, trained: Folder, tmp_path: Path) -> None:
    adapter = unet_lora(trained("sd15"), "sd15", step)
    job = plan_generation(GenerateConfig(checkpoint=str(adapter), out=tmp_path / "o"))
    assert any("is untrained" in warning for warning in job.warnings) == (step == 0)


def redescribe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what an adapter says of itself, in the file that is read."""
    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    values = json.loads(metadata["retipair"])
    change(values)
    save_file(load_file(path), path, {**metadata, "retipair": json.dumps(values)})


@pytest.mark.parametrize(
    ("key", "value"), [("layout", "side_by_side"), ("schema", "retipair.adapter/9"), ("more", "keys")]
)
def test_an_adapter_that_says_something_else_is_refused(
    key: str, value: str, refused: Refused, trained: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "unet_lora"
    shutil.copytree(unet_lora(trained("sd15"), "sd15"), folder)
    redescribe(folder, lambda values: values.update({key: value}))
    line = refused("generate", "--checkpoint", folder, "--out", tmp_path / "o")
    assert str(folder) in line
    assert not (tmp_path / "o").exists()


def test_pairs_of_another_adapter_are_named_by_a_few_digits(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    out = draw(trained("sd15"), tmp_path / "o", "--amount", 1)
    settings = json.loads((out / "settings.json").read_text())
    now = settings["adapter_sha256"]
    (out / "settings.json").write_text(json.dumps(settings | {"adapter_sha256": "0" * 64}))
    line = refused(*command(trained("sd15"), out))
    assert f"another adapter (sha256 {'0' * 12}..., not {now[:12]}...)" in line


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sources_sha256", "other source pairs or views (sha256 000000000000..., not none)"),
        ("known_sha256", "other training pairs for --max_copy (sha256 000000000000..., not none)"),
        ("seed", "seed 0"),
    ],
)
def test_other_settings_are_named_in_words(key: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({key: "0" * 64}))
    with pytest.raises(OccupiedError, match=f"was made with {re.escape(said)}"):
        check_folder(tmp_path, {key: None})


def test_another_size_than_the_trained_one_is_refused(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    assert refused(*command(trained("sd15"), tmp_path / "o", "--size", 64)).setting == "size"


def originals_adapter(folder: Path, target: Path) -> Path:
    """An adapter as the original scripts wrote it: PEFT's two files, without a description."""
    target.mkdir()
    shutil.copy(folder / "adapter_config.json", target)
    save_file(load_file(folder / "adapter_model.safetensors"), target / "adapter_model.safetensors", {"format": "pt"})
    return target


@pytest.mark.nightly
def test_adapters_of_the_original_system_load_with_a_warning(
    system: str,
    trained: Folder,
    base_folder: Folder,
    tmp_path: Path,
    capsys: Capture,
    refused: Refused,
) -> None:
    ours = draw(trained(system), tmp_path / "ours", "--checkpoint", "latest")
    adapter = originals_adapter(unet_lora(trained(system), system), tmp_path / "unet_lora")
    capsys.readouterr()
    flags = ["--checkpoint", adapter, "--out", tmp_path / "theirs"]
    line = refused("generate", *flags)
    assert line.path == adapter
    assert "--base" in line
    assert not (tmp_path / "theirs").exists()
    flags += ["--base", base_folder(system), "--amount", 4, "--steps", 2]
    assert main([str(part) for part in ("generate", *flags)]) == 0
    assert "warning" in capsys.readouterr().err
    for path in ours.glob("*/*.png"):  # their metadata says which adapter
        assert np.array_equal(pixels(tmp_path / "theirs" / path.relative_to(ours)), pixels(path))


def test_pickled_adapters_are_not_opened(
    refused: Refused, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "unet_lora"
    folder.mkdir()
    shutil.copy(unet_lora(trained("sd15"), "sd15") / "adapter_config.json", folder)
    torch.save({}, folder / "adapter_model.bin")
    line = refused("generate", "--checkpoint", folder, "--out", tmp_path / "o", "--base", base_folder("sd15"))
    assert line.path == folder / "adapter_model.bin"
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("harm", ["cut off", "no config", "config cut off", "config of another kind", "nothing"])
def test_a_damaged_adapter_is_named(harm: str, refused: Refused, trained: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "unet_lora"
    shutil.copytree(unet_lora(trained("sd15"), "sd15"), folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if harm == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "no config":
        config.unlink()
    elif harm == "config cut off":
        config.write_text(config.read_text()[:50])
    elif harm == "config of another kind":
        config.write_text('{"peft_type": "NO_SUCH"}')
    else:
        shutil.rmtree(folder)
    line = refused("generate", "--checkpoint", folder, "--out", tmp_path / "o")
    assert str(folder) in line
    assert not (tmp_path / "o").exists()


# Prompts


def test_a_prompt_is_heard_and_recorded(system: str, drawn: Drawn, trained: Folder, tmp_path: Path) -> None:
    out = draw(trained(system), tmp_path / "o", "--prompt", "another eye", "--amount", 1)
    assert [record.prompt for record in records(out)] == ["another eye"]
    assert not np.array_equal(pixels(out / "1/joint.png"), pixels(drawn(system, "noise") / "1/joint.png"))


@pytest.mark.nightly
def test_captions_are_drawn_by_seed_and_index(base_folder: Folder, tmp_path: Path) -> None:
    captions = {0: "rare", 1: "common", 2: "common", 3: "common", 4: "common"}
    data = write_prepared(tmp_path / "data", ["train"] * 5 + ["val"], captions)
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0, "--max_steps", 1)) == 0

    def prompts(name: str, *more: object) -> list[str]:
        return [record.prompt for record in records(draw(tmp_path, tmp_path / name, "--steps", 1, *more))]

    many = prompts("many", "--amount", 12)
    assert prompts("few", "--amount", 3) == many[:3]
    assert prompts("other", "--amount", 12, "--seed", 1) != many
    assert 1 <= many.count("rare") <= 6  # a fifth of them, as in training
    assert set(many) == {"rare", "common"}


def test_guidance_changes_what_is_drawn_and_warns_where_nothing_was_dropped(
    drawn: Drawn, trained: Folder, tmp_path: Path, capsys: Capture
) -> None:
    out = draw(trained("sd15"), tmp_path / "o", "--guidance_scale", 3, "--amount", 1)
    assert "--prompt_dropout" in capsys.readouterr().err
    assert not np.array_equal(pixels(out / "1/joint.png"), pixels(drawn("sd15", "noise") / "1/joint.png"))


def test_pair_guidance_changes_the_pairs_and_is_recorded(
    system: str, drawn: Drawn, trained: Folder, tmp_path: Path, refused: Refused
) -> None:
    plain = drawn(system, "noise")
    guided = draw(trained(system), tmp_path / "guided", "--pair_guidance", 3, "--amount", 1)
    assert not np.array_equal(pixels(guided / "1/cf.png"), pixels(plain / "1/cf.png"))
    texts = Image.open(guided / "1/fa.png").text  # type: ignore[attr-defined]
    assert texts["Pair guidance"] == "3, timesteps from 0.35 of the schedule"
    line = refused(*command(trained(system), guided, "--pair_guidance", 4, "--amount", 1))
    assert (line.kind, line.path) == (OccupiedError, guided)
    line = refused(*command(trained(system), guided, "--pair_guidance", 1, "--amount", 1))  # as folders before guidance
    assert (line.kind, line.path) == (OccupiedError, guided)


def test_the_default_pair_guidance_is_12_and_1_turns_it_off(drawn: Drawn, trained: Folder, tmp_path: Path) -> None:
    default = drawn("sd15", "noise")
    assert contents(draw(trained("sd15"), tmp_path / "twelve", "--pair_guidance", 12)) == contents(default)
    plain = draw(trained("sd15"), tmp_path / "plain", "--pair_guidance", 1, "--amount", 1)
    [line] = read_manifest(plain)
    assert line.settings_sha256 != next(read_manifest(default)).settings_sha256
    assert "Pair guidance" not in Image.open(plain / "1/fa.png").text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "sampler", ["ddpm", *(pytest.param(s, marks=pytest.mark.nightly) for s in ("ddim", "dpmpp", "euler"))]
)
@pytest.mark.parametrize("mode", ["from_data", pytest.param("noise", marks=pytest.mark.nightly)])
def test_pair_guidance_is_resumed_and_works_with_every_sampler_and_classifier_free_guidance(
    sampler: str, mode: str, trained: Folder, tmp_path: Path
) -> None:
    flags = [*mode_flags(mode), "--pair_guidance", 3, "--guidance_scale", 2, "--sampler", sampler, "--batch_size", 2]
    whole = draw(trained("sd15"), tmp_path / "whole", *flags, "--amount", 2)
    resumed = draw(trained("sd15"), tmp_path / "resumed", *flags, "--amount", 1)
    draw(trained("sd15"), tmp_path / "resumed", *flags, "--amount", 2)
    assert contents(resumed) == contents(whole)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "euler"])
def test_samplers_differ(sampler: str, drawn: Drawn, trained: Folder, tmp_path: Path) -> None:
    out = draw(trained("sd15"), tmp_path / "o", "--sampler", sampler, "--amount", 1)
    assert not np.array_equal(pixels(out / "1/joint.png"), pixels(drawn("sd15", "noise") / "1/joint.png"))


def test_what_is_generated_can_be_trained_on(drawn: Drawn, base_folder: Folder, tmp_path: Path) -> None:
    data = drawn("sd15", "noise")
    assert main(train_command("next", base_folder("sd15"), data, tmp_path, "--num_samples", 0)) == 0
    assert "prepared" not in {path.name for path in tmp_path.iterdir()}  # taken as it is


# Bad input: one line, status 2, nothing written


@pytest.mark.parametrize(
    "flags",
    [
        ("--amount", 0),
        ("--amount", -1),
        ("--steps", 0),
        ("--batch_size", 0),
        ("--strength", 0),
        ("--strength", 1.5),
        ("--strength", -0.1),
        ("--strength", "nan"),
        ("--size", 96),
        ("--size", 0),
        ("--seed", -1),
        ("--guidance_scale", 0.5),
        ("--guidance_scale", "nan"),
        ("--pair_guidance", 0.5),
        ("--pair_guidance", 21),
        ("--pair_guidance_from", 1.5),
        ("--pair_guidance_from", 0.5, "--pair_guidance", 1),
        ("--savedir", "a/b"),
        ("--savedir", ".."),
        ("--device", "abacus"),
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_values_that_cannot_work_are_named(
    flags: tuple[object, ...], refused: Refused, trained: Folder, tmp_path: Path
) -> None:
    assert f"--{refused(*command(trained('sd15'), tmp_path / 'o', *flags)).setting}" == flags[0]
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flags", [("--strength", 0.4, "--mode", "from_data"), ("--nonsense", 1)])
def test_flags_without_a_meaning_are_named(
    flags: tuple[object, ...], refused: Refused, trained: Folder, tmp_path: Path
) -> None:
    """Of two steps, a strength of 0.4 leaves none."""
    assert str(flags[0]) in refused(*command(trained("sd15"), tmp_path / "o", *flags))
    assert not (tmp_path / "o").exists()


def test_an_unknown_run_says_how_to_make_it(refused: Refused, tmp_path: Path) -> None:
    line = refused("generate", "-n", "nobody", "--results", tmp_path)
    assert "nobody" in line
    assert "retipair train" in line
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_checkpoint_says_so(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    run = tmp_path / "r/out_joint_sd15_cffa_pairs/exp"
    shutil.rmtree(run / "best_checkpoint")
    shutil.rmtree(run / "latest_checkpoints")
    for which in ("best", "latest"):
        line = refused(*command(tmp_path / "r", tmp_path / "o", "--checkpoint", which))
        assert (line.kind, line.path) == (MissingError, run)
    assert not (tmp_path / "o").exists()


def test_an_unknown_setting_in_the_runs_config_is_refused(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    shutil.copytree(trained("sd15"), tmp_path / "r")
    path = tmp_path / "r/out_joint_sd15_cffa_pairs/exp/config.json"
    values = json.loads(path.read_text())
    values["settings"]["dta"] = "x"
    path.write_text(json.dumps(values))
    line = refused(*command(tmp_path / "r", tmp_path / "o", *mode_flags("from_data")))
    assert str(path) in line
    assert "'dta'" in line


def test_pairs_that_are_gone_are_named(refused: Refused, base_folder: Folder, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path, "--num_samples", 0, "--max_steps", 1)) == 0
    data.rename(tmp_path / "elsewhere")
    line = refused(*command(tmp_path, tmp_path / "o", *mode_flags("from_data")))
    assert (line.kind, line.path) == (MissingError, data)
    assert not (tmp_path / "o").exists()
    draw(tmp_path, tmp_path / "o", *mode_flags("from_data"), "--data", tmp_path / "elsewhere", "--amount", 1)


def test_variations_need_training_pairs(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["val", "test"])
    line = refused(*command(trained("sd15"), tmp_path / "o", *mode_flags("from_data"), "--data", data))
    assert (line.kind, line.path) == (MissingError, data)
    path = unet_lora(trained("sd15"), "sd15")
    assert "--data" in refused("generate", "--checkpoint", path, "--out", tmp_path / "o", *mode_flags("from_data"))
    assert not (tmp_path / "o").exists()


def test_a_base_that_is_gone_is_named(refused: Refused, trained: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "unet_lora"
    shutil.copytree(unet_lora(trained("sd15"), "sd15"), folder)
    redescribe(folder, lambda values: values.update({"base": str(tmp_path / "gone")}))
    line = refused("generate", "--checkpoint", folder, "--out", tmp_path / "o")
    assert line.path == folder
    assert str(tmp_path / "gone") in line
    assert not (tmp_path / "o").exists()


@pytest.mark.nightly
def test_eyes_that_validated_are_not_varied_after_the_pairs_were_prepared_again(
    base_folder: Folder, refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val", "train"])
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path)) == 0
    write_prepared(data, ["val", "train", "train"])
    command = ["generate", "-n", "exp", "--results", tmp_path, "--mode", "from_data", "--amount", 1, "--steps", 2]
    line = refused(*command)
    assert line.path == data
    assert line == refused(*command[:5], "--max_copy", 0.9), "copies would be looked for among others"
    assert not (tmp_path / "out_joint_sd15_cffa_pairs_preds").exists()
    assert main([str(part) for part in [*command, "--data", data]]) == 0
    assert "warning" in capsys.readouterr().err


def test_a_strength_without_from_data_is_refused(trained: Folder, refused: Refused) -> None:
    assert refused("generate", "-n", "exp", "--results", trained("sd15"), "--strength", 0.3).setting == "strength"


@pytest.mark.parametrize(
    "more",
    [
        ("-n", ""),
        ("-n", "../elsewhere"),
        ("-n", "exp", "--savedir", ""),
        ("-n", "exp", "--steps", 1000),
        ("-n", "exp", "--guidance_scale", "inf"),
        ("-n", "exp", "--device", "cuda:7"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    more: tuple[object, ...], trained: Folder, refused: Refused
) -> None:
    before = set(trained("sd15").rglob("*"))
    refused("generate", "--results", trained("sd15"), *more)
    assert set(trained("sd15").rglob("*")) == before


@pytest.mark.nightly
def test_the_cpu_is_the_cpu_by_whatever_number(trained: Folder, tmp_path: Path) -> None:
    for size in (1, 3):
        draw(trained("sd15"), tmp_path / str(size), "--device", "cpu:0", "--batch_size", size)
    for index in (1, 2, 3):
        one, three = (tmp_path / size / f"{index}/joint.png" for size in ("1", "3"))
        assert one.read_bytes() == three.read_bytes()


def test_a_variation_says_whose_it_is(base_folder: Folder, tmp_path: Path) -> None:
    """So that all of one patient's variations stay on one side when the set is trained on."""
    data = write_prepared(tmp_path / "data", ["train", "val", "train", "train"])
    seen = [record for record in read_manifest(data) if isinstance(record, PreparedPair)]
    write_manifest(data, [replace(one, patient="P") if one.split == "train" else one for one in seen])
    assert main(train_command("exp", base_folder("sd15"), data, tmp_path)) == 0
    out = draw(tmp_path, tmp_path / "o", "--mode", "from_data")
    assert {record.source_eye for record in records(out)} == {"P"}


def test_a_folder_with_only_a_leftover_of_a_killed_start_is_used(trained: Folder, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o/.settings.json.partial").write_text("{")
    assert len(records(draw(trained("sd15"), tmp_path / "o"))) == 4


def test_the_same_tensors_at_another_alpha_are_another_adapter(trained: Folder, tmp_path: Path) -> None:
    best = trained("sd15") / "out_joint_sd15_cffa_pairs/exp/best_checkpoint/unet_lora"
    other = shutil.copytree(best, tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 400}))
    assert adapter_sha256(other) != adapter_sha256(best)


# --- The gate


@pytest.fixture(scope="module")
def middling(drawn: Drawn) -> float:
    """What two of the four pairs reach that are drawn first."""
    return sorted(record.consistency for record in records(drawn("sd15", "noise")))[2]


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory, trained: Folder, middling: float) -> Path:
    out = tmp_path_factory.mktemp("gated") / "o"
    return draw(trained("sd15"), out, "--min_consistency", middling, "--max_tries", 40)


def test_only_what_matches_is_kept_and_a_first_draw_that_does_is_the_ungated_one(
    gated: Path, drawn: Drawn, middling: float
) -> None:
    kept, first = records(gated), records(drawn("sd15", "noise"))
    assert all(record.consistency >= middling for record in kept)
    for record, before in zip(kept, first, strict=True):
        assert (record.attempt == 0) == (before.consistency >= middling)
        same = images(gated, record.index) == images(drawn("sd15", "noise"), record.index)
        assert same == (record.attempt == 0)


def read_refusals(folder: Path) -> list[Rejection]:
    path = folder / "refused.jsonl"
    return (
        [from_values(Rejection, json.loads(line), "refused.jsonl") for line in path.read_text().splitlines()]
        if path.is_file()
        else []
    )


def test_every_refusal_is_in_the_ledger_with_its_reason(gated: Path, middling: float) -> None:
    refused = read_refusals(gated)
    assert {refusal.why for refusal in refused} == {"consistency"}
    assert all(refusal.consistency < middling for refusal in refused)
    for record in records(gated):
        attempts = [refusal.round_number for refusal in refused if refusal.index == record.index]
        assert attempts == list(range(record.attempt))


def test_a_torn_ledger_goes_on_and_a_damaged_one_is_named(gated: Path, tmp_path: Path) -> None:
    before, ledger = read_refusals(gated), tmp_path / "refused.jsonl"
    ledger.write_text((gated / "refused.jsonl").read_text()[:-30])
    assert read_rejection_log(tmp_path).reasons.total() == len(before) - 1
    append_line(ledger, rejection_line(before[-1]))
    assert read_rejection_log(tmp_path).tries == Counter(one.index for one in before)
    assert read_refusals(tmp_path) == before
    ledger.write_text("5\n")
    with pytest.raises(UserError, match="refused.jsonl, line 1"):
        read_rejection_log(tmp_path)


def test_the_accepted_pairs_do_not_depend_on_how_they_were_drawn(
    gated: Path, trained: Folder, middling: float, tmp_path: Path
) -> None:
    how = ["--min_consistency", middling, "--max_tries"]
    draw(trained("sd15"), tmp_path / "o", *how, 1, "--batch_size", 3, "--amount", 4)
    draw(trained("sd15"), tmp_path / "o", *how, 40, "--amount", 4)  # raised later: the given up are gone on with
    assert records(tmp_path / "o") == records(gated)
    assert read_refusals(tmp_path / "o") == read_refusals(gated)


@pytest.mark.nightly
def test_where_everything_is_given_up_it_is_said_and_nothing_is_drawn_twice(
    trained: Folder, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = ["--min_consistency", 1, "--max_tries", 2, "--amount", 2]
    assert refused(*command(trained("sd15"), tmp_path / "o", *hopeless)).path == tmp_path / "o"
    assert len(read_refusals(tmp_path / "o")) == 4
    monkeypatch.setattr(PairGenerator, "sample", None)
    assert refused(*command(trained("sd15"), tmp_path / "o", *hopeless)).path == tmp_path / "o"


@pytest.mark.parametrize(
    ("amount", "tries", "said"),
    [(2, 1, "rejected 1 attempt (1 for copy); 1 pair given up"), (3, 2, "2 attempts (2 for copy); 2 pairs given up")],
)
def test_the_filters_counts_are_printed_in_the_right_number(
    amount: int, tries: int, said: str, capsys: Capture, tmp_path: Path
) -> None:
    plan: Any = SimpleNamespace(
        indices=range(1, amount + 1), out=tmp_path, config=SimpleNamespace(best_of=1, max_tries=1), modalities=CF_FA
    )
    done = GeneratedFolder(array("q", [1]), array("f", [0.5]))
    generate.print_end(plan, done, RejectionLog(Counter({2: tries}), Counter(copy=tries)))
    assert said in " ".join(capsys.readouterr().err.split())


def test_copies_of_training_pairs_are_refused(trained: Folder, tmp_path: Path, refused: Refused) -> None:
    line = refused(*command(trained("sd15"), tmp_path / "all", "--max_copy", -1, "--max_tries", 1, "--amount", 2))
    assert line.path == tmp_path / "all"
    assert "raise --max_copy" in line
    assert "--min_consistency" not in line
    assert [refusal.why for refusal in read_refusals(tmp_path / "all")] == ["copy", "copy"]
    assert all(-1 < (refusal.similarity or 0) < 1 for refusal in read_refusals(tmp_path / "all"))
    assert len(records(draw(trained("sd15"), tmp_path / "none", "--max_copy", 1, "--amount", 2))) == 2
    assert read_refusals(tmp_path / "none") == []


@pytest.mark.nightly
def test_a_drawn_pair_is_refused_as_a_copy_in_every_pose_of_augmentation(pairs: list[Pair]) -> None:
    gate = QualityFilter(max_copy=COPY, known=np.stack([descriptor_of(pair) for pair in pairs[:2]]))
    for variant in (draw_variant(number, 0, 0) for number in range(1, 7)):
        cf, fa = apply_variant(pairs[1].cf, pairs[1].fa, variant)
        refusal = gate.reject(5, 0, Pair(cf, fa, field_of_view(cf)), consistency=1.0)
        assert getattr(refusal, "why", None) == "copy", variant
    assert gate.reject(5, 0, pairs[2], consistency=1.0) is None


@pytest.mark.nightly
def test_training_pairs_are_transformed_once_for_all_draws(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(memorisation, "spectra", lambda maps: sizes.append(len(maps)) or spectra(maps))
    monkeypatch.setattr(memorisation, "AT_ONCE", 2)
    known = np.stack([descriptor_of(pair) for pair in pairs[:3]])
    gate = QualityFilter(max_copy=-1, known=known)
    refusals = [gate.reject(number, 0, pairs[number], consistency=1.0) for number in (2, 3)]
    assert sizes == [2, 1]
    found = memorisation.nearest(np.stack([descriptor_of(pair) for pair in pairs[2:4]]), known)
    assert [refusal and refusal.similarity for refusal in refusals] == [round(one.similarity, 4) for one in found]


@pytest.mark.nightly
def test_pairs_kept_by_another_search_for_copies_are_not_gone_on_with(
    trained: Folder, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict, free = tmp_path / "strict", tmp_path / "free"
    draw(trained("sd15"), strict, "--max_copy", 1, "--amount", 1)
    draw(trained("sd15"), free, "--amount", 1)
    monkeypatch.setattr(memorisation, "VERSION", memorisation.VERSION + 1)
    line = refused(*command(trained("sd15"), strict, "--max_copy", 1, "--amount", 2))
    assert (line.kind, line.path) == (OccupiedError, strict)
    draw(trained("sd15"), free, "--amount", 2)


@pytest.mark.parametrize(
    ("setting", "value", "more"),
    [
        ("min_consistency", 1.5, ()),
        ("max_tries", 0, ()),
        ("max_copy", 0.5, ("--mode", "from_data")),
    ],
)
def test_gates_that_cannot_work_are_refused(
    setting: str, value: float, more: tuple[str, ...], trained: Folder, tmp_path: Path, refused: Refused
) -> None:
    assert refused(*command(trained("sd15"), tmp_path / "o", f"--{setting}", value, *more)).setting == setting
    assert not (tmp_path / "o").exists()


def test_an_adapter_that_is_replaced_while_it_is_read_is_not_drawn_with(
    trained: Folder, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shutil.copytree(trained("sd15"), tmp_path / "r")
    run = results / "out_joint_sd15_cffa_pairs/exp"
    load = generate.load

    def replacing(*arguments: Any) -> Any:
        loaded = load(*arguments)
        shutil.rmtree(run / "best_checkpoint/unet_lora")
        other = "step_000004" if best_step(run) != 4 else "step_000002"
        shutil.copytree(run / f"latest_checkpoints/{other}/unet_lora", run / "best_checkpoint/unet_lora")
        return loaded

    monkeypatch.setattr(generate, "load", replacing)
    assert refused(*command(results, tmp_path / "out")).path == run / "best_checkpoint/unet_lora"
    assert not (tmp_path / "out").exists()


def best_step(run: Path) -> int:
    return int(json.loads((run / "best_checkpoint/reason.json").read_text())["step"])
