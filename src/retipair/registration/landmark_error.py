"""Measure the errors of registrations at landmarks, as papers on image matching do."""

from collections.abc import Sequence

import numpy as np

from retipair.registration.landmarks import Landmarks
from retipair.registration.warp import reprojection_errors

WIDTH = 512
"""px: errors are scaled to a CF of this width."""
THRESHOLDS = (5, 10, 20)
"""px: the thresholds at which the AUC is reported."""
FAILURE_PX = 1e6
"""px: the error of a pair whose registration failed; it stands for infinity."""


def landmark_errors(fa_to_cf: np.ndarray, landmarks: Landmarks, cf_width: int) -> np.ndarray:
    """Return the distance of each FA landmark from its CF landmark after registration, (N,) px in a CF 512 px wide.

    Both sides of the CF are scaled by one factor, 512 / `cf_width`.

    fa_to_cf: the transform (3, 3) from raw FA px to raw CF px.
    cf_width: the width of the raw CF, px.
    """
    return reprojection_errors(fa_to_cf, landmarks) * WIDTH / cf_width


def error_auc(errors: Sequence[float], thresholds: Sequence[float] = THRESHOLDS) -> list[float]:
    """Return the area under the cumulative curve of the errors up to each threshold, divided by the threshold.

    Each result is in [0, 1]. The curve gives for each error e the fraction of the pairs with an error of at most e. It
    is linear between the sorted errors, begins at (0, 0), and is constant from the last error below the threshold to
    the threshold. This is `pose_auc` of SuperGlue (Sarlin et al. 2020, doi 10.1109/CVPR42600.2020.00499), which LoFTR
    and glue-factory use too. So for a single pair with an error e below the threshold t, the result is 1 - e / (2 t).

    errors: the error of each pair, px; FAILURE_PX for a failed pair.
    thresholds: in px, above 0.
    """
    ordered = np.concatenate([[0.0], np.sort(np.asarray(errors, dtype=np.float64))])
    recall = np.arange(len(ordered)) / max(len(errors), 1)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x, y = np.append(ordered[:last], threshold), np.append(recall[:last], recall[last - 1])
        areas.append(float(np.trapezoid(y, x) / threshold))
    return areas
