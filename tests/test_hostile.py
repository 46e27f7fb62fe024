"""Files made to do harm do nothing but get refused."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from conftest import prepared_record, write_prepared
from refusals import Refused, raises_file
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.pair import load_image
from retipair.interfaces.cli import main

Folder = Callable[[str], Path]


@pytest.fixture
def adapter(trained: Folder, tmp_path: Path) -> Path:
    """A copy of an adapter that works."""
    found = trained("sd15") / "out_joint_sd15_cffa_pairs/exp/best_checkpoint/unet_lora"
    return shutil.copytree(found, tmp_path / "unet_lora")


@pytest.mark.parametrize(
    "harm",
    [
        {"megatron_config": {}, "megatron_core": "planted"},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "planted"}},
    ],
)
def test_an_adapters_settings_import_nothing(
    harm: dict[str, object], adapter: Path, base_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | harm))
    words = ["generate", "--checkpoint", adapter, "--base", base_folder("sd15"), "--out", tmp_path / "o", "--steps", 1]
    assert main([str(word) for word in [*words, "--amount", 1, "--device", "cpu"]]) == 0  # what is ours in it is sound
    assert "planted" not in sys.modules
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "harm",
    [
        {"target_modules": "(a+)+$"},
        {"target_modules": ["(a+)+$"]},
        {"r": 10**9},
        {"r": 5},
        {"r": "4"},
        {"lora_alpha": None},
        {"rank_pattern": {"(a+)+$": 3}},
        {"alpha_pattern": {".*": 1e9}},
        {"modules_to_save": ["conv_in"]},
    ],
)
def test_an_adapters_settings_that_lie_are_refused(
    harm: dict[str, object], adapter: Path, base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | harm))
    line = refused("generate", "--checkpoint", adapter, "--base", base_folder("sd15"), "--out", tmp_path / "o")
    assert str(adapter) in line
    assert not (tmp_path / "o").exists()


class Planted:
    """What a pickle may do as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_pickles_are_not_opened(
    adapter: Path, base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    planted = pickle.dumps(Planted(tmp_path / "owned"))
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(planted)
    line = refused("generate", "--checkpoint", adapter, "--base", base_folder("sd15"), "--out", tmp_path / "o")
    assert line.path == adapter / "adapter_model.bin"
    base = shutil.copytree(base_folder("sd15"), tmp_path / "base")
    for path in base.rglob("*.safetensors"):
        path.with_suffix(".bin").write_bytes(planted)
        path.unlink()
    refused("train", "-n", "x", "--data", prepared, "--base", base, "--results", tmp_path / "r")
    for name in ("base.ckpt", "base.safetensors"):
        (tmp_path / name).write_bytes(planted)
        assert name in refused(
            "train", "-n", "x", "--data", prepared, "--base", tmp_path / name, "--results", tmp_path / "r"
        )
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("path", ["../../x.png", "/etc/passwd", "cf/../../x.png", "cf\\..\\..\\x.png"])
def test_a_manifest_leads_nowhere_else(path: str, base_folder: Folder, tmp_path: Path, refused: Refused) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val", "train"])
    lines = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    lines[0]["cf"] = path
    (data / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = refused("train", "-n", "x", "--data", data, "--base", base_folder("sd15"), "--results", tmp_path / "r")
    assert "manifest.jsonl, line 1" in line


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val", "train"])
    script = "<script>alert(1)</script>"
    records = [*read_manifest(data)]
    first = prepared_record("eye0", "train", caption=script)
    write_manifest(data, [replace(first, id=script, eye=script), *records[1:]])
    assert main(["evaluate", "--real", str(data), "--out", str(tmp_path / "judged")]) == 0
    page = (tmp_path / "judged/report.html").read_text()
    assert script not in page


def test_an_image_models_code_is_not_run(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = write_prepared(tmp_path / "data", ["train", "val", "train"]), tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").touch()
    code = {"AutoConfig": "conf.Config", "AutoModel": "conf.Model"}
    (model / "config.json").write_text(json.dumps({"model_type": "evilnet", "auto_map": code}))
    (model / "conf.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    line = refused("evaluate", "--real", data, "--generated", data, "--out", tmp_path / "e", "--deep", model)
    assert line.path == model
    assert not (tmp_path / "owned").exists()


def test_an_image_that_a_program_would_draw_is_none(tmp_path: Path) -> None:
    """PostScript under another name: Pillow would start Ghostscript."""
    path = tmp_path / "001_01.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    with raises_file(path):
        load_image(path, "RGB")
