"""A third model family needs an entry in models/families.py and its recognition, nothing else."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import VIEW, train_command
from retipair.interfaces.cli import main
from retipair.models import recognition
from retipair.models.base import open_base
from retipair.models.families import FAMILIES, SD15
from retipair.models.lora import read_adapter_metadata

TOY = replace(SD15, name="toy", layout="side_by_side")


@pytest.fixture
def toy_base(base_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Add the family as CONTRIBUTING.md describes, and return the folder of a base of it."""
    known = recognition._family_of_unet

    def family_of_unet(unet: dict[str, Any]) -> object:
        return TOY if unet.get("_name_or_path") == "toy" else known(unet)

    monkeypatch.setitem(FAMILIES, TOY.name, TOY)
    monkeypatch.setattr(recognition, "_family_of_unet", family_of_unet)
    folder = shutil.copytree(base_folder("sd15"), tmp_path / "toy_base")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps({**config, "_name_or_path": "toy"}))
    return folder


def test_a_third_family_trains_and_generates(toy_base: Path, prepared: Path, tmp_path: Path) -> None:
    assert open_base(str(toy_base)).family is TOY
    assert main(train_command("exp", toy_base, prepared, tmp_path, "--max_steps", 1, "--num_samples", 0)) == 0
    run = tmp_path / "out_joint_toy_cffa_pairs/exp"
    metadata = read_adapter_metadata(run / "latest_checkpoints/step_000001/unet_lora")
    assert metadata is not None
    assert (metadata.system, metadata.layout, metadata.size_ids) == ("toy", "side_by_side", [])
    words = ["generate", "-n", "exp", "--results", tmp_path, "--checkpoint", "latest", "--amount", 1, "--steps", 1]
    assert main([str(word) for word in (*words, "--device", "cpu")]) == 0
    with Image.open(tmp_path / "out_joint_toy_cffa_pairs_preds/exp/pairs/1/joint.png") as joint:
        assert joint.size == (VIEW, VIEW // 2)  # views of half the base's native width, side by side


def test_the_other_families_are_recognised_as_before(toy_base: Path, base_folder: Callable[[str], Path]) -> None:
    assert open_base(str(base_folder("sd15"))).family is SD15
