"""The settings of `retipair runs`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """Compare the runs in a results folder: settings that differ, best step, scores of their generated pairs."""

    results: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULTS")] = Path("results")
    """The --results folder of the runs."""
    evaluations: tuple[Path, ...] = (Path(),)
    """Folders written by `evaluate`, or folders that contain some of them; default: the current folder.
    Their scores are shown beside the run that generated the pairs. The run is recognised by the folder of the pairs, or
    by the --adapter that was given to `evaluate`."""
    json: Path | None = None
    """Also write the table to this JSON file."""
