"""`retipair app` refuses what it cannot use before it serves anything; its HTML escapes what files say."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from msgspec.structs import replace

import retipair
from browser import free_port
from conftest import write_prepared
from judging import write_generated
from refusals import Refused, raises_file
from retipair.config import AppConfig
from retipair.data.dataset import read_dataset
from retipair.data.manifest import read_manifest, write_manifest
from retipair.interfaces.app import app as command
from retipair.interfaces.app import fragments
from retipair.interfaces.app.comparing import ComparedPair, compare_pair
from retipair.interfaces.app.scoring import Nearest, References
from retipair.interfaces.app.words import EN, ZH, Words
from retipair.interfaces.app.workbench import Workbench, typed_path
from retipair.interfaces.cli import VERBS
from retipair.runtime.errors import MissingError, UserError
from retipair.vision.modality import find_modalities

HOSTILE = "<img/src=x onerror=alert(1)>"


@pytest.fixture
def with_gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if gradio were installed: the checks come before it is imported."""
    original = find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: original("json") if name == "gradio" else original(name))


def test_without_gradio_the_extra_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'retipair[app]'" in refused("app")


@pytest.mark.usefixtures("with_gradio")
def test_a_port_in_use_or_out_of_range_is_refused(refused: Refused) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        line = refused("app", "--port", other.getsockname()[1])
    assert "in use" in line
    assert line.setting == "port"
    assert refused("app", "--port", 80).setting == "port"
    assert refused("app", "--port", 65536).setting == "port"


@pytest.mark.usefixtures("with_gradio")
@pytest.mark.parametrize("flags", [("{}",), ("--real", "{}"), ("--adapter", "{}"), ("--base", "{}")])
def test_what_does_not_exist_is_refused_by_name(flags: tuple[str, ...], refused: Refused, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert str(missing) in refused("app", *(flag.format(missing) for flag in flags), "--port", free_port())


def test_telemetry_is_off_and_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"no_proxy": "intranet"})
    command.prepare_environment(Path("/somewhere"))
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_TEMP_DIR"] == "/somewhere"
    assert os.environ["no_proxy"] == "intranet,127.0.0.1"
    assert os.environ["NO_PROXY"] == "127.0.0.1"


