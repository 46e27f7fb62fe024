"""A resumed run cuts its logs to what they held at the checkpoint, and repeats the rest."""

from pathlib import Path

import pytest

from refusals import raises_file
from retipair.runs.logs import LOG_NAMES, METRICS_NAME
from retipair.runs.run_dir import Run
from retipair.runtime.atomic_io import write_text
from retipair.runtime.errors import DamagedError

LATER = "memory: from step 000004 on\nresumed from step 4 with other settings: --max_steps 6 (4 before)\n"


def log_step(run: Run, step: int) -> None:
    run.log("training", f"step {step:06d} loss", {"step": step})
    run.log("validation", f"step {step:06d} loss", {"step": step})


def checkpoint(run: Run, step: int) -> Path:
    return run.save_checkpoint(step, lambda folder: write_text(folder / "adapter", ""), {}, {"best": None})


def logs(run: Run) -> list[str]:
    return [(run.folder / name).read_text() for name in LOG_NAMES]


@pytest.fixture(params=[True, False], ids=["with lengths", "of 0.1.0"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Run, Path, list[str]]:
    """A run, its checkpoint of step 4, and its logs at that checkpoint."""
    run = Run(tmp_path)
    log_step(run, 0)
    run.note("training", "step 000003 skipped: NaN or infinity in the gradient of pair eye2")
    log_step(run, 4)
    folder = checkpoint(run, 4)
    if not request.param:
        (folder / "log_lengths.json").unlink()
    return run, folder, logs(run)


def test_nothing_is_cut_if_nothing_was_written_since(saved: tuple[Run, Path, list[str]]) -> None:
    run, folder, before = saved
    run.cut_logs(folder)
    assert logs(run) == before


def test_later_and_incomplete_lines_are_cut_and_notes_of_a_session_kept(saved: tuple[Run, Path, list[str]]) -> None:
    run, folder, before = saved
    for note in LATER.splitlines():
        run.note("training", note)
    run.note("training", "step 000005 skipped: NaN or infinity in the gradient of pair eye1")
    log_step(run, 6)
    for name in LOG_NAMES:
        with (run.folder / name).open("ab") as stream:
            stream.write(b"memory: \xe9")
    run.cut_logs(folder)
    assert logs(run) == [before[0] + LATER, *before[1:]]


def test_a_log_that_was_edited_is_cut_at_the_end_of_a_line(saved: tuple[Run, Path, list[str]]) -> None:
    run, folder, before = saved
    edited = ["a line that a user added\n" + text for text in before]
    for name, text in zip(LOG_NAMES, edited, strict=True):
        (run.folder / name).write_text(text)
    run.cut_logs(folder)
    for after, text in zip(logs(run), edited, strict=True):
        assert text.startswith(after)
        assert after.endswith("\n")


def test_without_a_checkpoint_all_is_cut(saved: tuple[Run, Path, list[str]]) -> None:
    run, _, _ = saved
    run.cut_logs(None)
    assert logs(run) == ["", "", ""]


def test_the_validation_of_the_step_that_a_run_of_0_1_0_was_stopped_in_is_repeated(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (0, 4):
        log_step(run, step)
    before = logs(run)
    run.cut_logs(tmp_path / "stopped_checkpoint/step_000004")
    assert logs(run)[0] == before[0]
    assert logs(run)[1] == "step 000000 loss\n"
    assert [(line["kind"], line["step"]) for line in run.read_metrics()][2:] == [("training", 4)]


def test_a_damaged_line_of_metrics_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_text('{"step": 1}\n{"step": \n{"step": 3}\n{"st')
    with raises_file(tmp_path / METRICS_NAME, DamagedError, line=2):
        Run(tmp_path).read_metrics()
