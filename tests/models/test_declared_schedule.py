"""The noise schedule that a single file declares is used in training and sampling, and is printed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import train_command
from refusals import Refused
from retipair.interfaces.cli import main
from retipair.models import base as base_module
from single_file import SD15_SHAPES, add_to_file, write_empty_file, write_single_file

Folder = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
MARKERS = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
V_PREDICTION = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TREES = {"sdxl": "out_joint_sdxl_cffa_pairs", "sd15": "out_joint_sd15_cffa_pairs"}


@pytest.fixture(params=["sd15", pytest.param("sdxl", marks=pytest.mark.nightly)])
def system(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(system: str, base_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny base that predicts noise; its configs replace the published ones."""
    copy = tmp_path / "configs" / system
    shutil.copytree(base_folder(system), copy)
    monkeypatch.setattr(base_module, "CONFIGS", copy.parent)
    return copy


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    """The same base as one file that declares v-prediction and zero terminal SNR."""
    path = tmp_path / "v.safetensors"
    write_single_file(folder, path)
    add_to_file(path, MARKERS, {"modelspec.prediction_type": "epsilon"})
    return path


def losses(run: Path) -> list[float]:
    """Return the losses of the base, of the step and of the result of the step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


def test_a_file_that_declares_v_trains_and_draws_as_a_folder_whose_config_says_so(
    system: str, folder: Path, file: Path, prepared: Path, tmp_path: Path, capsys: Capture
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    config = whole / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | V_PREDICTION))
    joint_images = {}
    for base in (file, whole):
        results = tmp_path / base.stem
        quick = ("--max_steps", 1, "--num_samples", 0)
        assert main(train_command("exp", base, prepared, results, "--tokenizer", folder, *quick)) == 0
        said = capsys.readouterr().err
        assert "predicts v_prediction, zero terminal SNR" in said
        assert ("key v_pred and key ztsnr" in said) == (base == file)
        assert ("warning: " in said and "modelspec.prediction_type = epsilon contradicts" in said) == (base == file)
        command = ["generate", "-n", "exp", "--results", results, "--out", results / "new", "--tokenizer", folder]
        assert main([str(part) for part in (*command, "--amount", 1, "--steps", 3, "--checkpoint", "latest")]) == 0
        said = capsys.readouterr().err
        assert ("predicts v_prediction, zero terminal SNR (key v_pred and key ztsnr)" in said) == (base == file)
        assert ("modelspec.prediction_type = epsilon contradicts" in said) == (base == file)
        joint_images[base] = np.asarray(Image.open(results / "new/1/joint.png")).astype(int)
    one, other = (losses(tmp_path / base.stem / TREES[system] / "exp") for base in (file, whole))
    assert one == pytest.approx(other, rel=1e-4)
    assert np.abs(joint_images[file] - joint_images[whole]).max() <= 1


def test_the_dry_run_says_what_a_file_declares(
    base_folder: Folder, prepared: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "v.safetensors"
    for keys, expected in (
        ((), "epsilon (the default, because the file declares no prediction type)"),
        (tuple(MARKERS), "v_prediction, zero terminal SNR (key v_pred and key ztsnr)"),
    ):
        write_empty_file(path, SD15_SHAPES | dict.fromkeys(keys, (0,)))
        command = train_command("exp", path, prepared, tmp_path / "results", "--dry_run")
        assert main([*command, "--tokenizer", str(base_folder("sd15"))]) == 0
        assert f"prediction                   {expected}\n" in capsys.readouterr().out


def test_the_dry_run_refuses_an_inpainting_file(prepared: Path, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "inpainting.safetensors"
    write_empty_file(path, SD15_SHAPES | {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)})
    assert refused(*train_command("exp", path, prepared, tmp_path / "results", "--dry_run")).setting == "base"
