"""The walls of the house: imports point from a stage to what it stands on, and one room knows each library."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import retipair
from retipair.config import SystemName
from retipair.models.families import FAMILIES

SOURCE = Path(retipair.__file__).parent
FLOORS = (  # a module imports from its own room and from lower floors
    {"interfaces"},
    {"trials"},
    {"training"},
    {"generation", "matching"},
    {"evaluation"},
    {"preparation", "phantoms"},
    {"runs"},
    {"registration", "metrics"},
    {"models", "data"},
    {"diffusion", "vision"},
    {"config"},
    {"runtime"},
)
STAGES = set().union(*FLOORS[: FLOORS.index({"runs"}) + 1])
"""Rooms that read the settings; those below are handed plain values."""
COMMANDS = {
    "prepare": "preparation.prepare",
    "train": "training.train",
    "generate": "generation.generate",
    "merge": "generation.merge",
    "evaluate": "evaluation.evaluate",
    "runs": "evaluation.runs",
    "export matches": "matching.export",
    "export adapter": "runs.export_adapter",
    "export pairs": "preparation.export_pairs",
    "card": "evaluation.card",
    "register": "preparation.register",
    "utility": "matching.utility.utility",
    "phantom": "phantoms.phantom",
    "app": "interfaces.app.app",
    "bench": "trials.bench",
    "demo": "trials.demo",
}
PLACES = {  # library -> the room that may know it
    "diffusers": "models/",
    "transformers": "models/",
    "peft": "models/",
    "tokenizers": "models/",
    "cv2": "registration/",
    "h5py": "matching/",
    "pydicom": "data/",
    "roifile": "registration/",
    "pyarrow": "data/",
    "gradio": "interfaces/app/page.py",
    "tyro": ("interfaces/cli.py", "config/"),
}


def module_name(path: Path) -> str:
    """As imports say it: data.layout for data/layout.py, data for data/__init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in SOURCE.rglob("*.py")}


@cache
def imports(name: str) -> frozenset[str]:
    """The full names that a module imports, wherever in it: at the top, inside functions, for the type checker."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide where they point"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def of_ours(name: str) -> frozenset[str]:
    """The modules of this package that a module imports."""
    ours = set()
    for full in imports(name):
        if full.startswith("retipair."):
            inside = full.removeprefix("retipair.")
            while inside and inside not in modules():  # the last parts may be names within the module
                inside = inside.rpartition(".")[0]
            ours.add(inside)
    return frozenset(ours - {""})


def room_of(name: str) -> str:
    return name.partition(".")[0]


def floor_of(room: str) -> int:
    [floor] = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    return floor


def in_rooms() -> Iterator[str]:
    """Every module but the package itself and `python -m retipair`."""
    return (name for name in modules() if name not in ("", "__main__"))


def test_every_folder_and_file_is_on_a_floor() -> None:
    entries = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    assert entries - {"__init__", "__main__"} == set().union(*FLOORS)
    assert len(entries) <= 20
    assert set(COMMANDS.values()) < set(modules())


def test_imports_go_down_the_floors_only() -> None:
    upwards = {
        f"{name} -> {other}"
        for name in in_rooms()
        for other in of_ours(name)
        if room_of(other) != room_of(name) and floor_of(room_of(other)) <= floor_of(room_of(name))
    }
    assert not upwards


def test_only_the_stages_read_the_settings() -> None:
    reading = {name for name in in_rooms() if "config" in of_ours(name)}
    assert {room_of(name) for name in reading} - {"config"} <= STAGES


def test_commands_are_imported_when_they_run() -> None:
    assert {name for name in modules() if "interfaces.cli" in of_ours(name)} == {"__main__"}
    assert {room_of(name) for name in of_ours("interfaces.cli")} == {"config", "runtime"}


def test_imports_have_no_circles() -> None:
    graph = {name: of_ours(name) - {name} for name in modules()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules())


@pytest.mark.parametrize("library", PLACES)
def test_each_library_is_known_in_one_place(library: str) -> None:
    knowing = {
        modules()[name].relative_to(SOURCE).as_posix()
        for name in modules()
        if any(full.partition(".")[0] == library for full in imports(name))
    }
    assert knowing
    assert {path for path in knowing if not path.startswith(PLACES[library])} == set()


def naming_a_system(source: str) -> set[int]:
    """Lines with "sdxl" or "sd15" in them as a word of its own, in a comparison, a table, a list, an argument."""
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {node.lineno for node in constants if node.value in FAMILIES}


def choices_of_settings(source: str) -> set[int]:
    """Lines that declare a setting's choices and default, which is all that the config may say of systems."""
    tree = ast.parse(source)
    declared = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)}
    return declared | {node.lineno for node in tree.body if isinstance(node, ast.Assign)}


def test_only_the_model_room_asks_which_system_it_is() -> None:
    asking = set()
    for name, path in modules().items():
        if room_of(name) == "models":
            continue
        source = path.read_text(encoding="utf-8")
        allowed = choices_of_settings(source) if room_of(name) == "config" else set()
        asking |= {f"{name}, line {line}" for line in naming_a_system(source) - allowed}
        asking |= {f"{name} imports {full}" for full in imports(name) if full.endswith((".SDXL", ".SD15"))}
    assert not asking
    assert set(get_args(SystemName)) == set(FAMILIES)


@pytest.mark.parametrize(
    "source",
    [
        "x = system == 'sdxl'",
        "x = {'sdxl': 1, 'sd15': 2}[system]",
        "for one in ['sdxl', 'sd15']: pass",
        "match system:\n  case 'sd15': pass",
        "x = system.startswith('sd15')",
        "def f(system='sdxl'): pass",
    ],
)
def test_every_way_to_ask_is_seen(source: str) -> None:
    assert naming_a_system(source)


def test_preparing_never_waits_for_torch() -> None:
    script = "import sys, retipair.preparation.prepare\nprint('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"


def test_help_and_refusals_never_wait_for_torch() -> None:
    script = (
        "import sys; from retipair.interfaces.cli import main\n"
        "for line in (['--help'], ['--version'], *([verb, '--help'] for verb in sys.argv[1:])):\n"
        "    assert main(line) == 0, line\n"
        "assert main(['train', '-n', 'x', '--nonsense']) == 2\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'cv2', 'skimage'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script, *sorted(COMMANDS)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("folder", ["recipes", "benchmarks", "tests/fuzz", "docs"])
def test_scripts_import_what_exists(folder: str) -> None:
    """Most scripts run for hours or need a GPU, so no other test would notice a name that was moved."""
    missing = []
    for path in sorted((Path(__file__).parent.parent / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retipair"):
                module = import_module(str(node.module))
                missing += [
                    f"{path.name}: {node.module}.{name.name}" for name in node.names if not exists(module, name.name)
                ]
    assert missing == []


def exists(module: ModuleType, name: str) -> bool:
    return hasattr(module, name) or find_spec(f"{module.__name__}.{name}") is not None
