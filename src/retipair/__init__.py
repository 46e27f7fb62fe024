"""Generate registered pairs of colour fundus photographs and fluorescein angiograms with Stable Diffusion and LoRA.

All commands but `app`, `bench` and `demo` are available from Python: as the functions `phantom`, `prepare`, `register`,
`register_folder`, `train`, `evaluate`, `export_matches`, `export_adapter`, `export_pairs`, `merge`, `card`,
`compare_runs` and `utility`, and `generate` as the class `PairGenerator`. `load_pairs`, `Pair`, `PairDataset` and
`WarpedPairs` give access to pairs in memory. Large libraries are imported when they are first used. Messages go to the
logger `retipair`, and are printed with `verbose=True`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retipair.runtime.library_logging import quiet_import

if TYPE_CHECKING:
    from retipair.data.pair import Pair
    from retipair.data.torch_dataset import PairDataset
    from retipair.evaluation.compared_scores import ComparedScores
    from retipair.evaluation.runs import RunSummary
    from retipair.evaluation.scores import Scores
    from retipair.interfaces.api import (
        card,
        compare_runs,
        evaluate,
        export_adapter,
        export_matches,
        export_pairs,
        merge,
        phantom,
        prepare,
        register,
        register_folder,
        train,
        utility,
    )
    from retipair.interfaces.generator import PairGenerator
    from retipair.interfaces.loading import LoadedPair, load_pairs
    from retipair.matching.torch_dataset import WarpedPairs
    from retipair.matching.warps import WarpRanges
    from retipair.preparation.registered import RegisteredPair
    from retipair.runs.run_dir import Run
    from retipair.runtime.errors import Stopped, UserError

__version__ = "0.1.0"
__all__ = [
    "ComparedScores",
    "LoadedPair",
    "Pair",
    "PairDataset",
    "PairGenerator",
    "RegisteredPair",
    "Run",
    "RunSummary",
    "Scores",
    "Stopped",
    "UserError",
    "WarpRanges",
    "WarpedPairs",
    "card",
    "compare_runs",
    "evaluate",
    "export_adapter",
    "export_matches",
    "export_pairs",
    "load_pairs",
    "merge",
    "phantom",
    "prepare",
    "register",
    "register_folder",
    "train",
    "utility",
]
_MODULES = {
    "ComparedScores": "retipair.evaluation.compared_scores",
    "LoadedPair": "retipair.interfaces.loading",
    "Pair": "retipair.data.pair",
    "PairDataset": "retipair.data.torch_dataset",
    "PairGenerator": "retipair.interfaces.generator",
    "RegisteredPair": "retipair.preparation.registered",
    "Run": "retipair.runs.run_dir",
    "RunSummary": "retipair.evaluation.runs",
    "Scores": "retipair.evaluation.scores",
    "Stopped": "retipair.runtime.errors",
    "UserError": "retipair.runtime.errors",
    "WarpRanges": "retipair.matching.warps",
    "WarpedPairs": "retipair.matching.torch_dataset",
    "load_pairs": "retipair.interfaces.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'retipair' has no attribute {name!r}")
    with quiet_import():
        module = import_module(_MODULES.get(name, "retipair.interfaces.api"))
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
