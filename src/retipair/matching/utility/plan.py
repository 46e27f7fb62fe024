"""Check the settings and the input of `retipair utility`, and choose the pairs to test and to train on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from retipair.config import UtilityConfig
from retipair.config.matching import ArmName
from retipair.data.dataset import PairRecord, read_dataset
from retipair.data.manifest import GeneratedPair, PreparedPair, Record, read_manifest
from retipair.matching.utility.arms import ARMS, Arm, Material
from retipair.matching.utility.scores import TOLERANCE
from retipair.runtime.atomic_io import check_folder_place
from retipair.runtime.errors import FileError, MissingError, SettingError
from retipair.vision.modality import CF_FA

MIN_LANDMARKS = 4
_LOWEST = {"seeds": 1, "variants": 2, "steps": 1, "warps": 1, "phantoms": 1, "seed": 0, "workers": 0}
_AGREE = f"landmarks whose positions in CF and FA agree within {TOLERANCE:g} px (at 512 px)"


@dataclass(frozen=True)
class UtilityPlan:
    """The settings of one `utility` command, and the pairs that it uses.

    tested: the real pairs to test.
    points: the landmarks of each tested pair, rows (cf_x, cf_y, fa_x, fa_y) in px of the prepared views.
    held_out: whether only the splits val and test are tested; the arms then use only real pairs of the split train.
    seen: the tested eyes on which the adapter of the generated pairs may have been trained.
    adapters_known: whether the manifest of the generated pairs records for each whether an adapter made it. It does not
        for prepared pairs, such as those of an imported data set.
    notes: lines to print.
    """

    config: UtilityConfig
    material: Material
    tested: tuple[PairRecord, ...]
    points: tuple[tuple[tuple[float, ...], ...], ...]
    held_out: bool
    seen: tuple[str, ...]
    adapters_known: bool
    notes: tuple[str, ...]

    @property
    def eyes(self) -> list[str]:
        """The tested eyes, or patients, in the order of their first pair."""
        return list(dict.fromkeys(record.group for record in self.tested))

    def folds(self, arm: Arm) -> list[tuple[list[str], list[PairRecord]]]:
        """Return, for each training of an arm, the eyes to test and the real pairs that may be used for training.

        An arm that uses real pairs is trained once on the split train if the tested eyes are held out. Otherwise, it is
        trained once for each tested eye, on the pairs of the other eyes. An arm without real pairs is trained once.
        """
        if "real" not in arm.needs:
            return [(self.eyes, [])]
        if self.held_out:
            return [(self.eyes, [record for record in self.material.real if record.split == "train"])]
        return [([eye], [record for record in self.material.real if record.group != eye]) for eye in self.eyes]


def plan_utility(config: UtilityConfig) -> UtilityPlan:
    """Check settings and input, and return the plan. Raises UserError if a setting or the input cannot be used."""
    _check_settings(config)
    check_folder_place(config.out)
    real, records = read_dataset(config.real), {record.id: record for record in read_manifest(config.real)}
    generated = read_dataset(config.generated) if config.generated else []
    origins = list(read_manifest(config.generated)) if config.generated else []
    if other := next((one for one in (*real, *generated) if one.modalities != CF_FA), None):
        raise FileError(other.folder, f"has pairs of {other.modalities}; `retipair utility` trains and tests CF and FA")
    landmarks = {one.id: rows for one in real if (rows := _landmarks(records[one.id])) is not None}
    if not landmarks:
        advice = "prepare raw pairs with point files (docs/formats.md)"
        raise MissingError(config.real, f"no pair has {MIN_LANDMARKS} {_AGREE}; {advice}")
    held_out = config.test == "held_out" or (config.test == "auto" and any(map(_made_from_real_pairs, origins)))
    tested = [one for one in real if one.id in landmarks and (one.split != "train" or not held_out)]
    _check_eyes(config, tested, held_out)
    eyes = {one.group for one in tested}
    usable = [one for one in generated if one.group not in eyes]
    size = _check_sizes([*_with_sizes(real, records.values()), *_with_sizes(generated, origins)])
    plan = UtilityPlan(
        config,
        Material(tuple(real), tuple(usable), config.phantoms, size),
        tuple(tested),
        tuple(landmarks[one.id] for one in tested),
        held_out,
        tuple(sorted({one.group for one in tested if one.split == "train"} if any(map(_has_adapter, origins)) else ())),
        all(isinstance(record, GeneratedPair) for record in origins),
        (),
    )
    _check_arms(plan, generated)
    return _with_notes(plan, real, generated)


def _check_settings(config: UtilityConfig) -> None:
    for name, lowest in _LOWEST.items():
        if (value := getattr(config, name)) < lowest:
            raise SettingError(name, value, f"must be at least {lowest}")
    if not config.arms or len(set(config.arms)) < len(config.arms):
        known = ", ".join(get_args(ArmName))
        raise SettingError("arms", " ".join(config.arms), f"give one or more of {known}, each only once")
    needing = [arm for arm in config.arms if "generated" in ARMS[arm].needs]
    if needing and config.generated is None:
        rest = " ".join(arm for arm in config.arms if arm not in needing) or "untrained"
        raise SettingError("generated", None, f"needed for {', '.join(needing)}; give it, or choose --arms {rest}")


def _landmarks(record: Record) -> tuple[tuple[float, ...], ...] | None:
    """Return the landmarks of a pair, or None if fewer than four have positions in CF and FA that agree."""
    if not isinstance(record, PreparedPair) or not record.points:
        return None
    points = np.array(record.points)
    distances = np.linalg.norm(points[:, :2] - points[:, 2:], axis=1) * 512 / record.size
    return tuple(map(tuple, record.points)) if (distances <= TOLERANCE).sum() >= MIN_LANDMARKS else None


def _has_adapter(record: Record) -> bool:
    return isinstance(record, GeneratedPair) and record.adapter_sha256 is not None


def _made_from_real_pairs(record: Record) -> bool:
    """Return whether a generated pair may contain or resemble real views.

    That is so if it was made with an adapter, or from a pair (--mode from_data) or a given view (cf2fa, fa2cf).
    """
    return _has_adapter(record) or record.mode not in (None, "noise")


def _check_eyes(config: UtilityConfig, tested: Sequence[PairRecord], held_out: bool) -> None:
    eyes = sorted({record.group for record in tested})
    if len(eyes) > 1:
        return
    where = "its splits val and test hold" if held_out else "it holds"
    which = f"only one eye or patient with landmarks, {eyes[0]}" if eyes else "no eye with landmarks"
    advice = "add pairs of other eyes (of other patients, if patients are known)"
    if held_out:
        advice = "prepare it with a higher --test_fraction, or pass --test all if no generator has seen its eyes"
    raise MissingError(config.real, f"{where} {which}, but at least 2 are needed; {advice}")


def _with_sizes(pairs: Sequence[PairRecord], records: Iterable[Record]) -> list[tuple[PairRecord, int]]:
    sizes = {record.cf: record.size for record in records}
    return [(pair, sizes[pair.cf_name]) for pair in pairs]


def _check_sizes(pairs: Sequence[tuple[PairRecord, int]]) -> int:
    """Return the size of all views. Raises FileError if sizes differ, because sharpness then affects the scores."""
    first, size = pairs[0]
    for pair, other in pairs:
        if other != size:
            problem = f"{other} px wide, but {first.cf} is {size} px wide; make all pairs with the same --size"
            raise FileError(pair.cf, problem)
    return size


def _check_arms(plan: UtilityPlan, generated: Sequence[PairRecord]) -> None:
    config, material = plan.config, plan.material
    for name in config.arms:
        if "generated" in ARMS[name].needs and not material.generated:
            assert config.generated is not None
            raise MissingError(config.generated, "all its pairs were made from tested eyes; generate from other eyes")
        if "real" in ARMS[name].needs and not all(allowed for _, allowed in plan.folds(ARMS[name])):
            raise SettingError("arms", name, f"{config.real} has no pair in its split train; leave out {name}")
    if "mispaired" in config.arms and len({one.group for one in material.generated}) < 2:
        raise SettingError(
            "arms", "mispaired", f"{config.generated} has pairs of one eye or patient only; leave out mispaired"
        )


def _with_notes(plan: UtilityPlan, real: Sequence[PairRecord], generated: Sequence[PairRecord]) -> UtilityPlan:
    left_out = len(generated) - len(plan.material.generated)
    notes = [
        f"{len(plan.tested)} of {len(real)} real pairs are tested: {len(plan.eyes)} eyes (patients, if known)"
        + (" of the splits val and test" if plan.held_out else ""),
        *([f"{left_out} generated pairs are not used, because they were made from tested eyes"] if left_out else []),
    ]
    return replace(plan, notes=tuple(notes))
