"""Generate registered pairs of colour fundus photographs and fluorescein angiograms with Stable Diffusion and LoRA.

All commands but `bench`, `demo` and `runs` are available from Python: as the functions `phantom`, `prepare`,
`register`, `register_folder`, `train`, `evaluate`, `export_matches`, `export_adapter` and `utility`, and `generate` as
the class `PairGenerator`. `load_pairs`, `Pair`, `PairDataset` and `WarpedPairs` give access to pairs in memory. Large
libraries are imported when they are first used. Nothing is printed unless `verbose=True`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retipair.runtime.library_logging import quiet_import

if TYPE_CHECKING:
    from retipair.api import (
        LoadedPair,
        PairGenerator,
        evaluate,
        export_adapter,
        export_matches,
        load_pairs,
        phantom,
        prepare,
        register,
        register_folder,
        train,
        utility,
    )
    from retipair.data.pair import Pair
    from retipair.data.torch_dataset import PairDataset
    from retipair.evaluation.scores import Scores
    from retipair.matching.torch_dataset import WarpedPairs
    from retipair.matching.warps import WarpRanges
    from retipair.preparation.registered import RegisteredPair
    from retipair.runs.run_dir import Run
    from retipair.runtime.errors import Stopped, UserError

__version__ = "0.1.0"
__all__ = [
    "LoadedPair",
    "Pair",
    "PairDataset",
    "PairGenerator",
    "RegisteredPair",
    "Run",
    "Scores",
    "Stopped",
    "UserError",
    "WarpRanges",
    "WarpedPairs",
    "evaluate",
    "export_adapter",
    "export_matches",
    "load_pairs",
    "phantom",
    "prepare",
    "register",
    "register_folder",
    "train",
    "utility",
]
_MODULES = {
    "Pair": "retipair.data.pair",
    "PairDataset": "retipair.data.torch_dataset",
    "RegisteredPair": "retipair.preparation.registered",
    "Run": "retipair.runs.run_dir",
    "Scores": "retipair.evaluation.scores",
    "Stopped": "retipair.runtime.errors",
    "UserError": "retipair.runtime.errors",
    "WarpRanges": "retipair.matching.warps",
    "WarpedPairs": "retipair.matching.torch_dataset",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'retipair' has no attribute {name!r}")
    with quiet_import():
        module = import_module(_MODULES.get(name, "retipair.api"))
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
