"""Check the kind of an error and the file or setting that it names; the words of its message may change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retipair.runtime.errors import FileError, SettingError, UserError


class Refusal(str):
    """The line that a refused command printed, and the error behind it: None for an OSError."""

    error: UserError | None

    @property
    def kind(self) -> type[UserError] | None:
        return None if self.error is None else type(self.error)

    @property
    def path(self) -> Path | None:
        """The file or folder of a FileError."""
        return self.error.path if isinstance(self.error, FileError) else None

    @property
    def line(self) -> int | None:
        """The line of that file."""
        return self.error.line if isinstance(self.error, FileError) else None

    @property
    def setting(self) -> str | None:
        """The setting of a SettingError."""
        return self.error.setting if isinstance(self.error, SettingError) else None


Refused = Callable[..., Refusal]
"""The fixture `refused`: the words of a command -> its refusal."""


@contextmanager
def raises_file(
    path: Path, kind: type[FileError] = FileError, line: int | None = None
) -> Iterator[pytest.ExceptionInfo[FileError]]:
    """Expect an error of this kind about this file or folder."""
    with pytest.raises(kind) as caught:
        yield caught
    assert (caught.value.path, caught.value.line) == (path, line)


@contextmanager
def raises_setting(name: str) -> Iterator[None]:
    """Expect a SettingError about this setting."""
    with pytest.raises(SettingError) as caught:
        yield
    assert caught.value.setting == name
