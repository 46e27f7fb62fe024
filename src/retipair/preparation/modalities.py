"""Find out which modalities the raw pairs have, and whether vessels are dark or bright in their second views."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from retipair.config import PrepareConfig, RegisterConfig
from retipair.data.raw_pair import RawPair
from retipair.data.selection import evenly_spaced_indices
from retipair.data.sources import paired_by_tags
from retipair.preparation.alignment import align_views
from retipair.preparation.reading import CheckedPair, modalities_of
from retipair.registration.warp import single_threaded
from retipair.runtime.console import console, track
from retipair.runtime.errors import FileError, SettingError
from retipair.runtime.parallel import process_map
from retipair.vision.modality import CF_FA, Vessels

_MOST = 5
"""The largest number of pairs on which the vessels are measured."""
_MIN_DIFFERENCE = 0.1
"""The least difference of the consistencies with dark and with bright vessels for a pair to count."""
_MAJORITY = 3
"""The chosen result must be supported by at least this many times as many pairs as the other result."""
_VESSELS: tuple[Vessels, Vessels] = ("dark", "bright")
Config = TypeVar("Config", PrepareConfig, RegisterConfig)


def with_modalities(config: Config, raw: Path, pairs: Sequence[RawPair]) -> Config:
    """Return the settings with the modalities of the pairs: --modalities, else those of the table, else CF and FA.

    Raises UserError, naming both kinds, if pairs differ from one another or from --modalities. Also raises it for other
    modalities than CF and FA if DICOM files were paired by their tags, which tell only these two apart.
    """
    try:
        modalities_of(config)
    except ValueError as error:
        raise SettingError("modalities", " ".join(config.modalities or ()), str(error)) from None
    listed = next((pair.modalities for pair in pairs if pair.modalities), None)
    found = replace(config, modalities=config.modalities or listed)
    keys = found.modalities or CF_FA.keys
    usual = CF_FA.keys if listed else keys  # a row that names no modality is a pair of CF and FA
    if other := next((named for pair in pairs if (named := pair.modalities or usual) != keys), None):
        problem = f"names a pair of {' and '.join(other)}, not of {' and '.join(keys)}"
        raise FileError(raw, f"{problem}; prepare each kind of pair in a folder of its own")
    if keys != CF_FA.keys and any(pair.dicom for pair in pairs) and paired_by_tags(raw):
        problem = "DICOM tags tell only CF and FA apart; name the files of other modalities in a table (columns cf, fa)"
        raise FileError(raw, problem)
    return found


def with_measured_vessels(config: PrepareConfig, pairs: Sequence[CheckedPair]) -> PrepareConfig:
    """Return the settings with "dark" or "bright" instead of --vessels_second auto.

    A few pairs are aligned with dark and with bright vessels in the second view; the vessels of both views agree only
    if the assumption is right. More than half of the pairs must clearly support one result, and at most a third as many
    the other. Not all pairs need to agree, because veins are still dark in an early FA. Raises SettingError if there is
    no such result.
    """
    if config.vessels_second != "auto":
        return config
    chosen = [pairs[index] for index in evenly_spaced_indices(len(pairs), _MOST)]
    results = process_map(partial(_consistencies, config=config), chosen, config.workers, single_threaded)
    measured = np.array(list(track("Measuring vessels", results, len(chosen))))
    votes = [int((sign * (measured[:, 0] - measured[:, 1]) >= _MIN_DIFFERENCE).sum()) for sign in (1, -1)]
    best = int(np.argmax(votes))
    means = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(_VESSELS, measured.mean(axis=0), strict=True))
    if 2 * votes[best] <= len(chosen) or votes[best] < _MAJORITY * votes[1 - best]:
        counts = f"{votes[0]} of {len(chosen)} pairs fit better with dark vessels and {votes[1]} with bright ones"
        raise SettingError("vessels_second", "auto", f"{counts} (mean consistency: {means}); pass dark or bright")
    counts = f"{votes[best]} of {len(chosen)} pairs; mean consistency: {means}"
    console.print(f"vessels of the second views: {_VESSELS[best]} ({counts})")
    return replace(config, vessels_second=_VESSELS[best])


def _consistencies(checked: CheckedPair, config: PrepareConfig) -> list[float]:
    """Return the consistency of a pair that is aligned with dark, and with bright vessels in its second view."""
    return [align_views(checked, replace(config, vessels_second=vessels))[1].consistency for vessels in _VESSELS]
