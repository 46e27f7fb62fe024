"""What the documents say is so: flags, commands, links, and the same content in both languages."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import retipair
from conftest import TRAIN_QUICKLY
from eyes import draw_pair, write_raw
from judging import write_generated
from reference import reference
from retipair.data.pair import load_image, save_image
from retipair.interfaces.cli import main

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
TRANSLATED = (READMES, ("docs/guide.md", "docs/guide.zh-CN.md"), ("docs/app.md", "docs/app.zh-CN.md"))
PAGES = sorted(path.relative_to(ROOT).as_posix() for folder in (".", "docs") for path in (ROOT / folder).glob("*.md"))


def test_the_reference_is_what_help_says() -> None:
    assert (ROOT / "docs/reference.md").read_text() == reference(), "run `make reference`"


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Every command of ours in a page's bash blocks, as typed, comments and prompts aside."""
    blocks = code_blocks(page, "bash")
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and (line[0] == "retipair" or line[:1] == ["python"])]


def ours(command: list[str]) -> list[str]:
    """`python train.py ...` and `retipair train ...` -> arguments of main."""
    entry = {"train.py": "train", "test_gen.py": "generate"}
    return command[1:] if command[0] == "retipair" else [entry[command[1]], *command[2:]]


def test_commands_of_readme_and_guide_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, but for a tiny base in place of SDXL and fewer steps and pairs; other tests run demo and app."""
    monkeypatch.chdir(tmp_path)
    write_raw(Path("eyes"), 2, size=192)
    save_image(Path("photo.jpg"), draw_pair(0, 192)[0])
    smaller = {
        "prepare": ["--size", "128"],
        "train": ["--base", "random:tiny-sdxl", *TRAIN_QUICKLY],
        "generate": ["--steps", "2", "--amount", "2"],
        "evaluate": [],
        "phantom": ["--size", "64", "--amount", "2"],
        "bench": ["--base", "random:tiny-sd15", "--repeats", "1", "--warmup", "0"],
        "export": ["--workers", "1"],
    }
    typed = [command for english, _ in TRANSLATED for command in commands(english)]
    typed = [command for command in typed if command[1] not in ("demo", "app")]
    for command in typed:
        verb, *rest = ours(command)
        assert main([verb, *rest, *smaller[verb]]) == 0, command
    assert {ours(command)[0] for command in typed} == set(smaller)
    assert Path("results/out_joint_sdxl_cffa_pairs_preds/first/new/2/cf_fa_chessboard.png").is_file()
    assert Path("pairs/contact_sheet.png").is_file()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            place = page.parent / target if target else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@pytest.mark.parametrize("pages", TRANSLATED)
def test_both_languages_have_the_same_commands_code_and_parts(pages: tuple[str, str]) -> None:
    english, chinese = pages
    assert commands(english) == commands(chinese)
    assert code_blocks(english, "python") == code_blocks(chinese, "python")
    for mark in (r"^## ", r"^```", r"^\|", r"^- ", r"\]\("):
        counts = [len(re.findall(mark, (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)) for page in pages]
        assert counts[0] == counts[1], mark


@pytest.mark.parametrize("page", [page for pages in TRANSLATED for page in pages])
def test_flags_that_pages_name_exist(page: str) -> None:
    flags = set(re.findall(r"`(--\w+)", (ROOT / page).read_text(encoding="utf-8")))
    assert flags <= set(re.findall(r"--\w+", reference()))


def test_contributing_names_every_room_and_file() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    places = [path for path in (ROOT / "src/retipair").iterdir() if not path.name.startswith("__")]
    for path in places:
        if path.suffix == ".py" or list(path.glob("*.py")):
            assert re.search(rf"\b{path.stem}\b", text), f"{path.name} has no phrase in CONTRIBUTING.md"


def test_the_api_page_names_every_public_name() -> None:
    named = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(retipair.__all__)


def picture_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_picture", ROOT / "docs/make_picture.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["pairs.png", "angiogram.png"])
def test_the_readmes_pictures_are_small_and_marked_synthetic(name: str) -> None:
    path = ROOT / "docs" / name
    assert path.stat().st_size < 400_000
    with Image.open(path) as picture:
        assert picture.info["Synthetic"].startswith("yes")


def test_make_picture_draws_cf_fa_and_checkerboard(tmp_path: Path) -> None:
    make_picture, out = picture_script().make_picture, tmp_path / "pairs.png"
    folder = write_generated(tmp_path / "new", 2)
    with pytest.raises(ValueError, match="not marked as synthetic"):
        make_picture(folder, ["1"], out)
    for path in folder.glob("*/*.png"):
        save_image(path, load_image(path, "RGB"), {"Synthetic": "yes: in a test"})
    with pytest.raises(ValueError, match="no pair 77"):
        make_picture(folder, ["77"], out)

    make_picture(folder, ["2", "1", "1", "2"], out)
    cf = load_image(folder / "2/cf.png", "RGB").astype(int)
    side = len(cf)
    with Image.open(out) as picture:
        assert picture.size == (6 * side + 20, 2 * side + 4)
        assert picture.info["Synthetic"] == "yes: in a test"
        assert np.abs(np.asarray(picture.convert("RGB"))[:side, :side] - cf).mean() < 4


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As typed, but for a tiny base in place of SDXL and fewer steps and pairs, on the CPU."""
    monkeypatch.chdir(tmp_path)
    write_raw(Path("eyes"), 3, size=192)
    [block] = code_blocks(READMES[0], "python")
    quick = 'base="random:tiny-sdxl", num_samples=0, augment_variants=1, max_steps=2'
    smaller = {
        'prepare("eyes", "pairs")': 'prepare("eyes", "pairs", size=128, workers=1)',
        "max_steps=15_000": quick,
        "from_pretrained(run)": 'from_pretrained(run, device="cpu", steps=2)',
        "sample(1000, seed=0)": "sample(2, seed=0)",
        ', "results/out_joint_sdxl_cffa_pairs_preds/first/new"': "",
    }
    for typed, small in smaller.items():
        assert typed in block
        block = block.replace(typed, small)
    made: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), made)
    assert made["pair"].cf.shape == (128, 128, 3)  # type: ignore[attr-defined]
    assert len(made["dataset"]) == len(made["warped"]) == 2  # type: ignore[arg-type]


