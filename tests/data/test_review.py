"""Decisions of a review: the last one counts, killed writers do no harm, --reviewed leaves rejected pairs out."""

import json
from pathlib import Path

import pytest

from conftest import write_prepared
from judging import write_generated
from refusals import raises_file
from retipair.data.dataset import content_sha256, read_dataset, read_folder, read_with_content
from retipair.data.pair_stream import open_stream
from retipair.data.rejected import REJECTED_NAME
from retipair.data.review import REVIEW_NAME, append_review, read_review
from retipair.interfaces.cli import main
from retipair.runtime.errors import DamagedError, UserError

SPLITS = ["train", "val", "train", "test", "train"]


def test_the_last_decision_counts_and_can_be_taken_back(tmp_path: Path) -> None:
    for id, decision in (("a", "keep"), ("b", "reject"), ("a", "reject"), ("c", "keep"), ("c", None)):
        append_review(tmp_path, id, decision)  # type: ignore[arg-type]
    review = read_review(tmp_path)
    assert review.decisions == {"b": "reject", "a": "reject"}
    assert review.rejected == {"b": 2, "a": 3}
    assert len((tmp_path / REVIEW_NAME).read_text().splitlines()) == 5


def test_a_line_that_a_killed_writer_left_is_ignored_and_replaced(tmp_path: Path) -> None:
    append_review(tmp_path, "a", "reject")
    whole = (tmp_path / REVIEW_NAME).read_bytes()
    for cut in range(1, len(whole)):
        (tmp_path / REVIEW_NAME).write_bytes(whole + whole[:cut])
        assert read_review(tmp_path).decisions == {"a": "reject"}
        append_review(tmp_path, "Müller\u2028", "keep")
        assert read_review(tmp_path).decisions == {"a": "reject", "Müller\u2028": "keep"}


def test_a_last_line_without_a_newline_counts_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / REVIEW_NAME).write_text('{"id": "a", "decision": "reject"}')
    assert read_review(tmp_path).decisions == {"a": "reject"}
    append_review(tmp_path, "b", "keep")
    assert read_review(tmp_path).decisions == {"a": "reject", "b": "keep"}


def test_a_last_line_that_is_nested_too_deeply_is_an_incomplete_line(tmp_path: Path) -> None:
    (tmp_path / REVIEW_NAME).write_text("[" * 200_000)
    assert read_review(tmp_path).decisions == {}
    append_review(tmp_path, "b", "keep")
    assert read_review(tmp_path).decisions == {"b": "keep"}


@pytest.mark.parametrize("content", [b'{"id": "a"}\r{"id": "b"}\r', '{"id": "a"}\n'.encode("utf-16")])
def test_a_file_that_an_editor_has_converted_is_not_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / REVIEW_NAME).write_bytes(content)
    with raises_file(tmp_path / REVIEW_NAME, DamagedError):
        append_review(tmp_path, "b", "keep")
    assert (tmp_path / REVIEW_NAME).read_bytes() == content


@pytest.mark.parametrize(
    "line", ['{"id": "eye1"}', '{"id": "eye1", "decision": "maybe"}', "eye1", '{"id": 1, "decision": "keep"}', ""]
)
def test_an_invalid_line_is_refused_with_its_number(line: str, tmp_path: Path) -> None:
    append_review(tmp_path, "eye0", "keep")
    with (tmp_path / REVIEW_NAME).open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(UserError, match=rf"{REVIEW_NAME}, line 2: "):
        read_review(tmp_path)


def test_rejected_pairs_are_left_out_only_if_asked(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, SPLITS)
    (folder / REJECTED_NAME).write_text("eye0\n")
    for id, decision in (("eye0", "reject"), ("eye2", "reject"), ("eye3", "keep")):
        append_review(folder, id, decision)  # type: ignore[arg-type]
    assert [entry.id for entry in read_dataset(folder)] == ["eye1", "eye2", "eye3", "eye4"]
    pairs = read_folder(folder, reviewed=True)
    assert [entry.id for entry in pairs.kept] == ["eye1", "eye3", "eye4"]
    assert pairs.note == f"{folder}: pairs skipped: 1 listed in rejected.txt (eye0), 1 rejected in review.jsonl (eye2)"
    assert pairs.rejected_sha256 != read_folder(folder).rejected_sha256
    assert [pair.record.id for pair in open_stream(folder, reviewed=True)] == ["eye1", "eye3", "eye4"]


