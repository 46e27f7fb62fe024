"""The command line: every setting explains itself; an error is a message with a remedy, and a status."""

import ast
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

import retipair
from refusals import Refused
from retipair.interfaces import cli
from retipair.interfaces.cli import VERBS, Verb, main
from retipair.runtime import schema
from retipair.runtime.errors import UserError

POSITIONAL = {"raw", "real", "out", "what", "pairs", "paths", "adapter", "results", "directory"}
WITH_POSITIONAL = {
    *("runs", "prepare", "register", "export matches", "export adapter", "export pairs"),
    *("merge", "card", "utility", "phantom", "demo", "bench", "app"),
}


def explanations(settings: type) -> dict[str, str]:
    """The string under each field."""
    body = ast.parse(inspect.getsource(settings)).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: text.value.value  # type: ignore[attr-defined]
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def letters(text: str) -> str:
    """Text without what a help screen puts between words: spaces, line ends, frames."""
    return re.sub(r"[\s│╭╮╰╯─]+", "", text)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_shows_every_setting_with_its_explanation(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb.name, "--help"]) == 0
    shown = letters(capsys.readouterr().out)
    explained = explanations(verb.config)
    assert set(explained) == set(inspect.signature(verb.config).parameters)  # none without an explanation
    for name, text in explained.items():
        assert letters(text) in shown, name
        positional = name in POSITIONAL and verb.name in WITH_POSITIONAL
        assert positional or f"--{name}" in shown


def test_help_lists_the_verbs_with_a_phrase_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    for verb in VERBS:
        assert letters(f"{verb.name}{verb.summary}") in letters(alone)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"retipair {retipair.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "-n", "x", "--max_stepz", "3"),
        ("generate", "-n", "x", "--frobnicate"),
        ("prepare", "raw", "out", "--frobnicate"),
        ("train", "-n", "x", "--data", "there", "stray"),
    ],
)
def test_an_unknown_flag_is_refused_by_name(refused: Refused, words: tuple[str, ...]) -> None:
    line = refused(*words)
    unknown = next(word for word in words if word in ("--max_stepz", "--frobnicate", "stray"))
    assert unknown in line
    assert f"retipair {words[0]} --help" in line


FLAGS = [
    (verb.name, field.name)
    for verb in VERBS
    for field in fields(verb.config)
    if not (field.name in POSITIONAL and verb.name in WITH_POSITIONAL)
]


def test_a_mistyped_flag_of_any_command_is_answered_by_the_right_one(refused: Refused) -> None:
    for verb, name in FLAGS:
        for typed in (f"--{name}x", f"--{name}x=3", f"-{name}x", f"--{name.upper()}"):
            if typed.startswith(("-n", "-h")):
                continue  # which are -n and -h, with what follows for a value
            line = refused(verb, typed)
            assert f"unknown argument '{typed.partition('=')[0]}'; did you mean --{name}?" in line
            assert f"retipair {verb} --help" in line


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_a_mistyped_command_is_answered_by_the_right_one(refused: Refused, verb: str) -> None:
    for typed in (verb[:-1], verb[:2] + verb[3:], verb[1] + verb[0] + verb[2:], verb.upper(), f"{verb}s"):
        assert f"no command '{typed}'; did you mean {verb}?" in refused(typed, "-n", "x")
    first, _, second = verb.partition(" ")
    if second:
        assert f"did you mean {first}?" in refused(f"{first}t", second)
        assert second in refused(first, f"{second}x")


def test_the_issues_example_is_answered(refused: Refused) -> None:
    assert "did you mean --max_steps?" in refused("train", "-n", "x", "--max_step", "3")
    assert "did you mean" not in refused("train", "-n", "x", "--quite_another_thing", "3")


