"""The review goes from doubtful to clear pairs, and its decisions outlive the page and the server."""

import json
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from judging import generated_record, write_generated
from refusals import raises_file
from retipair.data.manifest import read_manifest, write_manifest
from retipair.data.rejected import REJECTED_NAME
from retipair.data.review import REVIEW_NAME, append_review
from retipair.interfaces.app.reviewing import ReviewedFolder, open_folder
from retipair.interfaces.app.scoring import References
from retipair.interfaces.cli import main
from retipair.runtime.errors import UserError


@pytest.fixture
def reviewed(tmp_path: Path) -> ReviewedFolder:
    return open_folder(write_generated(tmp_path / "new", 4), References())


def ids(reviewed: ReviewedFolder) -> list[str]:
    return [pair.record.id for pair in reviewed.pairs]


def lines(reviewed: ReviewedFolder) -> list[tuple[str, str | None]]:
    text = (reviewed.folder / REVIEW_NAME).read_text()
    return [(line["id"], line["decision"]) for line in map(json.loads, text.splitlines())]


def test_decisions_are_appended_and_lead_to_the_next_pair(reviewed: ReviewedFolder) -> None:
    assert reviewed.start() == 0
    assert reviewed.decide(0, "keep") == 1
    assert reviewed.decide(1, "reject") == 2
    a, b, *_ = ids(reviewed)
    assert lines(reviewed) == [(a, "keep"), (b, "reject")]
    assert reviewed.counts() == (2, 1)
    assert (reviewed.decision_at(1), reviewed.decision_at(2)) == ("reject", None)
    again = open_folder(reviewed.folder, References())  # as after a reload or a kill
    assert again.start() == 2
    assert again.take_back(2) == 1
    assert lines(again) == [(a, "keep"), (b, "reject"), (b, None)]
    assert again.start() == 1
    assert again.decide(3, "keep") == 1  # the search continues from the first pair
    assert again.decide(1, "keep") == 2
    assert again.decide(2, "keep") == 2  # all are reviewed
    assert again.start() == 0
    assert again.counts() == (4, 0)


def test_decisions_are_taken_back_in_the_reverse_order(reviewed: ReviewedFolder) -> None:
    for position in (2, 0, 3):
        reviewed.decide(position, "reject")
    assert [reviewed.take_back(1) for _ in range(4)] == [3, 0, 2, 1]
    assert reviewed.counts() == (0, 0)


def test_decisions_about_other_pairs_stay(reviewed: ReviewedFolder) -> None:
    """Such as pairs that are listed in rejected.txt by now."""
    append_review(reviewed.folder, "gone", "reject")
    assert reviewed.counts() == (0, 0)
    assert reviewed.take_back(2) == 2
    assert lines(reviewed) == [("gone", "reject")]


def test_export_leaves_out_what_was_rejected(reviewed: ReviewedFolder, tmp_path: Path) -> None:
    reviewed.decide(0, "reject")
    words = ["export", "pairs", str(reviewed.folder), str(tmp_path / "out"), "--to", "webdataset", "--workers", "1"]
    assert main([*words, "--reviewed"]) == 0
    names = " ".join(str(path.read_bytes()) for path in (tmp_path / "out").glob("*.tar"))
    kept = [id for id in ids(reviewed) if f"{id}.cf.png" in names]
    assert sorted(kept) == sorted(ids(reviewed)[1:])


def test_a_folder_that_was_made_again_is_noticed(reviewed: ReviewedFolder) -> None:
    """A folder to which `generate` adds pairs is not: the scores of the earlier pairs are still right."""
    folder, records = reviewed.folder, list(read_manifest(reviewed.folder))
    reviewed.decide(0, "reject")
    assert not reviewed.is_outdated
    write_manifest(folder, [*records, generated_record(5)])
    assert not reviewed.is_outdated
    for changed in ([], records[:-1], [*records[:-1], replace(records[-1], consistency=0.1)]):
        write_manifest(folder, changed)
        assert reviewed.is_outdated
    write_manifest(folder, records)
    (folder / REJECTED_NAME).write_text("2\n")
    assert reviewed.is_outdated
    assert not open_folder(folder, References()).is_outdated
    shutil.rmtree(folder)
    assert reviewed.is_outdated


def test_a_damaged_review_and_one_that_cannot_be_written_are_named(reviewed: ReviewedFolder) -> None:
    path = reviewed.folder / REVIEW_NAME
    path.write_text("keep them all\n")
    with pytest.raises(UserError, match=rf"{REVIEW_NAME}, line 1"):
        open_folder(reviewed.folder, References())
    path.unlink()
    shutil.rmtree(reviewed.folder)
    with raises_file(path):
        reviewed.decide(0, "keep")
