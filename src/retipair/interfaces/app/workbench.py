"""What all sessions of a page share: the drawer, the references, and the folder that is open."""

import shlex
from itertools import chain
from pathlib import Path

from retipair.config import DEFAULT_BASE, AppConfig
from retipair.interfaces.app.drawing import Drawer
from retipair.interfaces.app.reviewing import ReviewedFolder, open_folder
from retipair.interfaces.app.scoring import References, references_of
from retipair.interfaces.app.words import Words, words_of
from retipair.runtime.errors import UserError, printable

_FLAGS = ("real", "adapter", "base", "port", "language", "device")
"""The settings that `Workbench.command` shows if they were given."""


class Workbench:
    """The state of the command. Making one checks the adapter, and reads and scores the pairs of the command.

    temporary: a folder for uploads and drawn pairs, which the command deletes at its end.
    opened: the folders that were opened, each as it was read last; the last one is shown when the page is loaded.
    Raises UserError if a folder, adapter or base cannot be used.
    """

    def __init__(self, config: AppConfig, temporary: Path) -> None:
        self._config, self._temporary = config, temporary
        self.words: Words = words_of(config.language)
        self.drawer = Drawer(config, temporary)
        plan = self.drawer.plan()
        self.warnings = plan.warnings if plan else []
        self._base = plan.base.source if plan else DEFAULT_BASE
        self._references = References() if config.real is None else references_of(config.real)
        self.opened: dict[Path, ReviewedFolder] = {}
        if config.pairs is not None:
            self.open(config.pairs)

    @property
    def references(self) -> References:
        """What scores are compared with. The folder of `--real` is read again if it has changed."""
        if self._config.real and self._references.is_outdated:
            self._references = references_of(self._config.real)
        return self._references

    def open(self, folder: Path) -> ReviewedFolder:
        """Open a folder of pairs. Raises UserError for a folder that cannot be used."""
        reviewed = open_folder(folder, self.references)
        self.opened.pop(folder, None)
        self.opened[folder] = reviewed
        return reviewed

    @property
    def last(self) -> ReviewedFolder | None:
        """The folder that was opened last, in any window; None if there is none."""
        return next(reversed(self.opened.values()), None)

    def is_temporary(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._temporary.resolve())

    def command(self, reviewed: ReviewedFolder) -> str:
        """Return the command that opens the page with a folder."""
        given = {name: getattr(self._config, name) for name in _FLAGS}
        words = [(f"--{name}", str(value)) for name, value in given.items() if value != getattr(AppConfig, name)]
        return shlex.join(["retipair", "app", _word(reviewed.folder), *chain(*words)])

    def review_commands(self, reviewed: ReviewedFolder) -> list[str]:
        """Return commands that leave out the pairs that were rejected in a review."""
        folder, real = _word(reviewed.folder), reviewed.references.source
        is_real = all(pair.record.mode is None for pair in reviewed.pairs)
        if is_real or (real and real.resolve() == reviewed.folder.resolve()):
            judged = ["--real", folder]
        else:
            judged = ["--real", _word(real) if real else "PREPARED", "--generated", folder]
        base = [] if self._base == DEFAULT_BASE else ["--base", self._base]
        commands = (
            ["evaluate", *judged, "--reviewed"],
            ["train", "-n", "NAME", "--data", folder, *base, "--reviewed"],
            ["export", "matches", folder, "OUT", "--reviewed"],
        )
        return [shlex.join(["retipair", *words]) for words in commands]


def typed_path(text: str) -> Path:
    """Return the path that a user typed. Raises UserError for a text that cannot be a path."""
    try:
        if "\0" in text:
            raise ValueError("it has a NUL character")
        path = Path(text).expanduser()
        return path if path.exists() else Path(text.strip()).expanduser()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, or "~" with an unknown user
        raise UserError(f"{printable(text[:80])}: not a path of a folder ({printable(str(error))[:80]})") from None


def _word(path: Path) -> str:
    """Return a path as a word of a command; one that begins with "-" would be taken for a flag."""
    return f"./{path}" if str(path).startswith("-") else str(path)