def test_a_rejected_pair_that_does_not_exist_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, SPLITS)
    for id in ("eye1", "eye9"):
        append_review(folder, id, "reject")
    for read in (read_folder, open_stream):
        with raises_file(folder / REVIEW_NAME, line=2):
            read(folder, True)


def commands(folder: Path, out: Path) -> dict[str, list[str]]:
    return {
        "evaluate": ["evaluate", "--real", str(folder), "--out", str(out)],
        "export matches": ["export", "matches", str(folder), str(out)],
        "export pairs": ["export", "pairs", str(folder), str(out), "--to", "webdataset"],
        "train": ["train", "-n", "x", "--data", str(folder), "--base", "tiny-sdxl", "--dry_run", "--device", "cpu"],
    }


@pytest.mark.parametrize("command", ["evaluate", "export matches", "export pairs", "train"])
def test_the_commands_leave_out_rejected_pairs_or_say_that_nothing_was_reviewed(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, out = write_prepared(tmp_path / "pairs", SPLITS), tmp_path / "out"
    words = [*commands(folder, out)[command], "--reviewed"]
    assert main(words) == 2
    assert f"{folder}: no {REVIEW_NAME} here" in capsys.readouterr().err
    assert not out.exists()
    append_review(folder, "eye2", "reject")
    assert main(words) == 0
    printed = " ".join("".join(capsys.readouterr()).split())
    left = {
        "evaluate": "1 rejected in review.jsonl (eye2)",
        "export matches": "of 4 pairs",
        "export pairs": "4 pairs",
        "train": "2 for training, 1 for validation",
    }
    assert left[command] in printed


def test_one_reviewed_folder_is_enough_to_evaluate(tmp_path: Path) -> None:
    real, generated = write_prepared(tmp_path / "real", SPLITS), write_generated(tmp_path / "new", 5)
    append_review(generated, "2", "reject")
    words = ["evaluate", "--real", str(real), "--generated", str(generated), "--out", str(tmp_path / "out")]
    assert main([*words, "--reviewed"]) == 0
    assert json.loads((tmp_path / "out/scores.json").read_text())["sizes"]["generated"] == 4


def test_a_set_without_a_review_is_named_if_another_set_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = write_prepared(tmp_path / "real", SPLITS)
    first, second = (write_generated(tmp_path / name, 5) for name in ("first", "second"))
    append_review(first, "2", "reject")
    words = ["evaluate", "--real", str(real), "--generated", str(first), str(second), "--reviewed"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    warning = f"warning: {second} has no {REVIEW_NAME}"
    assert "".join(warning.split()) in "".join(capsys.readouterr().err.split())


def test_a_card_describes_the_reviewed_pairs_that_were_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = write_prepared(tmp_path / "pairs", SPLITS), tmp_path / "out"
    append_review(folder, "eye2", "reject")
    assert main(["evaluate", "--real", str(folder), "--reviewed", "--out", str(out)]) == 0
    words = ["card", str(folder), "--evaluation", str(out)]
    assert main(words) == 2
    assert "repeat this command with --reviewed" in " ".join(capsys.readouterr().err.split())
    assert not (folder / "README.md").exists()
    assert main([*words, "--reviewed"]) == 0
    text = (folder / "README.md").read_text()
    assert "| prepared from real views | 4 |" in text
    assert "## Evaluation" in text


def test_raw_pairs_have_no_review(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    words = ["train", "-n", "x", "--data", str(tmp_path), "--results", str(results), "--base", "tiny-sdxl"]
    assert main([*words, "--reviewed"]) == 2
    assert f"--reviewed: {tmp_path} has no manifest" in " ".join(capsys.readouterr().err.split())
    assert not results.exists()


@pytest.mark.parametrize("reviewed", [False, True])
def test_pairs_are_found_by_their_content_with_and_without_the_review(reviewed: bool, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path, SPLITS)
    append_review(folder, "eye2", "reject")
    found = read_with_content(folder, content_sha256(read_dataset(folder, reviewed=reviewed)))
    assert found
    assert len(found.kept) == (4 if reviewed else 5)
    assert read_with_content(folder, "0" * 64) is None
