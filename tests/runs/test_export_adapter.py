"""`retipair export adapter` writes files that other programs load, and that `generate` and `train` take back."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters import description, with_adapter
from conftest import train_command
from refusals import Refused, raises_setting
from retipair import PairGenerator
from retipair.interfaces.cli import execute, main
from retipair.models.base import open_base
from retipair.models.lora import (
    adapter_sha256,
    add_adapter,
    load_adapter,
    lora_config,
    merge_adapter,
    read_adapter_metadata,
    read_tensors,
    save_adapter,
)
from retipair.models.merged import write_merged
from retipair.runtime.errors import FileError, MissingError, OccupiedError, SettingError
from retipair.training import train as training
from retipair.training.plan import Data, Plan

Folder = Callable[[str], Path]


def run_of(results: Path, system: str, name: str = "exp") -> Path:
    return results / f"out_joint_{system}_cffa_pairs" / name


def export(*words: object) -> int:
    return main(["export", "adapter", *map(str, words)])


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_an_exported_adapter_generates_the_pairs_of_the_run(
    to: str, system: str, trained: Folder, base_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(trained(system), system)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    assert export(run, out, "--to", to) == 0
    assert str(out) in capsys.readouterr().out
    settings = {"base": str(base_folder(system)), "steps": 2, "device": "cpu"}
    [expected], [pair] = (list(PairGenerator.from_pretrained(adapter, **settings).sample(1)) for adapter in (run, out))
    assert (pair.cf == expected.cf).all()
    assert (pair.fa == expected.fa).all()
    assert not list(tmp_path.glob(".*"))


def test_checkpoints_have_a_kohya_file_equal_to_the_exported_one(
    system: str, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    run = run_of(trained(system), system)
    assert export(run / "best_checkpoint", tmp_path / "a.safetensors") == 0
    beside = run / "best_checkpoint/unet_lora/kohya_lora.safetensors"
    assert_equal(load_file(tmp_path / "a.safetensors"), load_file(beside))
    assert export(beside, tmp_path / "b.safetensors", "--to", "diffusers") == 0
    assert export(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "--base", base_folder(system)) == 0
    assert_equal(load_file(tmp_path / "c.safetensors"), load_file(beside))


def test_peft_loads_the_exported_folder(system: str, trained: Folder, base_folder: Folder, tmp_path: Path) -> None:
    run = run_of(trained(system), system)
    assert export(run, tmp_path / "peft", "--to", "peft", "--checkpoint", "latest") == 0
    loaded = PeftModel.from_pretrained(open_base(str(base_folder(system))).unet(), str(tmp_path / "peft"))
    assert any("lora_A" in name for name, _ in loaded.named_parameters())
    saved = read_tensors(run / "latest_checkpoints/step_000004/unet_lora")
    assert_equal(read_tensors(tmp_path / "peft"), saved)


def assert_equal(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(state) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_the_merged_file_is_the_base_with_the_adapter(
    system: str, trained: Folder, base_folder: Folder, tmp_path: Path
) -> None:
    """As diffusers reads it back, also if the base is such a file itself."""
    run, folder = run_of(trained(system), system), base_folder(system)
    out = tmp_path / "merged.safetensors"
    assert export(run, out, "--to", "merged") == 0
    base = open_base(str(folder))
    expected = base.unet()
    load_adapter(run / "best_checkpoint/unet_lora", expected, base)
    merge_adapter(expected)
    where = {"config": str(folder), "local_files_only": True}
    assert_equal(
        UNet2DConditionModel.from_single_file(str(out), subfolder="unet", **where).state_dict(), expected.state_dict()
    )
    assert_equal(
        AutoencoderKL.from_single_file(str(out), subfolder="vae", **where).state_dict(), base.vae().state_dict()
    )
    again = tmp_path / "again.safetensors"
    write_merged(again, open_base(str(out), configs=folder), run / "best_checkpoint/unet_lora", {})
    merged = open_base(str(out), configs=folder)
    twice = merged.unet()
    load_adapter(run / "best_checkpoint/unet_lora", twice, merged)
    merge_adapter(twice)
    assert_equal(
        UNet2DConditionModel.from_single_file(str(again), subfolder="unet", **where).state_dict(), twice.state_dict()
    )
    assert set(load_file(again)) == set(load_file(out))
    prefixes = {name.partition(".")[0] for name in load_file(out)}
    assert prefixes == {"model", "first_stage_model", "conditioner" if system == "sdxl" else "cond_stage_model"}
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["retipair"])["system"] == system


def test_the_tensors_of_the_base_keep_their_precision(trained: Folder, base_folder: Folder, tmp_path: Path) -> None:
    half = tmp_path / "half"
    for path in base_folder("sd15").rglob("*"):
        if path.is_file():
            target = half / path.relative_to(base_folder("sd15"))
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                save_file({n: t.half() if t.is_floating_point() else t for n, t in load_file(path).items()}, target)
            else:
                target.write_bytes(path.read_bytes())
    out = tmp_path / "merged.safetensors"
    assert export(run_of(trained("sd15"), "sd15"), out, "--to", "merged", "--base", half) == 0
    assert {t.dtype for t in load_file(out).values() if t.is_floating_point()} == {torch.float16}


def test_bad_input_is_refused_and_nothing_is_written(
    trained: Folder, base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    run, out = run_of(trained("sd15"), "sd15"), tmp_path / "out.safetensors"
    base = open_base(str(base_folder("sd15")))

    def refusal(*words: object, kind: type) -> str:
        line = refused("export", "adapter", *map(str, words))
        assert line.kind is kind
        return str(line)

    assert ".safetensors" in refusal(run, tmp_path / "out.pt", kind=SettingError)
    refusal(tmp_path / "missing", out, kind=MissingError)
    for adapter in (run / "best_checkpoint", run / "best_checkpoint/unet_lora/kohya_lora.safetensors"):
        assert "run" in refusal(adapter, out, "--checkpoint", "latest", kind=SettingError)
        with raises_setting("checkpoint"):
            PairGenerator.from_pretrained(adapter, checkpoint="latest", base=base.source)
    assert "random" in refusal(run, out, "--to", "merged", "--base", "random:tiny-sd15", kind=SettingError)
    assert "sd15" in refusal(run, out, "--base", base_folder("sdxl"), kind=FileError)
    foreign = tmp_path / "foreign.safetensors"
    save_file(load_file(run / "best_checkpoint/unet_lora/kohya_lora.safetensors"), foreign)
    assert "--base" in refusal(foreign, out, kind=FileError)
    refusal(foreign, out, "--base", base_folder("sdxl"), kind=FileError)
    assert not out.exists()
    out.write_bytes(b"mine")
    refusal(run, out, kind=OccupiedError)
    assert out.read_bytes() == b"mine"
    dora = tmp_path / "dora"
    save_adapter(dora, base, with_adapter(base, "dora"), description(base, "dora"))
    assert "merged" in refusal(dora, tmp_path / "dora.safetensors", "--base", base.source, kind=SettingError)
    assert export(dora, tmp_path / "dora.safetensors", "--base", base.source, "--to", "merged") == 0
    assert "matches, adapter" in refused("export")
    assert "matches, adapter" in refused("export", "other", "a", "b")


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft", "merged"])
def test_an_adapter_that_does_not_fit_its_base_is_refused(
    to: str, trained: Folder, base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    file, out = tmp_path / "in/lora.safetensors", tmp_path / "out.safetensors"
    out = out.with_suffix("") if to == "peft" else out
    file.parent.mkdir()
    state = load_file(run_of(trained("sd15"), "sd15") / "best_checkpoint/unet_lora/kohya_lora.safetensors")
    down = next(name for name in state if name.endswith("lora_down.weight"))
    for wrong in (torch.zeros(4, 7), state[down][..., None, None].clone()):
        save_file({**state, down: wrong}, file)
        line = refused("export", "adapter", file, out, "--to", to, "--base", base_folder("sd15"))
        assert (line.kind, line.path) == (FileError, file)
        assert "attn1.to_k" in line
    assert list(tmp_path.iterdir()) == [file.parent]


def test_weights_that_overflow_are_not_merged(
    trained: Folder, base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    file, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    state = load_file(run_of(trained("sd15"), "sd15") / "best_checkpoint/unet_lora/kohya_lora.safetensors")
    large = {name: torch.full_like(t, 1e30 if name.endswith(".alpha") else 1e5) for name, t in state.items()}
    save_file(large, file)
    line = refused("export", "adapter", file, out, "--to", "merged", "--base", base_folder("sd15"))
    assert (line.kind, line.path) == (FileError, file)
    assert "NaN or infinity" in line
    assert list(tmp_path.iterdir()) == [file]


def test_training_continues_from_an_exported_adapter(
    system: str, trained: Folder, base_folder: Folder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of 0, the adapter of the new run is the one that it started from. It is read only once."""
    first = run_of(trained(system), system)
    kept = first / "best_checkpoint/unet_lora/kohya_lora.safetensors"
    file = Path(shutil.copy(kept, tmp_path / "initial.safetensors"))
    read_data = training.read_data

    def remove_and_read(plan: Plan) -> Data:
        file.unlink()
        return read_data(plan)

    monkeypatch.setattr(training, "read_data", remove_and_read)
    flags = ("--init_adapter", file, "--learning_rate", 0, "--lr_end", 0, "--weight_decay", 0)
    assert main(train_command("more", base_folder(system), prepared, tmp_path, *flags)) == 0
    adapter = run_of(tmp_path, system, "more") / "best_checkpoint/unet_lora"
    assert_equal(read_tensors(adapter), read_tensors(first / "best_checkpoint/unet_lora"))
    assert read_adapter_metadata(adapter).initial_sha256 == adapter_sha256(kept)  # type: ignore[union-attr]


