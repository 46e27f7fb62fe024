"""Measure the views that the bundled bases were trained on, and write retipair.json into the folder of a base.

python recipes/views.py src/retipair/models/bundled/tiny-sdxl src/retipair/models/bundled/tiny-sd15
"""

import sys
import tempfile
from pathlib import Path

import denoiser
import folders

from retipair.config import PhantomConfig
from retipair.data.dataset import read_dataset
from retipair.models.trained_views import NAME, TrainedViews
from retipair.phantoms.phantom import phantom
from retipair.runtime.atomic_io import write_json
from retipair.runtime.schema import to_values
from retipair.training.description import measure_appearance

_EYES = 16
_SEED = 77


def measure() -> TrainedViews:
    """Return the facts about the views: the mean appearance of rendered eyes, with the cameras of the training."""
    with tempfile.TemporaryDirectory() as folder:
        eyes = phantom(PhantomConfig(out=Path(folder) / "eyes", amount=_EYES, size=folders.VIEW, seed=_SEED))
        appearance = measure_appearance(read_dataset(eyes), folders.VIEW)
    return TrainedViews(half_clean_fraction=denoiser.HALF_CLEAN_FRACTION, appearance=appearance)


def write_views(folder: Path, views: TrainedViews) -> None:
    """Write the facts about the views into the folder of a base."""
    write_json(folder / NAME, to_values(views))


if __name__ == "__main__":
    measured = measure()
    for name in sys.argv[1:]:
        write_views(Path(name), measured)