def test_values_that_look_like_flags_and_hyphens_are_left_alone() -> None:
    _, settings = cli._parse(["train", "-nx", "--max-steps=3", "--learning_rate", "-1e-5", "--prompt=--an eye"])
    assert (settings.name, settings.max_steps, settings.learning_rate) == ("x", 3, -1e-5)
    assert settings.prompt == "--an eye"


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("train", "same command with --resume to continue"),
        ("bench", "bench saves nothing"),
        ("generate", "same command to continue"),
    ],
)
def test_an_interruption_says_what_is_left(
    verb: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", interrupt)
    assert main([verb, *(["train"] if verb == "bench" else ["-n", "x"])]) == 130
    message = capsys.readouterr().err
    assert said in message
    assert ("--resume" in message) == (verb == "train")


@pytest.mark.parametrize("words", [("nonsense",), ("--frobnicate",), ("trian", "-n", "x")])
def test_an_unknown_verb_is_refused_by_name(refused: Refused, words: tuple[str, ...]) -> None:
    line = refused(*words)
    assert words[0] in line
    assert "retipair --help" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train",), "name"),
        (("train", "-n"), "name"),
        (("train", "-n", "x", "--max_steps", "many"), "--max_steps"),
        (("train", "-n", "x", "--lora_targets", "some"), "lora_targets"),
        (("generate", "-n", "x", "--mode", "dream"), "mode"),
    ],
)
def test_missing_and_unreadable_values_end_with_status_2(
    words: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def verb(settings: object) -> None:
        raise error

    module = type("Module", (), {"generate": staticmethod(verb)})
    monkeypatch.setattr(cli, "import_module", lambda name: module)


def test_our_own_mistake_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RETIPAIR_DEBUG", raising=False)
    fail_with(monkeypatch, ZeroDivisionError("first line\nsecond line"))
    assert main(["generate", "-n", "x"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "ZeroDivisionError: first line" in line
    assert "RETIPAIR_DEBUG=1" in line
    monkeypatch.setenv("RETIPAIR_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["generate", "-n", "x"])


def test_an_error_of_the_user_is_its_message_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETIPAIR_DEBUG", "1")  # even then: there is nothing to debug
    fail_with(monkeypatch, UserError("eye.png: no such file"))
    assert main(["generate", "-n", "x"]) == 2
    assert capsys.readouterr().err == "retipair: eye.png: no such file\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_outside_the_work_that_finishes_is_128_and_its_number(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def receive(name: str) -> object:
        signal.raise_signal(number)
        raise AssertionError("the signal was ignored")

    monkeypatch.setattr(cli, "import_module", receive)
    monkeypatch.setattr("retipair.runtime.signals._early_signals", [])
    before = signal.signal(number, signal.SIG_DFL)  # a test run in the background ignores SIGINT
    try:
        assert main(["generate", "-n", "x"]) == status
    finally:
        signal.signal(number, before)


def test_the_status_reaches_the_shell() -> None:
    def status(*words: str) -> int:
        environment = {**os.environ, "PYTHONPATH": str(Path(retipair.__file__).parent.parent)}
        command = [sys.executable, "-m", "retipair", *words]
        return subprocess.run(command, capture_output=True, env=environment).returncode

    assert status("--version") == 0
    assert status("train", "-n", "x", "--frobnicate") == 2


def values_of(hint: Any) -> list[Any]:
    """Values of every kind that a setting of this type can have."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) is tuple:
        return [tuple(values_of(part)[0] for part in get_args(hint) if part is not ...)]
    if get_args(hint):
        return [value for one in get_args(hint) for value in values_of(one)]
    examples: dict[Any, list[Any]] = {Path: [Path("a folder/x")], str: ["text"], int: [7], float: [0.25]}
    return {**examples, bool: [True, False], NoneType: [None]}[hint]


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(v.config, f.name, id=f"{v.name}-{f.name}") for v in cli.VERBS for f in fields(v.config)],
)
def test_every_setting_survives_json(kind: type, name: str) -> None:
    hints = get_type_hints(kind)
    needed = {field.name: values_of(hints[field.name])[0] for field in fields(kind) if field.default is MISSING}
    for value in values_of(hints[name]):
        settings = kind(**{**needed, name: value})
        again = schema.from_values(kind, json.loads(json.dumps(schema.to_values(settings))), "here")
        assert again == settings
        assert type(getattr(again, name)) is type(value)


@pytest.mark.parametrize("kind", [verb.config for verb in cli.VERBS])
def test_unknown_settings_are_refused(kind: type) -> None:
    with pytest.raises(UserError, match=r"config\.json: unknown key 'more'"):
        schema.from_values(kind, {"more": 1}, "config.json")


def test_windows_is_refused_plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["phantom", "nowhere"]) == 2
    assert "WSL 2" in capsys.readouterr().err
