"""Which eyes train, which validate, which are kept for the end: by patient or eye, never by image."""

from collections.abc import Sequence

import numpy as np

from retipair.data.manifest import Split
from retipair.errors import UserError


def split_groups(groups: Sequence[str], val_fraction: float, test_fraction: float, seed: int) -> dict[str, Split]:
    """Assign every group (a patient, or an eye where the patient is unknown) to one side.

    Each non-zero fraction gets at least one group and training keeps at least one.
    Raises UserError when there are too few groups for the sides asked for.
    """
    names = sorted(set(groups))
    n_val, n_test = (_share(fraction, len(names)) for fraction in (val_fraction, test_fraction))
    if len(names) <= n_val + n_test:
        raise UserError(
            f"only {len(names)} eye(s) or patient(s) for {1 + (n_val > 0) + (n_test > 0)} sides of the split; "
            "add pairs of other eyes, or name the eyes in eyes.csv (columns id,eye) if they are told apart wrongly"
        )
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    sides: list[Split] = ["val"] * n_val + ["test"] * n_test + ["train"] * (len(names) - n_val - n_test)
    return dict(zip(order, sides, strict=True))


def _share(fraction: float, total: int) -> int:
    return max(1, round(fraction * total)) if fraction > 0 else 0
