"""The commands as Python calls give what the commands give, and print nothing unless asked."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import retipair
from conftest import VIEW
from eyes import write_raw
from refusals import raises_file, raises_setting
from retipair.config import GenerateConfig, TrainConfig
from retipair.generation import plan
from retipair.interfaces.cli import main
from retipair.models import hub
from retipair.runtime.console import console
from retipair.runtime.errors import FileError, MissingError, OccupiedError, SettingError
from retipair.runtime.schema import from_settings

Folder = Callable[[str], Path]
LIGHT = """
import sys, warnings, logging, os
before = set(sys.modules), warnings.filters[:], dict(os.environ)
import retipair
heavy = {"torch", "numpy", "PIL", "diffusers", "transformers", "cv2", "skimage", "rich", "tyro"} & set(sys.modules)
assert not heavy, heavy
assert warnings.filters == before[1] and dict(os.environ) == before[2]
assert set(retipair.__all__) <= set(dir(retipair))
"""


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_importing_loads_and_changes_nothing() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


@pytest.mark.parametrize("name", retipair.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(retipair, name).__doc__


def test_what_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        retipair.nothing  # noqa: B018


def test_from_raw_views_to_scores(
    base_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "retipair")
    write_raw(tmp_path / "raw", n=3, size=128)
    pairs = retipair.prepare("raw", "pairs", size=VIEW, workers=1)
    assert [pair.id for pair in retipair.load_pairs(pairs)] == ["001", "002", "003"]
    short = {"max_steps": 2, "num_samples": 0, "augment_variants": 1, "unet_lora_rank": 4, "unet_lora_alpha": 4}
    run = retipair.train(pairs, name="first", base=str(base_folder("sd15")), device="cpu", **short)
    assert run.name == "first"
    scores = retipair.evaluate(pairs, out=tmp_path / "scores")
    assert sum(scores.sizes.values()) == 3
    assert scores.to_json() == json.loads((tmp_path / "scores/scores.json").read_text())
    [summary] = retipair.compare_runs()
    assert summary.folder.samefile(run.folder)
    assert summary.step == 2
    exported = retipair.export_pairs(pairs, "exported", to="webdataset", workers=1)
    for described in (retipair.card(exported), retipair.card(run)):
        assert "license" in described.read_text(encoding="utf-8")
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""
    levels = {record.getMessage(): record.levelname for record in caplog.records if record.name == "retipair"}
    assert levels["3 of 3 pairs kept in pairs (2 train, 1 val)"] == "INFO"
    assert "WARNING" in levels.values()  # of the few pairs


def test_pairs_in_memory_are_those_that_generate_writes(trained: Folder, tmp_path: Path) -> None:
    """Also if fewer are taken than were asked for, and whichever were taken before."""
    results, flags = trained("sd15"), ["--steps", "2", "--device", "cpu"]
    words = ["generate", "-n", "exp", "--results", str(results), "--out", str(tmp_path / "o"), "--amount", "3"]
    assert main([*words, *flags, "--seed", "5"]) == 0
    run = retipair.Run(results / "out_joint_sd15_cffa_pairs/exp")
    for source in (run, run.folder, run.adapter_folder("best")):
        more = {} if source != run.adapter_folder("best") else {"base": run.read_config().base}
        generator = retipair.PairGenerator.from_pretrained(source, steps=2, device="cpu", **more)
        for number, pair in enumerate(islice(generator.sample(100, seed=5), 2), 1):
            assert pair.id == str(number)
            assert np.array_equal(pair.cf, pixels(tmp_path / f"o/{number}/cf.png"))
            assert np.array_equal(pair.fa, pixels(tmp_path / f"o/{number}/fa.png"))


def test_saved_pairs_are_those_that_sample_gives(trained: Folder, tmp_path: Path) -> None:
    generator = retipair.PairGenerator.from_pretrained(
        trained("sd15") / "out_joint_sd15_cffa_pairs/exp", steps=2, device="cpu"
    )
    out = generator.save(tmp_path / "new", 2, seed=5)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert generator.save(out, 3, seed=5) == out
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())
    for pair, loaded in zip(generator.sample(3, seed=5), retipair.load_pairs(out), strict=True):
        assert pair.id == loaded.id
        assert np.array_equal(pair.cf, loaded.cf)
        assert np.array_equal(pair.fa, loaded.fa)
    with raises_file(out, OccupiedError):
        generator.save(out, 3, seed=6)


def test_phantoms_from_python_are_those_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", str(tmp_path / "a"), "--amount", "2", "--size", "64", "--disease", "diabetic"]) == 0
    capsys.readouterr()
    out = retipair.phantom(tmp_path / "b", amount=2, size=64, disease="diabetic")
    assert capsys.readouterr() == ("", "")
    assert out == tmp_path / "b"
    assert (out / "manifest.jsonl").read_bytes() == (tmp_path / "a/manifest.jsonl").read_bytes()


def test_in_jupyter_output_goes_through_the_standard_streams_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich would hand it to Jupyter's display, which redirecting these streams does not silence."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    spec = find_spec("retipair.runtime.console")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.console.is_jupyter
    write_raw(tmp_path / "raw", n=2, size=128)
    retipair.prepare(tmp_path / "raw", tmp_path / "pairs", size=VIEW, workers=1, verbose=True)
    assert "inliers" in capsys.readouterr().out


def test_a_generator_that_prepares_raw_pairs_prints_only_if_asked(
    trained: Folder, prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(data: Path, *more: object) -> Path:
        console.print("uses the prepared pairs")
        print("a table")
        return data

    monkeypatch.setattr(plan, "prepared_folder", prepare)
    folder = trained("sd15") / "out_joint_sd15_cffa_pairs/exp"
    varied = {"mode": "from_data", "data": prepared, "device": "cpu"}
    retipair.PairGenerator.from_pretrained(folder, **varied)
    assert capsys.readouterr() == ("", "")
    retipair.PairGenerator.from_pretrained(folder, verbose=True, **varied)
    printed = capsys.readouterr()
    assert printed.out == "a table\n"
    assert "uses the prepared pairs" in printed.err


def test_attempts_that_are_given_up_are_left_out(trained: Folder) -> None:
    folder = trained("sd15") / "out_joint_sd15_cffa_pairs/exp"
    hopeless = {"min_consistency": 1.0, "max_tries": 2}
    generator = retipair.PairGenerator.from_pretrained(folder, steps=1, device="cpu", **hopeless)
    assert list(generator.sample(2)) == []


def test_folders_of_different_sizes_are_refused_before_a_batch_fails(prepared: Path, tmp_path: Path) -> None:
    larger = shutil.copytree(prepared, tmp_path / "larger")
    for path in larger.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((2 * image.width, 2 * image.height)).save(path)
    with raises_file(larger):
        retipair.PairDataset([prepared, larger])


def test_a_dataset_gives_tensors_of_the_pairs(prepared: Path) -> None:
    dataset = retipair.PairDataset([prepared, prepared], split="train")
    assert len(dataset) == 6
    [pair] = [one for one in retipair.load_pairs(prepared, "train") if one.id == dataset[0]["id"]]
    batch = next(iter(DataLoader(dataset, batch_size=6)))
    assert batch["cf"].shape == (6, 3, VIEW, VIEW)
    assert batch["fa"].shape == batch["mask"].shape == (6, 1, VIEW, VIEW)
    assert torch.equal((batch["cf"][0] * 255).round().byte(), torch.from_numpy(pair.cf.transpose(2, 0, 1).copy()))
    assert torch.equal((batch["fa"][0, 0] * 255).round().byte(), torch.from_numpy(pair.fa.copy()))
    assert torch.equal(batch["mask"][0, 0], torch.from_numpy(pair.mask.copy()))


def test_a_pair_shows_itself_in_a_notebook(prepared: Path) -> None:
    pair = next(retipair.load_pairs(prepared))
    shown = np.asarray(Image.open(io.BytesIO(pair._repr_png_())))
    assert np.array_equal(shown[:, :VIEW], pair.cf)
    assert np.array_equal(shown[:, VIEW:, 0], pair.fa)


def test_unknown_settings_and_folders_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(retipair.UserError, match="unknown setting 'max_step'; TrainConfig has"):
        retipair.train(prepared, name="x", max_step=3)
    with raises_file(tmp_path / "nowhere"):
        retipair.PairGenerator.from_pretrained(tmp_path / "nowhere")
    with raises_file(tmp_path / "nowhere", MissingError):
        list(retipair.load_pairs(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("size", 256.0, "an integer"),
        ("size", "256", "an integer"),
        ("max_steps", 2.0, "an integer"),
        ("max_steps", True, "an integer"),
        ("max_steps", None, "an integer"),
        ("seed", True, "an integer"),
        ("seed", 2**70, "an integer"),
        ("seed", 2**40, "2^32"),
        ("memory", 12, "'auto', '24', '16', '12', '8'"),
        ("memory", np.array(["auto", "24"]), "'auto', '24', '16', '12', '8'"),
        ("lr_schedule", "bogus", "'original', 'constant', 'cosine'"),
        ("on_nan", "bogus", "'stop', 'skip'"),
        ("precision", "fp16", "'auto', 'fp32', 'bf16'"),
        ("dora", "false", "True or False"),
        ("dora", 0, "True or False"),
        ("prompt", 3, "text"),
        ("prompt", None, "text"),
        ("prompt", "a\0b", "NUL"),
        ("device", 0, "default: auto"),
        ("learning_rate", "1", "a finite number"),
        ("learning_rate", float("nan"), "a finite number"),
        ("learning_rate", np.float32("inf"), "a finite number"),
        ("results", 3, "a path"),
        ("results", "", "a path"),
        ("results", None, "a path"),
        ("data", b"pairs", "a path"),
        ("name", 3, "text"),
    ],
)
def test_a_setting_of_another_type_is_named(setting: str, value: Any, allowed: str, tmp_path: Path) -> None:
    settings = {"data": "nowhere", "name": "x", "results": tmp_path / "results", setting: value}
    with pytest.raises(SettingError, match=re.escape(allowed)) as caught:
        retipair.train(**settings)
    assert caught.value.setting == setting
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("function", "arguments", "settings", "wrong"),
    [
        (retipair.phantom, ["o"], {"size": 256.0}, "size"),
        (retipair.phantom, ["o"], {"camera": 3}, "camera"),
        (retipair.phantom, [""], {}, "out"),
        (retipair.prepare, ["raw", "o"], {"register": "bogus"}, "register"),
        (retipair.prepare, ["raw", 3], {}, "out"),
        (retipair.prepare, [None, "o"], {}, "raw"),
        (retipair.train, ["pairs"], {}, "name"),
        (retipair.train, ["pairs"], {"name": "x", "dry_run": True}, "dry_run"),
        (retipair.evaluate, ["pairs"], {"withhold_copies": "no"}, "withhold_copies"),
        (retipair.evaluate, ["pairs", ""], {}, "generated"),
        (retipair.evaluate, ["pairs"], {"workers": None}, "workers"),
        (retipair.load_pairs, [3], {}, "folder"),
        (retipair.load_pairs, ["pairs"], {"split": "vall"}, "split"),
        (retipair.PairDataset, ["pairs"], {"split": "vall"}, "split"),
        (retipair.PairDataset, [["pairs", 3]], {}, "folder"),
        (retipair.PairDataset, [None], {}, "folder"),
        (retipair.PairDataset, [[]], {}, "folders"),
        (retipair.PairGenerator.from_pretrained, [3], {}, "adapter"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"checkpoint": "bset"}, "checkpoint"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"sampler": "bogus"}, "sampler"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"seed": 5}, "seed"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"amount": 5}, "amount"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"out": "o"}, "out"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"savedir": "o"}, "savedir"),
        (retipair.PairGenerator.from_pretrained, ["run"], {"per_view": 2}, "per_view"),
    ],
)
def test_every_function_names_the_wrong_setting(
    function: Callable[..., Any],
    arguments: list[Any],
    settings: dict[str, Any],
    wrong: str,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is written."""
    (tmp_path / "pairs").symlink_to(prepared)
    monkeypatch.chdir(tmp_path)
    with raises_setting(wrong):
        function(*arguments, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_errors_say_what_is_allowed_instead(prepared: Path) -> None:
    with pytest.raises(retipair.UserError, match="'train', 'val', 'test' or None"):
        retipair.load_pairs(prepared, "vall")  # type: ignore[arg-type]
    with pytest.raises(retipair.UserError, match="'best', 'latest'"):
        retipair.PairGenerator.from_pretrained(prepared, checkpoint="bset")  # type: ignore[arg-type]
    with pytest.raises(retipair.UserError, match=r"sample\(count, seed="):
        retipair.PairGenerator.from_pretrained(prepared, seed=5)


def test_values_of_other_types_that_fit_are_converted() -> None:
    given = {"name": np.str_("x"), "data": "pairs", "base": Path("a/base"), "max_steps": np.int64(3)}
    numbers = {"learning_rate": np.float32(1e-4), "unet_lora_alpha": 16, "ema_decay": np.int8(0), "dora": np.True_}
    config = from_settings(TrainConfig, {**given, **numbers, "size": None})
    assert config == TrainConfig(
        name="x", data=Path("pairs"), base="a/base", max_steps=3, learning_rate=float(np.float32(1e-4)), dora=True
    )
    for name, value in vars(config).items():
        assert type(value) in (str, int, float, bool, type(None), type(Path())), name
    assert type(config.unet_lora_alpha) is float
    assert type(from_settings(GenerateConfig, {"min_consistency": 1}).min_consistency) is float


def test_arguments_of_sample_and_save_are_checked_when_they_are_called(trained: Folder, tmp_path: Path) -> None:
    run = retipair.Run(trained("sd15") / "out_joint_sd15_cffa_pairs/exp")
    generator = retipair.PairGenerator.from_pretrained(run, steps=1, device="cpu")
    for count in (2.0, "2", True, None, 0, 10**9):
        with raises_setting("count"):
            generator.sample(count)  # type: ignore[arg-type]
        with raises_setting("count"):
            generator.save(tmp_path / "o", count)  # type: ignore[arg-type]
    for seed in (0.5, None, -1):
        with raises_setting("seed"):
            generator.sample(1, seed=seed)  # type: ignore[arg-type]
    for out in (3, ""):
        with raises_setting("out"):
            generator.save(out, 1)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    [pair] = generator.sample(np.int64(1), seed=np.uint8(5))  # type: ignore[arg-type]
    assert np.array_equal(pair.cf, next(generator.sample(1, seed=5)).cf)


def test_a_run_has_no_other_checkpoints_than_best_and_latest(trained: Folder) -> None:
    run = retipair.Run(trained("sd15") / "out_joint_sd15_cffa_pairs/exp")
    with raises_setting("checkpoint"):
        run.adapter_folder("bset")
    with raises_setting("checkpoint"):
        retipair.PairGenerator.from_pretrained(run, checkpoint="bset")  # type: ignore[arg-type]


@pytest.mark.parametrize("offline", [True, False])
def test_offline_holds_for_the_call_only(
    offline: bool, trained: Folder, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run] = (trained("sd15") / "out_joint_sd15_cffa_pairs").iterdir()
    asked = []

    def download(source: str, local_files_only: bool, **given: object) -> str:
        asked.append(local_files_only)
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    settings: dict[str, Any] = {"base": "owner/base", "offline": offline}
    for call in (
        lambda: retipair.train(prepared, name="x", results=tmp_path, **settings),
        lambda: retipair.evaluate(prepared, out=tmp_path / "scores", **settings),
        lambda: retipair.export_adapter(run, tmp_path / "a.safetensors", **settings),
        lambda: retipair.PairGenerator.from_pretrained(run, **settings),
    ):
        with raises_setting("base"):
            call()
    assert asked == [offline] * 4
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_paths_that_cannot_be_reached_are_refused(tmp_path: Path) -> None:
    long = "a" * 300
    calls = (retipair.load_pairs, retipair.PairDataset, retipair.PairGenerator.from_pretrained, retipair.evaluate)
    for function in calls:
        with raises_file(Path(long), FileError):
            function(long)  # type: ignore[operator]


def test_scores_are_read_from_an_object_only() -> None:
    for values in ([], None, "scores"):
        with pytest.raises(retipair.UserError, match="not a JSON object"):
            retipair.Scores.from_json(values)  # type: ignore[arg-type]
