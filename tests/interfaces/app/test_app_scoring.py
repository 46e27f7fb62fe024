"""The scores of pairs beside real and mispaired ones, copies, and the order by doubt."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from conftest import Fill, write_prepared
from judging import COPIED, write_generated
from retipair.data.dataset import load_pair, read_dataset
from retipair.data.manifest import read_manifest, write_manifest
from retipair.interfaces.app import scoring
from retipair.interfaces.app.scoring import (
    MISPAIRED,
    REAL,
    References,
    ScoredPair,
    nearest_to,
    ranges_of,
    references_of,
    scored_pairs,
)
from retipair.runtime.errors import MissingError


@pytest.fixture(scope="module")
def folders(once: Callable[[str, Fill], Path]) -> Path:
    """real: four eyes with known consistencies; generated: five pairs, of which one copies a real pair."""

    def fill(folder: Path) -> None:
        write_prepared(folder / "real", ["train"] * 3 + ["val"])
        records = zip(read_manifest(folder / "real"), (0.4, 0.5, 0.6, 0.7), strict=True)
        write_manifest(folder / "real", [replace(record, consistency=value) for record, value in records])
        write_generated(folder / "generated", 5)

    return once("app-scoring", fill)


def test_ranges_come_from_the_real_pairs(folders: Path) -> None:
    references = ranges_of(folders / "real")
    assert references.real == pytest.approx(np.percentile([0.4, 0.5, 0.6, 0.7], [5, 95]))
    assert references.mispaired[1] < 0.3 < references.real[0]  # measured: the FA shows another eye
    assert references.source == folders / "real"


def test_without_real_pairs_the_documented_ranges_are_used(folders: Path) -> None:
    references = ranges_of(folders / "generated")
    assert (references.real, references.mispaired, references.source) == (REAL, MISPAIRED, None)


@pytest.mark.parametrize(("consistency", "verdict"), [(0.5, "real"), (0.2, "below"), (0.02, "mispaired")])
def test_a_consistency_is_placed_between_real_and_mispaired_pairs(consistency: float, verdict: str) -> None:
    assert References().verdict(consistency) == verdict


def test_doubt_grows_as_the_vessels_agree_less_and_reaches_1_for_mispaired_pairs(folders: Path) -> None:
    record = read_dataset(folders / "generated")[0]
    values = [ScoredPair(record, consistency).doubt(References()) for consistency in (0.7, 0.4, 0.2, MISPAIRED[1])]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(1)
    copied = ScoredPair(record, 0.7, scoring.Nearest(record, 0.8))
    assert copied.doubt(References()) > 1
    assert copied.nearest is not None
    assert copied.nearest.is_copy


def test_the_copy_is_found_and_comes_first(folders: Path) -> None:
    references = references_of(folders / "real")
    assert [record.id for record in references.known] == ["eye0", "eye1", "eye2"]  # those of the split train
    first, *others = scored_pairs(folders / "generated", references)
    assert first.record.id == str(COPIED)
    assert first.nearest is not None
    assert (first.nearest.record.id, first.nearest.is_copy) == ("eye2", True)
    assert not any(pair.nearest.is_copy for pair in others if pair.nearest)
    again = nearest_to(load_pair(first.record), references)
    assert again is not None
    assert again.similarity == pytest.approx(first.nearest.similarity)


def test_pairs_that_show_a_given_eye_are_no_copies(folders: Path, tmp_path: Path) -> None:
    """Nor are the real pairs themselves."""
    references = references_of(folders / "real")
    assert all(pair.nearest is None for pair in scored_pairs(folders / "real", references))
    folder = write_generated(tmp_path / "generated", 2)
    write_manifest(folder, [replace(record, mode="from_data", source_id="eye2") for record in read_manifest(folder)])
    assert all(pair.nearest is None for pair in scored_pairs(folder, references))


def test_the_order_is_by_recorded_consistency(folders: Path) -> None:
    pairs = scored_pairs(folders / "real", References())
    assert [pair.consistency for pair in pairs] == [0.4, 0.5, 0.6, 0.7]


def test_a_pair_that_cannot_be_read_is_scored_without_its_images(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is reviewed like the others; the page shows the problem in its place."""
    real, generated = (Path(shutil.copytree(folders / name, tmp_path / name)) for name in ("real", "generated"))
    references = references_of(folders / "real")
    (generated / "3/fa.png").write_bytes(b"cut")
    pairs = {pair.record.id: pair for pair in scored_pairs(generated, references)}
    assert pairs.keys() == set("12345")
    assert [id for id, pair in pairs.items() if pair.nearest is None] == ["3"]
    assert str(generated / "3/fa.png") in capsys.readouterr().err
    (real / "cf/eye1.png").unlink()
    ranges = ranges_of(real)
    assert ranges.real == references.real
    assert ranges.mispaired != MISPAIRED  # measured on the other pairs
    assert str(real / "cf/eye1.png") in capsys.readouterr().err
    for name in ("eye0", "eye2"):
        (real / f"fa/{name}.png").unlink()
    assert ranges_of(real).source is None


def test_pairs_of_one_eye_are_not_mispaired(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, ["train"] * 3)
    records = [replace(record, eye="left") for record in read_manifest(folder)]  # type: ignore[call-arg]
    write_manifest(folder, [*records[:2], replace(records[2], eye="right")])
    with_another_eye = ranges_of(folder)
    assert with_another_eye.source == folder
    write_manifest(folder, records)
    assert ranges_of(folder).source is None


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        scored_pairs(tmp_path, References())