def run_tutorial(**smaller: str) -> dict[str, Any]:
    """Execute the notebook's code cells in order, as Jupyter would, and return the variables."""
    cells = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for typed, small in smaller.items():
        assert source.count(typed) == 1
        source = source.replace(typed, small)
    made: dict[str, Any] = {}
    exec(compile(source, "tutorial.ipynb", "exec"), made)
    return made


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for a tiny base, fewer eyes, steps and pairs."""
    monkeypatch.chdir(tmp_path)
    made = run_tutorial(
        **{'"tiny-sdxl", 256': '"random:tiny-sdxl", 128', "= 8, 20, 4": "= 2, 2, 1", "steps=20": "steps=2"}
    )
    assert made["pair"].cf.shape == (128, 128, 3)
    assert Path("tutorial/evaluation/report.html").is_file()


@pytest.mark.nightly
def test_the_tutorial_generates_matching_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, to the letter: about two minutes."""
    monkeypatch.chdir(tmp_path)
    made = run_tutorial()
    best = json.loads((made["run"].folder / "best_checkpoint/reason.json").read_text())
    assert best["step"] == made["steps"]
    pairs = list(retipair.load_pairs(made["generated"]))
    assert len(pairs) == made["amount"]
    assert np.mean([pair.consistency() for pair in pairs]) > 0.3


def test_the_tutorial_is_committed_without_outputs_and_explains_every_cell() -> None:
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(kinds)
    assert not any(cell.get("outputs") for cell in notebook["cells"])


def test_contributing_names_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source = ROOT / "src/retipair"
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        assert (ROOT / path).is_file() or (source / path).is_file(), path
    for path, name in re.findall(r"`([a-z_]+/[a-z_]+\.py)`, `([A-Za-z_.]+)`", text):
        last = name.rpartition(".")[2]
        assert re.search(rf"(def|class) {last}\b", (source / path).read_text()), f"{path}: {name}"
