"""What lies in our own folders may be damaged, edited or somebody else's: said in a line, nothing worse."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retipair
from compare import contents
from conftest import train_command, write_prepared
from eyes import write_raw
from refusals import Refused, raises_file
from retipair.interfaces.cli import main
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import verify_checksums, write_checksums
from retipair.runtime.errors import DamagedError, MissingError

Folder = Callable[[str], Path]


@pytest.fixture
def run(trained: Folder, tmp_path: Path) -> Path:
    """A run of SD1.5 to spoil."""
    shutil.copytree(trained("sd15"), tmp_path / "r")
    return tmp_path / "r/out_joint_sd15_cffa_pairs/exp"


def edit(path: Path, **values: Any) -> None:
    """Values of a JSON file that become others."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# A run


@pytest.mark.parametrize(
    "values", [{"max_steps": "abc"}, {"max_steps": None}, {"data": 5}, {"results": 5}, {"base": 5}]
)
def test_settings_of_another_type_are_named(
    values: dict[str, Any], run: Path, base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    path = run / "config.json"
    edit(path, settings=json.loads(path.read_text())["settings"] | values)
    train = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume")
    for command in (train, ["generate", "-n", "exp", "--results", tmp_path / "r"]):
        line = refused(*command)
        assert f"config.json: {next(iter(values))} cannot be" in line


def test_a_checkpoint_under_another_name_is_passed_over(
    run: Path, base_folder: Folder, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "latest_checkpoints/step_000002").rename(run / "latest_checkpoints/step_000099")
    latest = Run(run).latest()
    assert latest is not None
    assert latest.name == "step_000004"
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume", "--max_steps", 6)
    assert main([*command, "--num_samples", "1"]) == 0
    assert "step_000099: was renamed: its state is that of step 2" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kept", "said"),
    [(True, "restored from the checkpoint of step"), (False, "the next validated step becomes the best")],
)
def test_a_damaged_best_is_said_and_another_is_kept(
    kept: bool,
    said: str,
    run: Path,
    base_folder: Folder,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Refused,
) -> None:
    (run / "best_checkpoint/unet_lora/adapter_model.safetensors").write_bytes(b"cut")
    if not kept:  # its checkpoint is gone, too
        shutil.rmtree(run / f"latest_checkpoints/step_{Run(run).best_step():06d}")
    draw = ["generate", "-n", "exp", "--results", tmp_path / "r", "--amount", 1, "--steps", 1, "--device", "cpu"]
    line = refused(*draw)
    assert (line.kind, line.path) == (DamagedError, run / "best_checkpoint")
    assert "use --checkpoint latest" in line
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume", "--max_steps", 6)
    assert main(command) == 0
    assert said in capsys.readouterr().err
    assert main([str(word) for word in draw]) == 0


