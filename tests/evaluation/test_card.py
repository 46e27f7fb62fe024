"""`card` describes data sets and adapters in the form of the Hugging Face hub, and names no patient and no folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from msgspec.structs import replace

from conftest import prepared_record, write_prepared
from judging import Evaluated, write_generated
from refusals import raises_file, raises_setting
from retipair.config import CardConfig, ExportPairsConfig
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.pair import load_image, save_image
from retipair.evaluation.card import card
from retipair.preparation.export_pairs import export_pairs
from retipair.runtime.errors import MissingError, OccupiedError


def written(folder: Path, evaluation: Path | None = None) -> str:
    return card(CardConfig(directory=folder, evaluation=evaluation)).read_text()


def values_of(text: str) -> dict[str, object]:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_generated_folder_with_its_scores(evaluated: Evaluated, tmp_path: Path) -> None:
    generated = tmp_path / "generated"
    write_generated(generated, 6)
    text = written(generated, evaluated.out)
    values = values_of(text)
    assert values["size_categories"] == ["n<1K"]
    assert "synthetic" in values["tags"]  # type: ignore[operator]
    assert "license" not in values  # the user fills it in
    scores = json.loads((evaluated.out / "scores.json").read_text())
    mean = scores["consistency"]["correlation"]["generated"]["mean"]
    assert f"| Vesselness correlation of CF and FA, generated | {mean:.3f} (n = 6) |" in text
    assert f"| Copies of training pairs | {len(scores['memorisation']['copies'])} (" in text
    for phrase in ("The images are synthetic.", "| generated from noise | 6 |", "tiny-sdxl", "Not for clinical use"):
        assert phrase in text
    assert str(tmp_path) not in text
    DatasetCard.load(generated / "README.md")


def test_a_folder_without_masks_and_columns_is_not_said_to_have_them(tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "generated", 2)
    assert "mask" not in written(folder)
    [first, second] = read_manifest(folder)
    write_manifest(folder, [first, replace(second, mode="cf2fa", source_id="a", source_eye="a")])  # type: ignore[call-arg]
    save_image(folder / second.cf, load_image(folder / second.cf, "RGB"))  # without the mark of a synthetic image
    text = written(folder)
    assert "Some images are real and show patients." in text
    assert "column" not in text
    prepared = write_prepared(tmp_path / "pairs", ["train", "val"])
    assert "valid in both (`mask`)" in written(prepared)
    export = export_pairs(ExportPairsConfig(pairs=folder, out=tmp_path / "out", to="webdataset"))
    text = (export / "README.md").read_text()
    assert "valid in both (`mask`)" in text
    assert "the column `synthetic` is false" in text


def test_scores_of_other_pairs_are_refused_or_left_out(evaluated: Evaluated, tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "generated", 3)
    with raises_setting("evaluation"):
        written(folder, evaluated.out)
    (folder / "evaluation").mkdir()
    (folder / "evaluation/scores.json").write_bytes((evaluated.out / "scores.json").read_bytes())
    assert "## Evaluation" not in written(folder)
    with raises_file(tmp_path, MissingError):
        written(folder, tmp_path)


def test_a_real_folder_names_no_patient(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "pairs", ["train", "val"])
    named = [
        replace(record, patient=f"Doe{n}", eye="OD", caption="Doe's eye")
        for n, record in enumerate(read_manifest(folder))
    ]  # type: ignore[call-arg]
    write_manifest(folder, named)
    text = written(folder)
    assert "they show patients" in text
    assert "| prepared from real views | 2 |" in text
    assert not [name for name in ("Doe", "OD", "eye0", str(tmp_path)) if name in text]
    assert "synthetic" not in values_of(text)["tags"]  # type: ignore[operator]


def test_variations_of_real_pairs_are_said_to_show_patients(tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "generated", 2)
    records = [replace(record, mode="from_data", source_id="a", source_eye="a") for record in read_manifest(folder)]  # type: ignore[call-arg]
    write_manifest(folder, records)
    assert "treat the pairs as patient data" in written(folder)


def test_an_export_keeps_what_the_libraries_need(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = write_prepared(tmp_path / "pairs", ["train", "val"])
    out = export_pairs(ExportPairsConfig(pairs=folder, out=tmp_path / "out", to="hf"))
    exported = (out / "README.md").read_text()
    assert values_of(exported)["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "data/train-*.parquet"},
                {"split": "validation", "path": "data/validation-*.parquet"},
            ],
        }
    ]
    assert written(out) == exported
    assert DatasetCard.load(out / "README.md").data.to_dict()["configs"]
    datasets.disable_progress_bars()
    assert len(datasets.load_dataset(str(out), split="validation", cache_dir=str(tmp_path / "cache"))) == 1


def test_scores_of_another_number_of_pairs_are_refused_for_an_export(evaluated: Evaluated, tmp_path: Path) -> None:
    pairs = write_generated(tmp_path / "pairs", 4)  # of the six that were evaluated
    out = export_pairs(ExportPairsConfig(pairs=pairs, out=tmp_path / "out", to="webdataset"))
    with raises_setting("evaluation"):
        written(out, evaluated.out)
    assert "## Evaluation" not in (out / "README.md").read_text()


def test_a_repeated_export_keeps_the_scores(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ExportPairsConfig(pairs=write_generated(tmp_path / "pairs", 6), out=tmp_path / "out", to="webdataset")
    with_scores = written(export_pairs(config), evaluated.out)
    assert "## Evaluation" in with_scores
    export_pairs(config)
    assert (config.out / "README.md").read_text() == with_scores
    assert "has scores and is kept" in " ".join(capsys.readouterr().err.split())


def test_a_run(trained: Callable[[str], Path], tmp_path: Path) -> None:
    [run] = (trained("sdxl") / "out_joint_sdxl_cffa_pairs").iterdir()
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "best_checkpoint/reason.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((run / name).read_bytes())
    text = written(copy)
    values = values_of(text)
    assert (values["library_name"], values["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert "base_model" not in values  # a folder of the user, not a base of the hub
    for row in ("| Rank | 4 |", "| Steps | 4 |", "| Model family | sdxl |", "| Variant | LoRA |"):
        assert row in text
    assert "real pairs: 3 train, 1 val, 1 test" in text
    data = json.loads((copy / "config.json").read_text())["settings"]
    assert not [path for path in (data["data"], str(Path(data["base"]).parent), data["results"]) if path in text]
    ModelCard.load(copy / "README.md")


def test_a_run_of_raw_pairs_names_those_that_were_prepared_for_it(
    trained: Callable[[str], Path], tmp_path: Path
) -> None:
    [run] = (trained("sdxl") / "out_joint_sdxl_cffa_pairs").iterdir()
    saved = json.loads((run / "config.json").read_text())
    shutil.copytree(saved["settings"]["data"], tmp_path / "prepared/b1")
    write_prepared(tmp_path / "prepared/a0", ["train", "val"])  # for another run
    (tmp_path / "prepared/a1").mkdir()
    copy = tmp_path / "out_joint_sdxl_cffa_pairs/first"
    copy.mkdir(parents=True)
    saved["settings"]["data"] = str(tmp_path / "raw")
    (copy / "config.json").write_text(json.dumps(saved))
    assert "It was trained on real pairs: 3 train, 1 val, 1 test." in written(copy)
    shutil.rmtree(tmp_path / "prepared/b1")
    assert "the folder of the pairs was not found" in written(copy)


def test_a_card_that_the_user_has_edited_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_generated(tmp_path / "generated", 2)
    written(folder)
    written(folder)  # an unedited card is replaced
    (folder / "README.md").write_text((folder / "README.md").read_text() + "mine\n")
    with raises_file(folder / "README.md", OccupiedError):
        written(folder)
    assert (folder / "README.md").read_text().endswith("mine\n")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with raises_file(folder, MissingError):
            written(folder)
    write_manifest(tmp_path, [prepared_record("a", "train")])
    (tmp_path / "cf").mkdir()
    (tmp_path / "cf/a.png").write_bytes(b"no image")
    with raises_file(tmp_path / "fa/a.png", MissingError):
        written(tmp_path)
    assert not (tmp_path / "README.md").exists()
