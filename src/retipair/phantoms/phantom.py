"""`retipair phantom OUT`: seeds -> rendered pairs, registered or raw, and the truth about them.

Each pair's truth.json is written last of its files and names their hashes, so that a run that was cut off goes on
where it stopped; the manifest comes last of all. The settings of the run are kept in OUT/.phantom.json.
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
from retipair.config import MOST_PAIRS, PhantomConfig, PrepareConfig
from retipair.data.contact_sheet import SHEET_NAME, contact_sheet, titled
from retipair.data.manifest import MANIFEST_NAME, SPLITS, PreparedPair, Split, write_manifest
from retipair.data.pair import save_image
from retipair.data.splits import split_groups
from retipair.models.device import one_thread
from retipair.phantoms.cameras import CAMERAS
from retipair.phantoms.clicks import Clicks
from retipair.phantoms.draw import Phantom, draw_phantom
from retipair.phantoms.lesions import DISEASES
from retipair.phantoms.truth import TRUTH_NAME, Truth, read_truth, write_truth
from retipair.runtime.atomic_io import check_folder_place, file_sha256, find_checksum_mismatch, is_leftover, write_text
from retipair.runtime.console import progress
from retipair.runtime.errors import UserError
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import canonical_json, json_sha256, to_values
from retipair.runtime.threads import available_cores
from retipair.vision.ridges import vesselness_correlation

STATE_NAME = ".phantom.json"
_STATE_SCHEMA = "retipair.phantoms.phantom-state/1"
_RECIPE = 3  # raise it whenever the same seed would be drawn otherwise
_LARGEST = 2048  # px: a gigabyte of maps
_MOST_AT_ONCE = 4  # of the largest
_ONLY_UNREGISTERED = ("points", "jitter", "wrong")
_MOST_POINTS = 50  # an eye always has that many forks and crossings


def phantom(config: PhantomConfig) -> Path:
    """Draw the pairs that are not there yet; returns the folder.

    Raises UserError, before anything is written, for settings that cannot work or a folder with something else in it.
    """
    # Check
    _check_settings(config)
    _check_out(config)
    done = _drawn_before(config)
    wanted = range(1, max(config.amount, *done, *_begun_before(config), 0) + 1)

    with directory_lock(config.out):
        # Draw
        (config.out / MANIFEST_NAME).unlink(missing_ok=True)
        _write_state(config)
        missing = [number for number in wanted if number not in done]
        with progress("Drawing eyes", len(wanted), len(done)) as advance:
            for number, truth in zip(missing, _write_pairs(config, missing), strict=True):
                done[number] = truth
                advance()

        # Describe
        truths = [done[number] for number in wanted]
        if config.unregistered:
            raw, told = config.out / "raw", config.out / "truth"
            print(f"{len(truths)} rendered raw pairs in {raw}; what is true of each in {told}")
        else:
            _describe(config, truths)
    return config.out


# --- Checks


def _check_settings(config: PhantomConfig) -> None:
    if config.size % 64 or not 64 <= config.size <= _LARGEST:
        raise UserError(f"--size {config.size}: must be a multiple of 64 px, from 64 to {_LARGEST}")
    if config.amount < (least := 1 if config.unregistered else 2):
        why = "" if config.unregistered else ": one eye to train on, one to validate"
        raise UserError(f"--amount {config.amount}: must be at least {least}{why}")
    if config.amount > MOST_PAIRS:
        raise UserError(f"--amount {config.amount}: must be at most {MOST_PAIRS:,}")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"--seed {config.seed}: must be at least 0 and below 2^32")
    for name, known in (("camera", tuple(CAMERAS)), ("disease", DISEASES)):
        if (value := getattr(config, name)) not in (None, *known):
            raise UserError(f"--{name} {value}: none of {', '.join(known)}")
    for name in _ONLY_UNREGISTERED:
        if not config.unregistered and (value := getattr(config, name)) != getattr(PhantomConfig, name):
            raise UserError(f"--{name} {value}: registered pairs have no points; add --unregistered, or leave it out")
    if not 4 <= config.points <= _MOST_POINTS:
        raise UserError(f"--points {config.points}: must be from 4 to {_MOST_POINTS}")
    if not 0 <= config.jitter < math.inf:
        raise UserError(f"--jitter {config.jitter:g}: must be a number of px, 0 or more")
    if not 0 <= config.wrong <= config.points:
        raise UserError(f"--wrong {config.wrong}: must be from 0 to --points {config.points}")


def _check_out(config: PhantomConfig) -> None:
    """OUT is new, empty, or what these settings (but for --amount) began."""
    out = config.out
    for place in ("cf", "fa", "mask", "truth", "raw"):
        check_folder_place(out / place)
    if not out.is_dir() or all(map(is_leftover, out.iterdir())):
        return
    began = _read_state(out)
    if began is None:
        raise UserError(f"{out}: holds other files; choose a new or empty folder for OUT")
    for name, value in _settings(config).items():
        if began.get(name) != value:
            what = f"--{name} {began.get(name)}, not {value}" if name != "recipe" else "another version of retipair"
            raise UserError(f"{out}: was drawn with {what}; choose another OUT")


# --- What earlier runs left


def _settings(config: PhantomConfig) -> dict[str, Any]:
    """What the pairs depend on beside their number; that of key points only where there are any."""
    left_out = {"out", "amount", *(() if config.unregistered else _ONLY_UNREGISTERED)}
    return {"recipe": _RECIPE, **{name: value for name, value in to_values(config).items() if name not in left_out}}


def _read_state(out: Path) -> dict[str, Any] | None:
    """The settings that OUT was begun with; None where it is not ours."""
    try:
        state = json.loads((out / STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    ours = isinstance(state, dict) and state.get("schema") == _STATE_SCHEMA and isinstance(state.get("settings"), dict)
    return state["settings"] if ours else None


def _write_state(config: PhantomConfig) -> None:
    write_text(config.out / STATE_NAME, canonical_json({"schema": _STATE_SCHEMA, "settings": _settings(config)}))


def _drawn_before(config: PhantomConfig) -> dict[int, Truth]:
    """Whole pairs, by number: those whose truth is of these settings and whose files are as it says."""
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


def _begun_before(config: PhantomConfig) -> list[int]:
    """Numbers of raw pairs of which something is there: what `prepare` will find must be whole."""
    names = [path.name for path in (config.out / "raw").glob("[!.]*") if path.is_dir()]
    if strange := [name for name in names if not re.fullmatch(r"\d{4,7}", name)]:
        raise UserError(f"{config.out / 'raw' / strange[0]}: no eye of ours; move it elsewhere")
    return [int(name) for name in names]


def _source_sha256(config: PhantomConfig, number: int) -> str:
    return json_sha256([_settings(config), number])


# --- Draw


def _write_pairs(config: PhantomConfig, numbers: Sequence[int]) -> Iterator[Truth]:
    """The pairs in order, one on every core (torch and the encoders let go of Python's lock)."""
    in_memory = _MOST_AT_ONCE * _LARGEST**2 // config.size**2
    with one_thread():
        yield from parallel_map(partial(_write_pair, config), numbers, min(available_cores(), in_memory))


def _write_pair(config: PhantomConfig, number: int) -> Truth:
    """Draw a pair and write its files, its truth last."""
    clicks = Clicks(config.points, config.jitter, config.wrong) if config.unregistered else None
    disease = next((one for one in DISEASES if one == config.disease), None)
    drawn = draw_phantom(config.seed, number, config.size, config.camera, disease, clicks)
    name = f"{number:04d}"
    views = _raw_views(drawn, name) if config.unregistered else _prepared_views(drawn, name)
    images = views | {f"truth/{name}/{layer}.png": image for layer, image in drawn.layers.items()}
    for path, image in images.items():
        save_image(config.out / path, image, _mark(config, number))
    points = _write_points(config.out, drawn, name)
    consistency = None
    if not config.unregistered:
        consistency = round(vesselness_correlation(drawn.cf, drawn.fa, drawn.field), 4)
    truth = Truth(
        id=name,
        eye=number,
        seed=config.seed,
        side=drawn.side,
        disease=drawn.disease,
        camera=drawn.camera,
        phase=round(drawn.phase, 4),
        disc=drawn.disc,
        disc_radii=drawn.disc_radii,
        fovea=drawn.fovea,
        fa_to_cf=drawn.fa_to_cf.tolist(),
        wrong_points=drawn.wrong_points,
        lesions=drawn.lesions,
        consistency=consistency,
        source_sha256=_source_sha256(config, number),
        files_sha256={path: file_sha256(config.out / path) for path in (*images, *points)},
    )
    write_truth(config.out / "truth" / name / TRUTH_NAME, truth)
    return truth


def _prepared_views(drawn: Phantom, name: str) -> dict[str, np.ndarray]:
    mask = drawn.field.astype(np.uint8) * 255
    return {f"{view}/{name}.png": image for view, image in (("cf", drawn.cf), ("fa", drawn.fa), ("mask", mask))}


def _raw_views(drawn: Phantom, name: str) -> dict[str, np.ndarray]:
    return {f"raw/{name}/{name}_01.png": drawn.cf, f"raw/{name}/{name}_02.png": drawn.fa}


def _write_points(out: Path, drawn: Phantom, name: str) -> list[str]:
    """The points of both views, one "x y" a line, beside them; returns their paths."""
    if drawn.landmarks is None:
        return []
    points = {f"raw/{name}/{name}_01.txt": drawn.landmarks.cf, f"raw/{name}/{name}_02.txt": drawn.landmarks.fa}
    for path, places in points.items():
        write_text(out / path, "".join(f"{x:.3f} {y:.3f}\n" for x, y in places))
    return list(points)


def _mark(config: PhantomConfig, number: int) -> dict[str, str]:
    """What every picture says of itself."""
    return {
        "Synthetic": "yes: rendered from a model of the eye; not a photograph, not for clinical use",
        "Software": f"retipair {__version__}",
        "Seed": f"{config.seed}, pair {number}",
    }


# --- Describe


def _describe(config: PhantomConfig, truths: Sequence[Truth]) -> None:
    """The contact sheet, and last of all the manifest, with the split that `prepare` would make."""
    shares = (PrepareConfig.val_fraction, PrepareConfig.test_fraction)
    sides = split_groups([_group(truth) for truth in truths], *shares, config.seed)
    records = [_record(config, truth, sides[_group(truth)]) for truth in truths]
    sheet = contact_sheet(titled(config.out, record) for record in records)
    save_image(config.out / SHEET_NAME, sheet, {"Synthetic": "yes: rendered; not photographs, not for clinical use"})
    write_manifest(config.out, records)
    counts = Counter(record.split for record in records)
    split = ", ".join(f"{counts[side]} {side}" for side in SPLITS if counts[side])
    print(f"{len(records)} rendered pairs in {config.out} ({split}); what is true of each in {config.out / 'truth'}")


def _group(truth: Truth) -> str:
    return f"eye {truth.id}"


def _record(config: PhantomConfig, truth: Truth, side: Split) -> PreparedPair:
    assert truth.consistency is not None
    return PreparedPair(
        id=truth.id,
        eye=truth.id,
        patient=None,
        split=side,
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
    )