def test_a_resumed_run_needs_its_initial_adapter_no_more(
    trained: Folder, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    shutil.copyfile(run_of(trained("sd15"), "sd15") / "best_checkpoint/unet_lora/kohya_lora.safetensors", file)
    command = train_command("more", base_folder("sd15"), prepared, tmp_path, "--init_adapter", file)
    assert main([*command, "--max_steps", "2"]) == 0
    sha256 = adapter_sha256(file)
    file.unlink()
    assert main([*command, "--max_steps", "4", "--resume"]) == 0
    last = run_of(tmp_path, "sd15", "more") / "latest_checkpoints/step_000004/unet_lora"
    assert read_adapter_metadata(last).initial_sha256 == sha256  # type: ignore[union-attr]


def test_a_lora_file_is_estimated_and_generates(
    trained: Folder, base_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_of(trained("sd15"), "sd15") / "best_checkpoint/unet_lora/kohya_lora.safetensors"
    flags = ["--base", base_folder("sd15"), "--out", tmp_path / "out", "--steps", 2, "--amount", 1, "--memory", 24]
    assert main([str(word) for word in ("generate", "--checkpoint", file, *flags)]) == 0
    assert "GiB estimated" in capsys.readouterr().err
    peft = file.with_name("adapter_model.safetensors")
    assert export(peft, tmp_path / "a.safetensors") == 0


def test_the_flags_in_the_message_are_accepted(base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    """The alpha of a kohya file made from rsLoRA of rank 8 is no short number."""
    base = open_base(str(base_folder("sd15")))
    unet = base.unet()
    add_adapter(unet, lora_config(8, 8.0, "attention", dora=False, rslora=True))
    about = replace(description(base, "rslora"), rank=8, alpha=8.0)
    save_adapter(tmp_path / "lora", base, unet, about)
    file = tmp_path / "lora/kohya_lora.safetensors"
    command = train_command("more", base.source, prepared, tmp_path / "results", "--init_adapter", file)
    with pytest.raises(SettingError) as caught:
        execute(command)
    flags = re.findall(r"--unet\S+ \S+", str(caught.value))
    assert main([*command, *" ".join(flags).split(), "--dry_run"]) == 0


def test_an_initial_adapter_with_other_settings_is_refused_with_the_flags(
    trained: Folder, base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    first = run_of(trained("sd15"), "sd15")
    line = refused(*train_command("more", base_folder("sd15"), prepared, tmp_path, "--init_adapter", first, "--dora"))
    assert line.setting == "init_adapter"
    assert "--unet_lora_rank 4 --unet_lora_alpha 4 --lora_targets attention" in line
    assert not run_of(tmp_path, "sd15", "more").exists()
    line = refused(*train_command("more", base_folder("sdxl"), prepared, tmp_path, "--init_adapter", first))
    assert line.kind is FileError
    assert not list(tmp_path.iterdir())
