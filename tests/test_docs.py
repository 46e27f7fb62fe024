"""What the documents say is so: flags, commands, links, and the same content in both languages."""

import re
import shlex
from pathlib import Path

import pytest

from conftest import TRAIN_QUICKLY
from eyes import write_raw
from reference import reference
from retipair.cli import main

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")


def test_the_reference_is_what_help_says() -> None:
    assert (ROOT / "docs/reference.md").read_text() == reference(), "run `make docs`"


def commands(readme: str) -> list[list[str]]:
    """Every command of ours in a README's bash blocks, as typed, comments and prompts aside."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / readme).read_text(), flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and (line[0] == "retipair" or line[:1] == ["python"])]


def ours(command: list[str]) -> list[str]:
    """`python train.py ...` and `retipair train ...` -> arguments of main."""
    entry = {"train.py": "train", "test_gen.py": "generate"}
    return command[1:] if command[0] == "retipair" else [entry[command[1]], *command[2:]]


def test_the_readmes_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, but for a tiny base in place of SDXL and fewer steps and pairs."""
    monkeypatch.chdir(tmp_path)
    write_raw(Path("eyes"), 2, size=192)
    smaller = {
        "prepare": ["--size", "128"],
        "train": ["--base", "random:tiny-sdxl", *TRAIN_QUICKLY],
        "generate": ["--steps", "2", "--amount", "2"],
        "evaluate": [],
        "phantom": ["--size", "64", "--amount", "2"],
        "bench": ["--base", "random:tiny-sd15", "--repeats", "1", "--warmup", "0"],
    }
    seen = set()
    for command in commands("README.md"):
        verb, *rest = ours(command)
        seen.add(verb)
        assert main([verb, *rest, *smaller[verb]]) == 0, command
    assert seen == set(smaller)
    assert Path("results/out_joint_sdxl_cffa_pairs_preds/first/new/2/cf_fa_chessboard.png").is_file()
    assert Path("pairs/contact_sheet.png").is_file()


@pytest.mark.parametrize("name", [*READMES, "docs/formats.md", "docs/metrics.md", "docs/benchmarks.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_both_readmes_have_the_same_commands_and_parts() -> None:
    english, chinese = ((ROOT / name).read_text() for name in READMES)
    assert commands(READMES[0]) == commands(READMES[1])
    for mark in (r"^## ", r"^```", r"^\|"):
        counts = [len(re.findall(mark, text, flags=re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], mark


def test_the_readme_names_every_module_and_flag_it_speaks_of() -> None:
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "src/retipair").glob("*.py"):
        assert path.name in text or path.name.startswith("__"), f"{path.name} has no phrase in the README"
    for room in (ROOT / "src/retipair").iterdir():
        if room.is_dir() and list(room.glob("*.py")):
            assert f"{room.name}/" in text, f"{room.name}/ has no phrase in the README"
    flags = set(re.findall(r"`(--\w+)", text))
    assert flags <= set(re.findall(r"--\w+", reference())) | {"--local"}


def test_both_readmes_show_the_same_python() -> None:
    blocks = [re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL) for name in READMES]
    assert blocks[0] == blocks[1]


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, but for a tiny base in place of SDXL and fewer steps and pairs, on the CPU."""
    monkeypatch.chdir(tmp_path)
    write_raw(Path("eyes"), 3, size=192)
    [block] = [
        b for b in re.findall(r"```python\n(.*?)```", (ROOT / READMES[0]).read_text(), re.DOTALL) if "train(" in b
    ]
    quick = 'base="random:tiny-sdxl", num_samples=0, augment_variants=1, max_steps=2'
    smaller = {
        'prepare("eyes", "pairs")': 'prepare("eyes", "pairs", size=128, workers=1)',
        "max_steps=15_000": quick,
        'run, device="cuda"': 'run, device="cpu", steps=2',
        "sample(1000, seed=0)": "sample(2, seed=0)",
        ', "results/out_joint_sdxl_cffa_pairs_preds/first/new"': "",
    }
    for typed, small in smaller.items():
        assert typed in block
        block = block.replace(typed, small)
    made: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), made)
    assert made["pair"].cf.shape == (128, 128, 3)  # type: ignore[attr-defined]
    assert len(made["dataset"]) == 2  # type: ignore[arg-type]


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source = ROOT / "src/retipair"
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        assert (ROOT / path).is_file() or (source / path).is_file(), path
    for path, name in re.findall(r"`([a-z_]+/[a-z_]+\.py)`, `([A-Za-z_.]+)`", text):
        last = name.rpartition(".")[2]
        assert re.search(rf"(def|class) {last}\b", (source / path).read_text()), f"{path}: {name}"
