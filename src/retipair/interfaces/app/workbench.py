"""What all sessions of a page share: the drawer, the references, and the folder that is open."""

import shlex
from pathlib import Path

from retipair.config import AppConfig
from retipair.interfaces.app.drawing import Drawer
from retipair.interfaces.app.reviewing import ReviewedFolder, open_folder
from retipair.interfaces.app.scoring import References, references_of
from retipair.interfaces.app.words import Words, words_of


class Workbench:
    """The state of the command. Making one checks the adapter, and reads and scores the pairs of the command.

    temporary: a folder for uploads and drawn pairs, which the command deletes at its end.
    reviewed: the folder that is open; None before one was opened.
    Raises UserError if a folder, adapter or base cannot be used.
    """

    def __init__(self, config: AppConfig, temporary: Path) -> None:
        self._config, self._temporary = config, temporary
        self.words: Words = words_of(config.language)
        self.drawer = Drawer(config, temporary)
        self.warnings = self.drawer.check()
        self.references = References() if config.real is None else references_of(config.real)
        self.reviewed: ReviewedFolder | None = None
        if config.pairs is not None:
            self.open(config.pairs)

    def open(self, folder: Path) -> None:
        """Open a folder of pairs. Raises UserError for a folder that cannot be used; the other one stays open then."""
        self.reviewed = open_folder(folder, self.references)

    def is_temporary(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._temporary.resolve())

    def command(self) -> str:
        """Return the command that opens the page with the open folder."""
        config = self._config
        words = ["retipair", "app", *([str(self.reviewed.folder)] if self.reviewed else [])]
        flags = (("--real", config.real), ("--adapter", config.adapter), ("--base", config.base))
        words += [word for flag, value in flags if value is not None for word in (flag, str(value))]
        return shlex.join(words)


def review_commands(reviewed: ReviewedFolder) -> list[str]:
    """Return commands that leave out the pairs that were rejected in a review."""
    folder, real = str(reviewed.folder), reviewed.references.source
    if all(pair.record.mode is None for pair in reviewed.pairs):
        judged = ["--real", folder]
    else:
        judged = ["--real", str(real) if real else "PREPARED", "--generated", folder]
    commands = (
        ["evaluate", *judged, "--reviewed"],
        ["train", "-n", "NAME", "--data", folder, "--reviewed"],
        ["export", "matches", folder, "OUT", "--reviewed"],
    )
    return [shlex.join(["retipair", *words]) for words in commands]
