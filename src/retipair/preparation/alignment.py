"""Align raw pairs in parallel, and write the aligned views to the staging folder OUT/.partial."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from retipair.config import PrepareConfig, RegisterConfig
from retipair.data.pair import MEGAPIXELS, Pair, load_first_view, load_image, save_image, synthetic_mark_of
from retipair.data.raw_pair import RawPair
from retipair.preparation.reading import CheckedPair, modalities_of
from retipair.preparation.state import STAGING, AlignmentResult, view_file
from retipair.preparation.view_choice import with_chosen_views
from retipair.registration.align import Aligned, Limits, Method, align
from retipair.registration.warp import single_threaded
from retipair.runtime.atomic_io import file_sha256, write_json
from retipair.runtime.console import track
from retipair.runtime.errors import SettingError
from retipair.runtime.parallel import process_map
from retipair.runtime.schema import json_sha256
from retipair.vision.modality import CF_FA, Modalities

ALIGNMENT_VERSION = 7  # increment it if a change of the code changes the aligned views or their AlignmentResult


def alignment_key(checked: CheckedPair, config: PrepareConfig) -> str:
    """Return a hash of all that the aligned views of a pair depend on: its raw files, the settings and the version."""
    limits, modalities = asdict(limits_of(config)), modalities_of(config)
    method = _method_of(checked, config)
    return json_sha256([ALIGNMENT_VERSION, checked.sha256, method, config.size, limits, *modalities.hashed])


def _method_of(checked: CheckedPair, config: PrepareConfig) -> Method:
    if config.register != "auto":
        return config.register
    return "points" if checked.landmarks else "features"


def limits_of(config: PrepareConfig | RegisterConfig) -> Limits:
    return Limits(config.max_residual_px, config.min_consistency, config.allow_mirror)


def check_alignment_settings(config: PrepareConfig | RegisterConfig) -> None:
    """Raise SettingError if a limit of the alignment, or the number of workers, is invalid."""
    if not 0 < config.max_residual_px < math.inf:
        raise SettingError("max_residual_px", f"{config.max_residual_px:g}", "must be a number of px above 0")
    if config.min_consistency is not None and not -1 <= config.min_consistency <= 1:
        raise SettingError("min_consistency", f"{config.min_consistency:g}", "must be from -1 to 1")
    if config.workers < 0:
        raise SettingError("workers", config.workers, "must be 0 (every core) or more")


def align_pairs(pairs: Sequence[CheckedPair], config: PrepareConfig) -> Iterator[AlignmentResult]:
    """Align the pairs, in several processes if `config.workers` allows it, and yield the results in their order.

    Raises ChildProcessError if a worker process is killed.
    """
    work = partial(align_pair, config=config)
    yield from track("Aligning", process_map(work, pairs, config.workers, single_threaded), len(pairs))


def with_one_view_each(checked: CheckedPair, config: PrepareConfig | RegisterConfig) -> CheckedPair:
    """Return the pair with one CF and one FA, chosen by their vessels if there are several images or frames of them."""
    aligned = isinstance(config, PrepareConfig) and config.register == "none"
    megapixels = config.max_megapixels if isinstance(config, PrepareConfig) else MEGAPIXELS
    pair, chosen = with_chosen_views(checked.pair, aligned, megapixels, modalities_of(config))
    return replace(checked, pair=pair, chosen=chosen)


def load_views(
    pair: RawPair, megapixels: int = MEGAPIXELS, modalities: Modalities = CF_FA
) -> tuple[np.ndarray, np.ndarray]:
    """Read CF (H, W, 3) and FA (H, W) of a pair with one view each, uint8."""
    cf = load_first_view(pair.cf, modalities.first, megapixels, pair.cf_frame or 1)
    return cf, load_image(pair.fa, "L", megapixels, pair.fa_frame or 1)


def align_views(
    checked: CheckedPair, config: PrepareConfig
) -> tuple[CheckedPair, Aligned, tuple[np.ndarray, np.ndarray]]:
    """Align one pair; return (the pair with one view each, the aligned views, the raw views)."""
    method, modalities = _method_of(checked, config), modalities_of(config)
    checked = with_one_view_each(checked, config)
    cf, fa = load_views(checked.pair, config.max_megapixels, modalities)
    dark = modalities.dark_vessels
    return checked, align(cf, fa, checked.landmarks, method, config.size, limits_of(config), dark), (cf, fa)


def align_pair(checked: CheckedPair, config: PrepareConfig) -> AlignmentResult:
    """Align one pair, and write the result to the staging folder.

    The AlignmentResult is always written. The aligned views are written only if the pair is not refused.
    """
    checked, aligned, (cf, fa) = align_views(checked, config)
    pair, staging = checked.pair, config.out / STAGING
    result = AlignmentResult(
        id=pair.id,
        key=alignment_key(checked, config),
        source_sha256=checked.sha256,
        refused=aligned.refused,
        doubt=aligned.doubt,
        native_size=list(aligned.native_size),
        raw_sizes=[[view.shape[1], view.shape[0]] for view in (cf, fa)],
        raw_cf_to_cf=aligned.cf_to_frame.tolist(),
        fa_to_cf=aligned.fa_to_frame.tolist(),
        points=aligned.points.round(3).tolist(),
        inliers=aligned.inliers,
        residual_px=None if aligned.residual_px is None else round(aligned.residual_px, 3),
        consistency_before=round(aligned.consistency_before, 4),
        consistency=round(aligned.consistency, 4),
        files_sha256={} if aligned.refused else _stage(checked, aligned.pair, config),
        chosen=checked.chosen,
    )
    write_json(staging / f"{pair.id}.json", asdict(result))
    return result


def _stage(checked: CheckedPair, views: Pair, config: PrepareConfig) -> dict[str, str]:
    """Write CF, FA and mask to the staging folder, and return the hash of each file, by view."""
    images = {"cf": modalities_of(config).stored(views.cf), "fa": views.fa, "mask": views.mask.astype(np.uint8) * 255}
    paths = {view: config.out / STAGING / view_file(view, checked.pair.id) for view in images}
    raw = {"cf": [checked.pair.cf], "fa": [checked.pair.fa], "mask": [checked.pair.cf, checked.pair.fa]}
    for view, path in paths.items():
        mark = synthetic_mark_of(raw[view])
        if mark and config.anonymise:
            # The synthetic mark of a raw view may contain the original id of a pair, so it is replaced.
            mark = {"Synthetic": "yes: prepared from synthetic views"}
        save_image(path, images[view], mark)
    return {view: file_sha256(path) for view, path in paths.items()}
