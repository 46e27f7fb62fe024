"""Errors carry what they are about, so that callers need not read their sentences."""

import pickle
from pathlib import Path

import pytest

from retipair.runtime.errors import DamagedError, FileError, SettingError, UserError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileError("./eye.png", "not an image; remove it"), "./eye.png: not an image; remove it"),
        (DamagedError(Path("eyes.csv"), "no number", 3), "eyes.csv, line 3: no number"),
        (SettingError("seed", -1, "must be at least 0"), "--seed -1: must be at least 0"),
        (SettingError("points", None, "needs raw pairs"), "--points: needs raw pairs"),
    ],
)
def test_the_message_is_made_of_the_fields(error: UserError, message: str) -> None:
    assert str(error) == message
    copy = pickle.loads(pickle.dumps(error))  # as from a worker process
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == message


def test_a_file_error_names_its_file_and_line() -> None:
    error = DamagedError("eyes.csv", "no number", 3)
    assert isinstance(error, UserError)
    assert (error.path, error.problem, error.line) == (Path("eyes.csv"), "no number", 3)