def test_everything_but_the_page_works_without_gradio() -> None:
    """So that errors of folders and adapters come first, and the tests of the logic need no gradio."""
    script = (
        "import sys; sys.modules['gradio'] = None\n"
        "from importlib import import_module\n"
        "for name in sys.argv[1:]:\n"
        "    import_module(f'retipair.interfaces.app.{name}')"
    )
    modules = {path.stem for path in Path(command.__file__).parent.glob("*.py")} - {"page", "__init__"}
    environment = {**os.environ, "PYTHONPATH": str(Path(retipair.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script, *modules], check=True, env=environment)


def test_the_command_is_a_verb() -> None:
    [verb] = [verb for verb in VERBS if verb.config is AppConfig]
    assert (verb.name, verb.function) == ("app", "interfaces.app.app:app")


def test_the_workbench_names_the_commands(tmp_path: Path, trained: Callable[[str], Path]) -> None:
    write_prepared(tmp_path / "real", ["train", "val"])
    new = write_generated(tmp_path / "new pairs", 2)
    adapter = trained("sd15") / "out_joint_sd15_cffa_pairs/exp"
    bench = Workbench(AppConfig(pairs=new, real=tmp_path / "real", adapter=adapter), tmp_path)
    generated = bench.last
    assert generated is not None
    assert bench.command(generated) == f"retipair app '{new}' --real {tmp_path}/real --adapter {adapter}"
    other = Workbench(AppConfig(pairs=new, base="tiny-sdxl", port=7000, language="zh", device="cpu"), tmp_path)
    assert bench.opened.keys() == other.opened.keys()
    assert other.command(generated) == f"retipair app '{new}' --base tiny-sdxl --port 7000 --language zh --device cpu"
    assert (
        bench.review_commands(generated)[0]
        == f"retipair evaluate --real {tmp_path}/real --generated '{new}' --reviewed"
    )
    real = bench.open(tmp_path / "real")
    assert bench.review_commands(real)[0] == f"retipair evaluate --real {tmp_path}/real --reviewed"
    assert [warning for warning in bench.warnings if "the adapter is untrained" in warning]  # best at step 0
    assert other.review_commands(real)[1] == (
        f"retipair train -n NAME --data {tmp_path}/real --base tiny-sdxl --reviewed"
    )
    assert bench.is_temporary(tmp_path / "upload.png")
    with pytest.raises(MissingError):
        bench.open(tmp_path / "nowhere")
    assert bench.last is real
    assert bench.opened[new] is generated  # which another window of the browser may still show
    bench.open(new)
    assert bench.last is not generated
    assert bench.last.folder == new


def test_a_folder_is_not_evaluated_against_itself(tmp_path: Path) -> None:
    """Its manifest lists real and generated pairs, and its own real pairs are the references."""
    folder = write_prepared(tmp_path / "mixed", ["train", "train", "val"])
    records = list(read_manifest(folder))
    write_manifest(folder, [*records[:2], replace(records[2], mode="noise")])
    bench = Workbench(AppConfig(pairs=folder), tmp_path)
    mixed = bench.last
    assert mixed is not None
    assert mixed.references.source == folder
    assert bench.review_commands(mixed)[0] == f"retipair evaluate --real {folder} --reviewed"


@pytest.mark.parametrize("typed", ["~nosuchuser/pairs", "a" * 300, "a\0b"])
def test_a_text_that_cannot_be_a_path_is_a_user_error(typed: str) -> None:
    with pytest.raises(UserError, match="not a path of a folder"):
        typed_path(typed)


def test_a_typed_path_may_have_spaces_around_it(tmp_path: Path) -> None:
    folder = tmp_path / " eyes "
    folder.mkdir()
    assert typed_path(str(folder)) == folder
    assert typed_path(f"  {tmp_path}\n") == tmp_path


def test_a_folder_that_begins_with_a_dash_is_no_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared(Path("-dash"), ["train", "val"])
    bench = Workbench(AppConfig(pairs=Path("-dash")), tmp_path)
    assert bench.last is not None
    assert bench.command(bench.last) == "retipair app ./-dash"
    assert bench.review_commands(bench.last)[0] == "retipair evaluate --real ./-dash --reviewed"


def test_the_real_folder_must_show_the_same_modalities_as_evaluate_says(refused: Refused, tmp_path: Path) -> None:
    real = write_prepared(tmp_path / "real", ["train", "train"])
    new = write_generated(tmp_path / "new", 2)
    write_manifest(new, [replace(record, modalities=["red_free", "octa"]) for record in read_manifest(new)])
    with raises_file(new) as caught:
        Workbench(AppConfig(pairs=new, real=real), tmp_path)
    line = refused("evaluate", "--real", real, "--generated", new, "--out", tmp_path / "out")
    assert str(caught.value) == str(line.error)


def test_references_are_read_again_after_the_real_folder_was_prepared_again(tmp_path: Path) -> None:
    real = write_prepared(tmp_path / "real", ["train"] * 3)
    new = write_generated(tmp_path / "new", 2)
    bench = Workbench(AppConfig(pairs=new, real=real), tmp_path)
    before = bench.last
    assert before is not None
    assert not before.is_outdated
    write_manifest(real, [replace(record, consistency=0.9) for record in read_manifest(real)])
    assert before.is_outdated
    assert bench.open(new).references.real == (0.9, 0.9)


def test_views_are_named_by_their_modalities() -> None:
    pair = ComparedPair(*["data:image/png;base64,"] * 4)
    usual = fragments.pair_figure(EN, pair, "x")
    assert "Photograph (CF)" in usual
    assert "only in FA" in usual
    other = fragments.pair_figure(EN, pair, "x", find_modalities(["red_free", "octa"]))
    assert "only in en face OCT angiogram" in other
    assert "CF" not in other


@pytest.mark.parametrize("words", [EN, ZH])
def test_what_files_and_messages_say_is_text_not_html(words: Words, prepared: Path) -> None:
    [record, *_] = read_dataset(prepared)
    hostile = replace(record, id=HOSTILE)
    pair = ComparedPair(*["data:image/png;base64,"] * 4)
    references = References(source=Path(HOSTILE), known=[hostile])
    made = [
        fragments.pair_figure(words, pair, HOSTILE),
        *(fragments.scores(words, 0.4, references, Nearest(hostile, value), True) for value in (0.2, 0.9)),
        fragments.command(words, HOSTILE),
        fragments.note(HOSTILE, "warning"),
    ]
    for html in made:
        assert "<img/src=x" not in html
        assert "&lt;img/src=x" in html


def test_a_copy_is_shown_with_its_training_pair(prepared: Path) -> None:
    [record, *_] = read_dataset(prepared)
    references = References(known=[record])
    copied = fragments.scores(EN, 0.5, references, Nearest(record, 0.8), True)
    assert 'role="alert"' in copied
    assert compare_pair(record).fa in copied
    other = fragments.scores(EN, 0.5, references, Nearest(record, 0.3), True)
    assert "Nearest training pair: eye0, similarity 0.30" in other
    assert "alert" not in other
    assert EN.no_copy_search in fragments.scores(EN, 0.5, References(), None, True)
    assert EN.no_copy_search not in fragments.scores(EN, 0.5, References(), None, False)  # a pair of a given eye
