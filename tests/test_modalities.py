"""Pairs of other modalities go the whole way: rendered, trained on, generated, evaluated, exported; never mixed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import retipair
from generating import records
from refusals import Refused
from retipair.data.dataset import read_dataset
from retipair.data.manifest import PreparedPair, read_manifest
from retipair.interfaces.cli import main
from retipair.models.lora import read_adapter_metadata

Once = Callable[[str, Callable[[Path], None]], Path]
KINDS = [
    pytest.param(("cf", "autofluorescence"), id="autofluorescence"),
    pytest.param(("red_free", "fa"), id="red_free", marks=pytest.mark.nightly),
]
QUICK = ("--max_steps", "2", "--num_samples", "1", "--sample_steps", "4", "--augment_variants", "1", "--device", "cpu")


def _whole_way(out: Path, keys: tuple[str, str]) -> None:
    real, results = str(out / "real"), ["--results", str(out / "results")]
    assert main(["phantom", real, "--amount", "2", "--size", "128", "--modalities", *keys]) == 0
    train = ["train", "-n", "exp", "--data", real, *results, "--base", "tiny-sd15", "--size", "128"]
    assert main([*train, *QUICK]) == 0
    generate = ["generate", "-n", "exp", *results, "--steps", "2", "--device", "cpu"]
    assert main([*generate, "--out", str(out / "new"), "--amount", "2", "--best_of", "2"]) == 0
    assert main([*generate, "--out", str(out / "drawn"), "--mode", "cf2fa", "--data", real]) == 0


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, once: Once) -> tuple[Path, tuple[str, str]]:
    """The folder with real/, results/, new/ (from noise) and drawn/ (from the first views), and the modalities."""
    keys = request.param
    return once(f"modalities-{keys[0]}-{keys[1]}", lambda out: _whole_way(out, keys)), keys


def test_generated_pairs_are_what_the_adapter_was_trained_on(kind: tuple[Path, tuple[str, str]]) -> None:
    folder, keys = kind
    [run] = (folder / "results").glob("out_*/exp")
    description = read_adapter_metadata(run / "best_checkpoint/unet_lora")
    assert description is not None
    assert description.modalities == list(keys)
    [(prompt, _)] = description.prompts
    assert ("autofluorescence" in prompt, "red-free" in prompt) == ("autofluorescence" in keys, "red_free" in keys)
    mode = "L" if keys[0] == "red_free" else "RGB"
    for name in ("new", "drawn"):
        for record in records(folder / name):
            assert (record.modalities, record.prompt) == (list(keys), prompt)
            assert Image.open(folder / name / record.cf).mode == mode
    [pair, *_] = retipair.load_pairs(folder / "new")
    assert pair.dark_vessels == (True, keys[1] == "autofluorescence")
    assert round(pair.consistency(), 4) == records(folder / "new")[0].consistency


def test_evaluation_measures_and_names_the_modalities(
    kind: tuple[Path, tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = kind
    scores = retipair.evaluate(folder / "real", folder / "new", out=tmp_path / "scores", verbose=True, workers=1)
    legend = read_dataset(folder / "real")[0].modalities.legend
    assert legend in capsys.readouterr().err
    assert legend in (tmp_path / "scores/report.html").read_text()
    row = scores.consistency.correlation["train"]
    assert row is not None
    assert row.mean > 0.25
    assert not [issue for issue in scores.issues if issue.kind in ("swapped", "colour in FA", "unrelated")]


def test_exports_and_cards_keep_the_modalities(kind: tuple[Path, tuple[str, str]], tmp_path: Path) -> None:
    folder, keys = kind
    assert main(["export", "pairs", str(folder / "new"), str(tmp_path / "hf"), "--to", "hf", "--workers", "1"]) == 0
    assert main(["prepare", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    for record in read_manifest(tmp_path / "back"):
        assert isinstance(record, PreparedPair)
        assert record.modalities == list(keys)
    card = (tmp_path / "hf/README.md").read_text()
    assert ("autofluorescence images" in card, "red-free photographs" in card) == (keys[0] == "cf", keys[0] != "cf")
    [run] = (folder / "results").glob("out_*/exp")
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")
    model = retipair.card(tmp_path / "run").read_text()
    assert ("fluorescein-angiography" in model) == ("fa" in keys)
    matches = retipair.export_matches(folder / "real", tmp_path / "matches", warps=1, workers=1)
    assert f'"modalities": ["{keys[0]}", "{keys[1]}"]' in (matches / "matches.jsonl").read_text()


def test_other_modalities_are_refused_with_both_names(
    kind: tuple[Path, tuple[str, str]], tmp_path: Path, refused: Refused
) -> None:
    folder, keys = kind
    assert main(["phantom", str(tmp_path / "usual"), "--amount", "2", "--size", "64"]) == 0
    generate = ["generate", "-n", "exp", "--results", folder / "results", "--steps", "2", "--out", tmp_path / "out"]
    commands: list[list[object]] = [
        ["evaluate", "--real", tmp_path / "usual", "--generated", folder / "new", "--out", tmp_path / "out"],
        [*generate, "--mode", "from_data", "--data", tmp_path / "usual"],
        [*generate, "--mode", "cf2fa", "--data", tmp_path / "usual"],
    ]
    for command in commands:
        text = refused(*command)
        assert " and ".join(keys) in text
        assert "cf and fa" in text
    assert " and ".join(keys) in refused("utility", folder / "real", tmp_path / "out", "--arms", "untrained")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_two_kinds_is_refused(
    kind: tuple[Path, tuple[str, str]], tmp_path: Path, refused: Refused
) -> None:
    folder, keys = kind
    assert main(["phantom", str(tmp_path / "mixed"), "--amount", "2", "--size", "64"]) == 0
    line = (folder / "real/manifest.jsonl").read_text().splitlines()[0].replace('"0001"', '"0003"')
    with (tmp_path / "mixed/manifest.jsonl").open("a") as stream:
        stream.write(line + "\n")
    for command in (["evaluate", "--real"], ["card"]):
        text = refused(*command, tmp_path / "mixed")
        assert f"pair 0003 is {' and '.join(keys)}, not cf and fa" in text


@pytest.mark.parametrize("field", ['"modalities": []', '"modalities": ["cf"]', '"modalities": null, "vessels": []'])
def test_an_invalid_manifest_line_is_refused(field: str, tmp_path: Path, refused: Refused) -> None:
    assert main(["phantom", str(tmp_path / "real"), "--amount", "2", "--size", "64"]) == 0
    manifest = tmp_path / "real/manifest.jsonl"
    first, *rest = manifest.read_text().splitlines()
    manifest.write_text("\n".join([first.removesuffix("}") + f", {field}}}", *rest]) + "\n")
    assert "manifest.jsonl, line 1: modalities and vessels:" in refused("card", tmp_path / "real")


def test_generating_from_deleted_training_pairs_is_refused(tmp_path: Path, refused: Refused) -> None:
    real = tmp_path / "real"
    assert main(["phantom", str(real), "--amount", "2", "--size", "64"]) == 0
    for view in ("cf", "fa", "mask"):
        shutil.rmtree(real / view)
    text = refused("generate", "--base", "tiny-sd15", "--mode", "from_data", "--data", real, "--out", tmp_path / "new")
    assert "pair" in text
