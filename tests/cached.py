"""Results of a pure function, kept on disk for every worker of a test run."""

import hashlib
import pickle
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def cached(function: Callable[P, R], folder: Path, key: Callable[P, object]) -> Callable[P, R]:
    """Call `function` only where no worker has called it with arguments of an equal key; keys must be picklable."""
    folder.mkdir(parents=True, exist_ok=True)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        path = folder / hashlib.sha256(pickle.dumps(key(*args, **kwargs))).hexdigest()
        if not path.exists():
            with NamedTemporaryFile(dir=folder, delete=False) as stream:
                pickle.dump(function(*args, **kwargs), stream)
            Path(stream.name).replace(path)
        return pickle.loads(path.read_bytes())

    return call