@pytest.mark.parametrize(
    ("sums", "said"),
    [
        ({}, "lists no file"),
        ({"/dev/zero": "x"}, "is not in the folder"),
        ({"../../config.json": "x"}, "is not in the folder"),
        ({"a\0b": "x"}, "is missing"),
        ({"pipe": "x"}, "pipe"),
    ],
)
def test_checksums_lead_nowhere_else(sums: dict[str, str], said: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    assert said in str(verify_checksums(tmp_path))


@pytest.mark.parametrize("best", [5, {"a": 1}, {"step": 4, "loss": 0.5}])
def test_a_state_that_is_none_is_named(
    best: Any, run: Path, base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    for checkpoint in Run(run).checkpoints():
        edit(checkpoint / "state.json", best=best)
        (checkpoint / "checksums.json").unlink()
        write_checksums(checkpoint)
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume", "--max_steps", 6)
    assert "damaged" in refused(*command)


def test_logs_in_another_encoding_are_no_obstacle(
    run: Path, base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    for name in ("training_log.txt", "metrics.jsonl"):
        with (run / name).open("ab") as stream:
            stream.write(b"step \xe9\nstep " + b"9" * 5000 + b"\n")
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume", "--max_steps", 6)
    assert main(command) == 0


def test_latents_of_another_kind_are_made_again(run: Path, base_folder: Folder, prepared: Path, tmp_path: Path) -> None:
    paths = [*(tmp_path / "r/latents").glob("*/mean.npy")]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        np.save(path, np.load(path).view(np.uint16))
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume", "--max_steps", 5)
    assert main(command) == 0
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"index": 1e400}', "key 'attempt' is missing"),
        ('{"index": 1.5, "attempt": 0, "why": "x", "consistency": 0.1, "likeness": null}', "index cannot be 1.5"),
    ],
)
def test_a_refusal_that_is_none_is_named(
    line: str, problem: str, run: Path, base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    command = ["generate", "-n", "exp", "--results", tmp_path / "r", "--steps", 1, "--device", "cpu", "--amount", 1]
    assert main([*map(str, command), "--out", str(tmp_path / "o")]) == 0
    (tmp_path / "o/refused.jsonl").write_text(line + "\n")
    assert f"refused.jsonl, line 1: {problem}" in refused(*command, "--out", tmp_path / "o")


# Files where folders are needed, and the reverse

PLACES = [
    ("train", "r"),
    ("train", "r/out_joint_sd15_cffa_pairs"),
    ("train", "r/out_joint_sd15_cffa_pairs/new"),
    ("train", "r/latents"),
    ("resume", "latest_checkpoints"),
    ("resume", "stopped_checkpoint"),
    ("resume", "best_checkpoint"),
    ("resume", "step_000008_random_pairs"),
    ("generate", "o"),
    ("generate", "o/deeper"),
    ("prepare", "p"),
    ("prepare", "p/deeper"),
    *(("prepared before", f"p/{name}") for name in ("cf", "fa", "mask", ".partial")),
    ("phantom", "e"),
    ("phantom", "e/deeper"),
    ("evaluate", "j"),
    ("evaluate", "j/deeper"),
    ("judged before", "j/features"),
    ("demo", "d"),
    ("demo", "d/deeper"),
    ("bench", "b"),
]


def command_at(what: str, place: Path, run: Path, base: Path, data: Path, tmp_path: Path) -> list[object]:
    """The command that needs a folder at `place`, or in it."""
    results = next((one for one in (place, *place.parents) if one.name == "r"), tmp_path / "r")
    deep = place / "x" if place.name == "deeper" else place
    if what == "train":
        return list(train_command("new", base, data, results))
    if what == "resume":
        return list(train_command("exp", base, data, tmp_path / "r", "--resume", "--max_steps", 8))
    return {
        "generate": ["generate", "-n", "exp", "--results", tmp_path / "r", "--amount", 1, "--steps", 1, "--out", deep],
        "prepare": ["prepare", tmp_path / "raw", deep, "--size", 64, "--workers", 1],
        "prepared before": ["prepare", tmp_path / "raw", tmp_path / "p", "--size", 64, "--workers", 1],
        "phantom": ["phantom", deep, "--amount", 2, "--size", 64],
        "evaluate": ["evaluate", "--real", data, "--out", deep, "--workers", 1],
        "judged before": ["evaluate", "--real", data, "--out", tmp_path / "j", "--workers", 1],
        "demo": ["demo", deep],
        "bench": ["bench", "encode", "--size", 64, "--json", place / "figures.json"],
    }[what]


@pytest.mark.parametrize(("what", "name"), PLACES)
def test_a_file_in_a_folders_place_is_named_and_nothing_is_changed(
    what: str, name: str, run: Path, base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    place = (run if what == "resume" else tmp_path) / name
    if name == "r" or name.endswith("cffa_pairs"):
        shutil.rmtree(place)
    if what in ("prepare", "prepared before"):
        write_raw(tmp_path / "raw", n=3, size=96, jitter=0.3)
    if what == "prepared before":
        (tmp_path / "p").mkdir()
        (tmp_path / "p/.prepare.json").write_text("{}")
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    before = contents(tmp_path)
    line = refused(*command_at(what, place, run, base_folder("sd15"), prepared, tmp_path))
    assert str(place) in line
    assert "a file where a folder is needed" in line or "cannot be reached" in line
    assert contents(tmp_path) == before


def test_a_folder_in_a_files_place_is_named(
    run: Path, base_folder: Folder, prepared: Path, tmp_path: Path, refused: Refused
) -> None:
    (run / "environment.json").unlink()
    (run / "environment.json").mkdir()
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path / "r", "--resume", "--max_steps", 6)
    assert "environment.json: is a folder where a file is needed" in refused(*command)


# Pairs


@pytest.mark.parametrize(
    ("key", "value"), [("consistency", 10**400), ("cf", "cf/\0.png"), ("size", 10**30), ("id", "a\x1b[2J")]
)
def test_values_of_a_manifest_that_nothing_can_hold_are_named(
    key: str, value: Any, base_folder: Folder, tmp_path: Path, refused: Refused
) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    first, *others = (data / "manifest.jsonl").read_text().splitlines(keepends=True)
    (data / "manifest.jsonl").write_text(json.dumps(json.loads(first) | {key: value}) + "\n" + "".join(others))
    line = refused("train", "-n", "x", "--data", data, "--base", base_folder("sd15"), "--results", tmp_path / "r")
    assert f"manifest.jsonl, line 1: {key}" in line


def test_a_view_that_is_a_pipe_is_not_waited_for(base_folder: Folder, tmp_path: Path, refused: Refused) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    path = next((data / "cf").iterdir())
    path.unlink()
    os.mkfifo(path)
    line = refused("train", "-n", "x", "--data", data, "--base", base_folder("sd15"), "--results", tmp_path / "r")
    assert line.path == path


@pytest.mark.parametrize("view", ["cf", "fa", "mask"])
def test_data_sets_do_not_wait_for_a_pipe_either(view: str, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    path = data / view / "eye0.png"
    path.unlink()
    os.mkfifo(path)
    for dataset in (retipair.WarpedPairs, retipair.PairDataset):
        with raises_file(path, MissingError):
            dataset(data)[0]  # type: ignore[operator]


def test_what_a_state_says_deletes_nothing_elsewhere(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", n=3, size=96, jitter=0.3)
    command = ["prepare", str(tmp_path / "raw"), str(tmp_path / "out"), "--size", "64", "--workers", "1"]
    assert main(command) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "victim.png").touch()
    path = tmp_path / "out/.prepare.json"
    state = json.loads(path.read_text())
    state["pairs"][0]["id"] = "../../victim"
    path.write_text(json.dumps(state))
    assert main(command) == 0
    assert (tmp_path / "victim.png").exists()
    assert contents(tmp_path / "out") == before
    for name in (".prepare.json", ".phantom.json"):
        (tmp_path / "out" / name).write_text("[" * 100_000)
    assert main(command) == 0
    assert main(["phantom", str(tmp_path / "out"), "--amount", "2", "--size", "64"]) == 2


def test_a_folder_with_a_large_number_is_no_eye(tmp_path: Path, refused: Refused) -> None:
    command = ["phantom", tmp_path / "p", "--amount", "1", "--size", "64", "--unregistered"]
    assert main([str(word) for word in command]) == 0
    (tmp_path / "p/raw/20240131").mkdir()
    assert refused(*command).path == tmp_path / "p/raw/20240131"


# Scores


@pytest.mark.nightly
def test_scores_that_were_edited_are_made_again(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", ["train", "val"])
    command = ["evaluate", "--real", str(data), "--out", str(tmp_path / "e"), "--workers", "1"]
    assert main(command) == 0
    before = contents(tmp_path / "e")
    edit(tmp_path / "e/scores.json", consistency=5)
    kept = sorted((tmp_path / "e/features").glob("*.npz"))
    broken = bytearray(kept[0].read_bytes())
    broken[len(broken) // 2] ^= 1
    kept[0].write_bytes(broken)
    assert main(command) == 0
    assert contents(tmp_path / "e") == before


# Settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "-n", "x", "--data", "d", "--max_steps", "1" + "0" * 400], "--max_steps 1000"),
        (["train", "-n", "x", "--data", "d", "--learning_rate", "nan"], "--learning_rate nan"),
        (["train", "-n", "x", "--data", "d\udcff"], "is not UTF-8"),
        (["train", "-n", "x\udcff", "--data", "d"], "is not UTF-8"),
        (["train", "-n", "x", "--data", "d" * 300], "cannot be reached"),
        (["generate", "-n", "x", "--amount", "99999999"], "--amount 99999999"),
        (["phantom", "p", "--amount", "99999999"], "--amount 99999999"),
        (["prepare", "file/raw", "out"], "file/raw: cannot be reached"),
        (["prepare", "loop", "out"], "loop: cannot be reached"),
    ],
)
def test_settings_beyond_all_use_are_named(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("d").mkdir()
    Path("loop").symlink_to("loop")
    assert said in refused(*words)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "d", "loop"}
