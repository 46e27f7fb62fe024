"""Choose, among several photographs and the frames of an angiogram, the CF and the FA whose vessels agree best.

A full registration takes seconds, and an angiogram may have 60 frames, so most frames are only compared at 128 px, as
in `pose_search`: a coarse search over poses is made for some frames, and all frames are compared near the best pose,
because the frames of one angiogram come from one camera. Only the best of them are registered at 512 px.
"""

from collections.abc import Callable, Sequence

import numpy as np

from retipair.registration.pose_search import POSES, PoseFit, ReducedView, best_pose, raw_transform, reduce_view
from retipair.registration.refine import refine
from retipair.registration.warp import WORK_SIZE, View, common_square, render

LoadView = Callable[[], View]
_COARSE = tuple((angle, scale) for angle, scale in POSES if angle % 2 == 1 and scale % 2 == 0)
_MAX_SEARCHED = 8  # frames per photograph for which poses are searched
_MAX_REGISTERED = 4  # pairs of views that are registered


def choose_views(cfs: Sequence[LoadView], fas: Sequence[LoadView]) -> tuple[int, int]:
    """Return the indices of the CF and of the FA with the highest consistency after registration.

    cfs, fas: functions that read the views, since all frames together may not fit into memory.
    """
    reduced = [reduce_view(load()) for load in fas]
    fits = [(fit, n, m) for n, load in enumerate(cfs) for m, fit in enumerate(_fits(reduce_view(load()), reduced))]
    best = sorted(fits, key=lambda entry: -entry[0].evidence)[:_MAX_REGISTERED]
    _, n, m = max(best, key=lambda entry: _consistency(cfs[entry[1]](), fas[entry[2]](), entry[0]))
    return n, m


def _fits(cf: ReducedView, fas: Sequence[ReducedView]) -> list[PoseFit]:
    """Return the best fit of each FA to a CF, near the pose of the FA that fits best."""
    searched = np.unique(np.linspace(0, len(fas) - 1, _MAX_SEARCHED).round().astype(int))
    first = max((best_pose(cf, fas[index], _COARSE) for index in searched), key=lambda fit: fit.evidence)
    angle, scale = first.pose
    near = [pose for pose in POSES if abs(pose[0] - angle) <= 1 and abs(pose[1] - scale) <= 1]
    return [best_pose(cf, fa, near) for fa in fas]


def _consistency(cf: View, fa: View, fit: PoseFit) -> float:
    """Return the consistency of two views after their registration is refined on the vessels."""
    fa_to_cf = refine(cf, fa, raw_transform(cf, fa, fit), None)
    frame = common_square(cf, fa, fa_to_cf, WORK_SIZE)
    return render(cf, fa, frame, frame @ fa_to_cf, WORK_SIZE).consistency()
