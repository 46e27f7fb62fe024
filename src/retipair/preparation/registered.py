"""Register one raw pair in the frame of its CF, and read and write the result."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from retipair.config import RegisterConfig
from retipair.data.pair import chessboard, save_image, synthetic_mark_of
from retipair.preparation.alignment import ALIGNMENT_VERSION, limits_of, load_views
from retipair.preparation.reading import CheckedPair, modalities_of
from retipair.registration.align import align
from retipair.registration.landmark_error import FAILURE_PX, THRESHOLDS, error_auc, landmark_errors
from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import WORK_SIZE, resample
from retipair.runtime.atomic_io import read_json, write_json
from retipair.runtime.errors import UserError
from retipair.runtime.schema import from_values, json_sha256
from retipair.vision.modality import CF_FA, Modalities

RECORD_NAME = "registration.json"
CHECKERBOARD_NAME = "checkerboard.png"
WARPED_NAME = "fa_warped.png"
SCORES_NAME = "scores.json"
_VERSION = 1  # increment it if a change of the code changes the written files
_SCHEMA = "retipair.registration/1"
_SCORES_SCHEMA = "retipair.registration-scores/1"


@dataclass(frozen=True, kw_only=True)
class RegistrationRecord:
    """The content of registration.json: how the FA of one pair is registered to its CF.

    cf, fa: the names of the image files, without folders. None for DICOM files, whose names may identify a patient.
    cf_size, fa_size: the width and height of both images, px.
    method: "vessels" (a search over poses, and features) or "matches" (of a network).
    matches: the number of matches that were given; None for the method "vessels".
    fa_to_cf: the homography (3, 3) from px of the FA to px of the CF. The centre of the top-left pixel is (0, 0). Its
        determinant is negative if the FA was flipped.
    inliers: the number of features or matches that agree with the homography after the refinement, also if it was then
        undone.
    residual_px: the median shift of vessel patches, px in the square around the common field of view, resized to 512 px
        (so that it does not depend on the size of the images). None if no patches can be compared.
    consistency_before: the consistency before the registration was refined on the vessels.
    consistency: the correlation of the vesselness of CF and registered FA, [-1, 1].
    refused: the reason why the registration must not be used, or None.
    doubt: the reason why the user should inspect the registration, or None.
    landmarks: the number of landmarks at which the error was measured, or None.
    mean_error_px, median_error_px: the mean and the median distance between corresponding landmarks, px in a CF 512 px
        wide, or None.
    input_sha256: a hash of the files of the pair, the matches, the settings and the version of the code.
    chosen: which of several photographs and frames were registered, as text; None if there was no choice.
    """

    id: str
    cf: str | None
    fa: str | None
    cf_size: list[int]
    fa_size: list[int]
    method: Literal["vessels", "matches"]
    matches: int | None
    fa_to_cf: list[list[float]]
    inliers: int | None
    residual_px: float | None
    consistency_before: float
    consistency: float
    refused: str | None
    doubt: str | None
    landmarks: int | None
    mean_error_px: float | None
    median_error_px: float | None
    input_sha256: str
    chosen: str | None = None
    schema: str = _SCHEMA


@dataclass(frozen=True, kw_only=True)
class RegisteredPair(RegistrationRecord):
    """A registration in memory, with the registered FA.

    fa_warped: the FA in the frame of the CF, (H, W) uint8 with the size of the CF; 0 outside the FA.
    """

    fa_warped: np.ndarray

    @property
    def homography(self) -> np.ndarray:
        """The homography `fa_to_cf` as an array (3, 3) float64."""
        return np.array(self.fa_to_cf)

    @property
    def record(self) -> RegistrationRecord:
        """The content of registration.json, without the image."""
        return RegistrationRecord(**{field.name: getattr(self, field.name) for field in fields(RegistrationRecord)})


def register_views(checked: CheckedPair, matches: Landmarks | None, config: RegisterConfig) -> RegisteredPair:
    """Register the FA of one pair to its CF, and measure the error at the landmarks of the pair, if it has any.

    checked: a pair with one view each (`with_one_view_each`).
    matches: the matches of a network, of which many may be false, or None to register by the vessels.
    """
    pair = checked.pair
    modalities = modalities_of(config)
    cf, fa = load_views(pair, modalities=modalities)
    method: Literal["matches", "features"] = "features" if matches is None else "matches"
    aligned = align(cf, fa, matches, method, WORK_SIZE, limits_of(config), modalities.dark_vessels)
    fa_to_cf = np.linalg.inv(aligned.cf_to_frame) @ aligned.fa_to_frame
    fa_to_cf /= fa_to_cf[2, 2]
    landmarks = checked.landmarks
    errors = None if landmarks is None else landmark_errors(fa_to_cf, landmarks, cf.shape[1])
    return RegisteredPair(
        id=pair.id,
        cf=None if pair.dicom else pair.cf.name,
        fa=None if pair.dicom else pair.fa.name,
        cf_size=[cf.shape[1], cf.shape[0]],
        fa_size=[fa.shape[1], fa.shape[0]],
        method="vessels" if matches is None else "matches",
        matches=None if matches is None else len(matches.cf),
        fa_to_cf=fa_to_cf.tolist(),
        inliers=aligned.inliers,
        residual_px=None if aligned.residual_px is None else round(aligned.residual_px, 3),
        consistency_before=round(aligned.consistency_before, 4),
        consistency=round(aligned.consistency, 4),
        refused=aligned.refused,
        doubt=None if aligned.refused else aligned.doubt,
        landmarks=None if errors is None else len(errors),
        mean_error_px=None if errors is None else round(float(errors.mean()), 3),
        median_error_px=None if errors is None else round(float(np.median(errors)), 3),
        input_sha256=input_sha256(checked, matches, config),
        chosen=checked.chosen,
        fa_warped=resample(fa, fa_to_cf, cf.shape[:2]),
    )


def input_sha256(checked: CheckedPair, matches: Landmarks | None, config: RegisterConfig) -> str:
    """Return a hash of all that a registration depends on: the raw files, the matches, the settings and the version."""
    points = None if matches is None else [matches.cf.tolist(), matches.fa.tolist()]
    limits, modalities = asdict(limits_of(config)), modalities_of(config)
    return json_sha256([_VERSION, ALIGNMENT_VERSION, checked.sha256, points, limits, *modalities.hashed])


# --- Files


def write_registration(
    folder: Path, checked: CheckedPair, registered: RegisteredPair, modalities: Modalities = CF_FA
) -> None:
    """Write the registered FA, the checkerboard and registration.json, which is written last."""
    (folder / RECORD_NAME).unlink(missing_ok=True)
    pair = checked.pair
    marks = synthetic_mark_of([pair.fa]), synthetic_mark_of([pair.cf])
    save_image(folder / WARPED_NAME, registered.fa_warped, marks[0])
    cf, _ = load_views(pair, modalities=modalities)
    save_image(folder / CHECKERBOARD_NAME, chessboard(cf, registered.fa_warped), marks[0] or marks[1])
    write_json(folder / RECORD_NAME, asdict(registered.record))


def read_registration(folder: Path) -> RegistrationRecord | None:
    """Return the registration that a folder contains, or None if it is missing, incomplete or invalid."""
    if not all((folder / name).is_file() for name in (WARPED_NAME, CHECKERBOARD_NAME, RECORD_NAME)):
        return None
    path = folder / RECORD_NAME
    try:
        return from_values(RegistrationRecord, read_json(path), str(path))
    except UserError:
        return None


# --- Scores


@dataclass(frozen=True, kw_only=True)
class RegistrationScores:
    """The content of scores.json: the errors at the landmarks.

    pairs: the number of pairs that have landmarks.
    failed: the number of these pairs that were refused. Their error counts as infinite in the AUC.
    mean_error_px: the mean of the mean landmark errors of the pairs that did not fail, px in a CF 512 px wide.
    median_error_px: the mean of the median landmark errors of these pairs.
    auc: the area under the cumulative curve of the mean landmark errors of all pairs with landmarks, divided by the
        threshold, [0, 1], by threshold in px.
    """

    pairs: int
    failed: int
    mean_error_px: float | None
    median_error_px: float | None
    auc: dict[str, float]
    schema: str = _SCORES_SCHEMA


def score(records: Sequence[RegistrationRecord]) -> RegistrationScores | None:
    """Return the scores of the pairs that have landmarks, or None if there is no such pair."""
    measured = [record for record in records if record.mean_error_px is not None]
    if not measured:
        return None
    good = [record for record in measured if not record.refused]
    errors = [FAILURE_PX if record.refused else record.mean_error_px or 0.0 for record in measured]
    return RegistrationScores(
        pairs=len(measured),
        failed=len(measured) - len(good),
        mean_error_px=_mean([record.mean_error_px or 0.0 for record in good]),
        median_error_px=_mean([record.median_error_px or 0.0 for record in good]),
        auc={f"{threshold}": round(area, 4) for threshold, area in zip(THRESHOLDS, error_auc(errors), strict=True)},
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 3) if values else None


def write_scores(out: Path, scores: RegistrationScores | None) -> None:
    """Write scores.json; if there are no scores, delete the file of an earlier run."""
    if scores:
        write_json(out / SCORES_NAME, asdict(scores))
    else:
        (out / SCORES_NAME).unlink(missing_ok=True)
