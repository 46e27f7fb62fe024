"""retipair: registered pairs of colour fundus photographs and fluorescein angiograms, from a hundred to thousands.

The commands as Python calls: `phantom`, `prepare`, `train`, `PairGenerator`, `evaluate`; and pairs in memory:
`load_pairs`, `Pair`, `PairDataset`. Nothing heavy is imported before it is used, and nothing is printed unless
`verbose=True`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retipair.runtime.library_logging import quiet_import

if TYPE_CHECKING:
    from retipair.api import LoadedPair, PairGenerator, evaluate, load_pairs, phantom, prepare, train
    from retipair.data.pair import Pair
    from retipair.data.torch_dataset import PairDataset
    from retipair.evaluation.scores import Scores
    from retipair.runs.run_dir import Run
    from retipair.runtime.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "LoadedPair",
    "Pair",
    "PairDataset",
    "PairGenerator",
    "Run",
    "Scores",
    "UserError",
    "evaluate",
    "load_pairs",
    "phantom",
    "prepare",
    "train",
]
_PLACES = {
    "Pair": "retipair.data.pair",
    "PairDataset": "retipair.data.torch_dataset",
    "Run": "retipair.runs.run_dir",
    "Scores": "retipair.evaluation.scores",
    "UserError": "retipair.runtime.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'retipair' has no attribute {name!r}")
    with quiet_import():
        module = import_module(_PLACES.get(name, "retipair.api"))
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
