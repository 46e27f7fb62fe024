"""`retipair phantom OUT`: render synthetic pairs, registered or raw, with their ground truth.

The truth.json of a pair is written after the other files of the pair and contains their hashes. So the next run can see
which pairs of an interrupted run are complete. The manifest, which only registered pairs have, is written when all
pairs are complete. Until then, the manifest of an earlier run with fewer pairs is kept: its pairs have the same
settings and stay valid. The state file OUT/.phantom.json contains the settings of the run.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retipair import __version__
from retipair.config import MAX_AMOUNT, PhantomConfig, PrepareConfig
from retipair.data.contact_sheet import SHEET_NAME, contact_sheet, load_titled
from retipair.data.manifest import SPLITS, STATE_NAMES, PreparedPair, Split, write_manifest
from retipair.data.pair import Pair, save_image
from retipair.data.splits import split_groups
from retipair.models.device import one_thread
from retipair.phantoms.cameras import CAMERAS
from retipair.phantoms.clicks import Clicks
from retipair.phantoms.draw import Phantom, draw_phantom
from retipair.phantoms.lesions import DISEASES
from retipair.phantoms.truth import TRUTH_NAME, Truth, read_truth, write_truth
from retipair.runtime.atomic_io import check_folder_place, file_sha256, find_checksum_mismatch, is_leftover, write_text
from retipair.runtime.console import progress
from retipair.runtime.errors import FileError, OccupiedError, SettingError, UserError
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import canonical_json, json_sha256, to_values
from retipair.runtime.threads import available_cores
from retipair.vision.modality import CF_FA, Modalities, find_modalities

STATE_NAME = STATE_NAMES["phantom"]
_STATE_SCHEMA = "retipair.phantom-state/1"
_RECIPE = 3  # increment it after a change of the code that changes the rendered pairs
_MAX_SIZE = 2048  # px; the maps of one pair then take about 1 GB
_MAX_CONCURRENT = 4  # maximum number of pairs of _MAX_SIZE px that are rendered at the same time
_ONLY_UNREGISTERED = ("points", "jitter", "wrong")
_MAX_POINTS = 50  # each eye has at least this many forks and crossings


def phantom(config: PhantomConfig) -> Path:
    """Render the pairs that OUT does not contain yet, and return OUT.

    Raises UserError if settings are invalid, or if OUT contains files of other commands or pairs with other settings.
    In these cases, nothing is written.
    """
    # Check
    _check_settings(config)
    _check_out(config)
    done = _complete_pairs(config)
    numbers = range(1, max(config.amount, *done, *_started_pairs(config), 0) + 1)

    with directory_lock(config.out):
        # Render
        _write_state(config)
        missing = [number for number in numbers if number not in done]
        with progress("Rendering eyes", len(numbers), len(done)) as advance:
            for number, truth in zip(missing, _write_pairs(config, missing), strict=True):
                done[number] = truth
                advance()

        # Manifest and contact sheet
        truths = [done[number] for number in numbers]
        if config.unregistered:
            raw, truth_dir = config.out / "raw", config.out / "truth"
            print(f"{len(truths)} rendered raw pairs in {raw}; ground truth in {truth_dir}")
        else:
            _write_manifest(config, truths)
    return config.out


# --- Checks


def _check_settings(config: PhantomConfig) -> None:
    if config.size % 64 or not 64 <= config.size <= _MAX_SIZE:
        raise SettingError("size", config.size, f"must be a multiple of 64 px, from 64 to {_MAX_SIZE}")
    if config.amount < (minimum := 1 if config.unregistered else 2):
        why = "" if config.unregistered else ": one eye to train on, one to validate on"
        raise SettingError("amount", config.amount, f"must be at least {minimum}{why}")
    if config.amount > MAX_AMOUNT:
        raise SettingError("amount", config.amount, f"must be at most {MAX_AMOUNT:,}")
    if not 0 <= config.seed < 2**32:
        raise SettingError("seed", config.seed, "must be at least 0 and below 2^32")
    for name, known in (("camera", tuple(CAMERAS)), ("disease", DISEASES)):
        if (value := getattr(config, name)) not in (None, *known):
            raise SettingError(name, value, f"must be one of {', '.join(known)}")
    try:
        _modalities(config)
    except ValueError as error:
        raise SettingError("modalities", " ".join(config.modalities or ()), str(error)) from None
    for name in _ONLY_UNREGISTERED:
        if not config.unregistered and (value := getattr(config, name)) != getattr(PhantomConfig, name):
            raise SettingError(name, value, f"registered pairs have no points; add --unregistered, or remove --{name}")
    if not 4 <= config.points <= _MAX_POINTS:
        raise SettingError("points", config.points, f"must be from 4 to {_MAX_POINTS}")
    if not 0 <= config.jitter < math.inf:
        raise SettingError("jitter", f"{config.jitter:g}", "must be finite and 0 or more, in px")
    if not 0 <= config.wrong <= config.points:
        raise SettingError("wrong", config.wrong, f"must be from 0 to --points {config.points}")


def _check_out(config: PhantomConfig) -> None:
    """Raise UserError unless OUT is new, empty, or from a run with the same settings (--amount may differ)."""
    out = config.out
    for place in ("cf", "fa", "mask", "truth", "raw"):
        check_folder_place(out / place)
    if not out.is_dir() or all(map(is_leftover, out.iterdir())):
        return
    started = _read_state(out)
    if started is None:
        problem = f"contains files, but no valid {STATE_NAME} of `retipair phantom`"
        raise OccupiedError(out, f"{problem}; choose a new or empty folder for OUT")
    for name, value in {**dict.fromkeys(started), **_settings(config)}.items():
        if started.get(name) != value:
            before, now = (_flag(name, setting) for setting in (started.get(name), value))
            how = f"{before}, not {now}" if name != "recipe" else "with another version of retipair"
            raise OccupiedError(out, f"was rendered {how}; choose another OUT")


def _flag(name: str, value: object) -> str:
    """Return a setting as text: "with --camera amber", "with --unregistered", "without --camera"."""
    if isinstance(value, list):
        value = " ".join(value)
    if value is None or isinstance(value, bool):
        return f"{'with' if value else 'without'} --{name}"
    return f"with --{name} {value}"


# --- State of earlier runs


def _settings(config: PhantomConfig) -> dict[str, Any]:
    """Return the settings that the pairs depend on. Without --unregistered, the settings of landmarks are left out."""
    excluded = {"out", "amount", "modalities", *(() if config.unregistered else _ONLY_UNREGISTERED)}
    values = {name: value for name, value in to_values(config).items() if name not in excluded}
    modalities = _modalities(config)
    more = {} if modalities == CF_FA else {"modalities": list(modalities.keys)}
    return {"recipe": _RECIPE, **values, **more}


def _modalities(config: PhantomConfig) -> Modalities:
    return find_modalities(config.modalities)


def _read_state(out: Path) -> dict[str, Any] | None:
    """Return the settings in the state file of OUT, or None if the file is missing or invalid."""
    try:
        state = json.loads((out / STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    valid = isinstance(state, dict) and state.get("schema") == _STATE_SCHEMA and isinstance(state.get("settings"), dict)
    return state["settings"] if valid else None


def _write_state(config: PhantomConfig) -> None:
    write_text(config.out / STATE_NAME, canonical_json({"schema": _STATE_SCHEMA, "settings": _settings(config)}))


def _complete_pairs(config: PhantomConfig) -> dict[int, Truth]:
    """Return the complete pairs in OUT, by number.

    A pair is complete if it was rendered with these settings and its files match the hashes in its truth.json.
    """
    done = {}
    for path in (config.out / "truth").glob(f"*/{TRUTH_NAME}"):
        try:
            truth = read_truth(path)
        except UserError:
            continue
        if (
            truth.source_sha256 == _source_sha256(config, truth.eye)
            and find_checksum_mismatch(config.out, truth.files_sha256) is None
        ):
            done[truth.eye] = truth
    return done


def _started_pairs(config: PhantomConfig) -> list[int]:
    """Return the numbers of all raw pairs in OUT, complete or not.

    An earlier run may have started more pairs than --amount. These must be completed too, because `prepare` reads every
    pair in the folder.
    """
    names = [path.name for path in (config.out / "raw").glob("[!.]*") if path.is_dir()]
    if unknown := [name for name in names if not re.fullmatch(r"\d{4,7}", name)]:
        raise FileError(config.out / "raw" / unknown[0], "not written by retipair; move it elsewhere")
    return [int(name) for name in names]


def _source_sha256(config: PhantomConfig, number: int) -> str:
    return json_sha256([_settings(config), number])


# --- Render


def _write_pairs(config: PhantomConfig, numbers: Sequence[int]) -> Iterator[Truth]:
    """Render and write the pairs in parallel threads, and yield their ground truth in order.

    There is one thread per core, or fewer if the pairs are large (see `_MAX_CONCURRENT`). Threads run in parallel here,
    because torch and the image encoders release the global interpreter lock.
    """
    in_memory = _MAX_CONCURRENT * _MAX_SIZE**2 // config.size**2
    with one_thread():
        yield from parallel_map(partial(_write_pair, config), numbers, min(available_cores(), in_memory))


def _write_pair(config: PhantomConfig, number: int) -> Truth:
    """Render a pair, write its files with truth.json as the last one, and return its ground truth."""
    clicks = Clicks(config.points, config.jitter, config.wrong) if config.unregistered else None
    disease = next((disease for disease in DISEASES if disease == config.disease), None)
    modalities = _modalities(config)
    rendered = draw_phantom(config.seed, number, config.size, config.camera, disease, clicks, modalities)
    name, cf = f"{number:04d}", modalities.stored(rendered.cf)
    views = _raw_views(rendered, cf, name) if config.unregistered else _prepared_views(rendered, cf, name)
    images = views | {f"truth/{name}/{layer}.png": image for layer, image in rendered.layers.items()}
    for path, image in images.items():
        save_image(config.out / path, image, _metadata(config, number))
    points = _write_points(config.out, rendered, name)
    consistency = None
    if not config.unregistered:
        pair = Pair(rendered.cf, rendered.fa, rendered.field, dark_vessels=modalities.dark_vessels)
        consistency = round(pair.consistency(), 4)
    truth = Truth(
        id=name,
        eye=number,
        seed=config.seed,
        side=rendered.side,
        disease=rendered.disease,
        camera=rendered.camera,
        phase=round(rendered.phase, 4),
        disc=rendered.disc,
        disc_radii=rendered.disc_radii,
        fovea=rendered.fovea,
        fa_to_cf=rendered.fa_to_cf.tolist(),
        wrong_points=rendered.wrong_points,
        lesions=rendered.lesions,
        consistency=consistency,
        source_sha256=_source_sha256(config, number),
        files_sha256={path: file_sha256(config.out / path) for path in (*images, *points)},
    )
    write_truth(config.out / "truth" / name / TRUTH_NAME, truth)
    return truth


def _prepared_views(rendered: Phantom, cf: np.ndarray, name: str) -> dict[str, np.ndarray]:
    mask = rendered.field.astype(np.uint8) * 255
    return {f"{view}/{name}.png": image for view, image in (("cf", cf), ("fa", rendered.fa), ("mask", mask))}


def _raw_views(rendered: Phantom, cf: np.ndarray, name: str) -> dict[str, np.ndarray]:
    return {f"raw/{name}/{name}_01.png": cf, f"raw/{name}/{name}_02.png": rendered.fa}


def _write_points(out: Path, rendered: Phantom, name: str) -> list[str]:
    """Write the landmarks of both views, one "x y" per line, to files next to the views.

    Return the paths of these files relative to `out`; [] for a registered pair.
    """
    if rendered.landmarks is None:
        return []
    points = {f"raw/{name}/{name}_01.txt": rendered.landmarks.cf, f"raw/{name}/{name}_02.txt": rendered.landmarks.fa}
    for path, places in points.items():
        write_text(out / path, "".join(f"{x:.3f} {y:.3f}\n" for x, y in places))
    return list(points)


def _metadata(config: PhantomConfig, number: int) -> dict[str, str]:
    """Return the metadata that are written as text to each image of a pair."""
    return {
        "Synthetic": "yes: rendered from a model of the eye; not a photograph, not for clinical use",
        "Software": f"retipair {__version__}",
        "Seed": f"{config.seed}, pair {number}",
    }


# --- Manifest and contact sheet


def _write_manifest(config: PhantomConfig, truths: Sequence[Truth]) -> None:
    """Write the contact sheet and then the manifest. The pairs are split as `prepare` would split them."""
    fractions = (PrepareConfig.val_fraction, PrepareConfig.test_fraction)
    splits = split_groups([_group(truth) for truth in truths], *fractions, config.seed)
    records = [_record(config, truth, splits[_group(truth)]) for truth in truths]
    sheet = contact_sheet(load_titled(config.out, record) for record in records)
    save_image(config.out / SHEET_NAME, sheet, {"Synthetic": "yes: rendered; not photographs, not for clinical use"})
    write_manifest(config.out, records)
    counts = Counter(record.split for record in records)
    split = ", ".join(f"{counts[name]} {name}" for name in SPLITS if counts[name])
    print(f"{len(records)} rendered pairs in {config.out} ({split}); ground truth in {config.out / 'truth'}")


def _group(truth: Truth) -> str:
    return f"eye {truth.id}"


def _record(config: PhantomConfig, truth: Truth, split: Split) -> PreparedPair:
    assert truth.consistency is not None
    return PreparedPair(
        id=truth.id,
        eye=truth.id,
        patient=None,
        split=split,
        cf=f"cf/{truth.id}.png",
        fa=f"fa/{truth.id}.png",
        mask=f"mask/{truth.id}.png",
        size=config.size,
        caption=None,
        source_sha256=truth.source_sha256,
        fa_to_cf=truth.fa_to_cf,
        points=[],
        inliers=None,
        residual_px=None,
        consistency_before=truth.consistency,
        consistency=truth.consistency,
        **_modalities(config).recorded,
    )
