"""Verb -> function, nothing else. Verbs are imported when they run, so that `--help` never waits for torch."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from io import StringIO
from typing import Annotated, Any, NoReturn, Union

import tyro

from retipair import __version__
from retipair.config import (
    BenchConfig,
    DemoConfig,
    EvaluateConfig,
    GenerateConfig,
    PhantomConfig,
    PrepareConfig,
    TrainConfig,
    check_values,
)
from retipair.runtime.atomic_io import check_places
from retipair.runtime.errors import Stopped, UserError, is_out_of_memory, printable
from retipair.runtime.signals import SigtermReceived, end_on_signals, ignore_signals
from retipair.runtime.threads import configure_threads


@dataclass(frozen=True)
class Verb:
    name: str
    config: type
    function: str
    summary: str


VERBS = (
    Verb("prepare", PrepareConfig, "preparation.prepare:prepare", "raw views -> aligned pairs"),
    Verb("train", TrainConfig, "training.train:train", "aligned pairs -> adapter"),
    Verb("generate", GenerateConfig, "generation.generate:generate", "adapter -> new pairs"),
    Verb(
        "evaluate",
        EvaluateConfig,
        "evaluation.evaluate:evaluate",
        "real and generated pairs -> scores and a report",
    ),
    Verb("phantom", PhantomConfig, "phantoms.phantom:phantom", "rendered eyes -> pairs whose answer is known"),
    Verb(
        "bench",
        BenchConfig,
        "benchmarking.bench:bench",
        "what a step, a pair, a judgement costs on this machine",
    ),
    Verb("demo", DemoConfig, "demo:demo", "the whole way on rendered eyes -> a report to look at"),
)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status, whatever signal still comes when that is decided."""
    status = main(argv)
    ignore_signals()
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 done, 1 our mistake, 2 yours (said in one line), 130 interrupted, 143 stopped by SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"retipair {__version__}")
        return 0
    if sys.platform == "win32":
        return _fail("Windows alone is not supported: install it in WSL 2, whose Linux is", status=2)
    end_on_signals()
    try:
        verb, config = _parse(arguments)
        check_values(config)
        if getattr(config, "offline", False):
            os.environ["HF_HUB_OFFLINE"] = "1"
        if chosen := configure_threads():
            print(chosen, file=sys.stderr)
        module, function = verb.function.split(":")
        getattr(import_module(f"retipair.{module}"), function)(config)
    except SystemExit as stop:  # tyro: 0 after --help, 2 after its own message
        return int(stop.code or 0)
    except UserError as error:
        return _fail(str(error), status=2)
    except KeyboardInterrupt as stop:
        word, status = ("stopped", 143) if isinstance(stop, SigtermReceived) else ("interrupted", 130)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return _fail(f"{word} with the other processes; if one of them failed, its own line says why", status)
        return _fail(f"{word}; {_after_interrupt(arguments)}", status)
    except Stopped as stop:
        return _fail(str(stop), 128 + stop.number)
    except BrokenPipeError:  # whoever read our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if said := _misplaced(error):
            return _fail(said, status=2)
        if os.environ.get("RETIPAIR_DEBUG"):
            raise
        return _fail(_explain(error), status=1)
    return 0


def _misplaced(error: Exception) -> str | None:
    """Say which file stands in a folder's place, or the reverse, if that is why the system failed."""
    try:
        if isinstance(error, OSError):
            check_places(error)
    except UserError as found:
        return str(found)
    return None


def _after_interrupt(arguments: Sequence[str]) -> str:
    """Say what is left of an interrupted command, and how to go on."""
    if arguments[:1] == ["bench"]:
        return "bench keeps nothing: start it again"
    more = " with --resume" if arguments[:1] == ["train"] else ""
    return f"what was saved is whole. The same command{more} goes on"


def _explain(error: Exception) -> str:
    """What is nobody's bad input: a full disk or memory, or a fault of ours."""
    if is_out_of_memory(error):
        return "out of memory; what was saved is whole. Lower --batch_size or --size, or close what else is running"
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, OSError):
        return f"{message}; mend that and run the same command again"
    return f"{message}; this is a fault of ours: RETIPAIR_DEBUG=1 shows where"


def _parse(arguments: Sequence[str]) -> tuple[Verb, Any]:
    if not arguments:
        arguments = ["--help"]
    if arguments[0] not in ("-h", "--help", *(verb.name for verb in VERBS)):
        meant = _did_you_mean(arguments[0], [verb.name for verb in VERBS])
        raise UserError(f"no command {arguments[0]!r};{meant} `retipair --help` lists them")
    for asked in (verb for verb in VERBS if verb.name == arguments[0]):
        _check_flags(asked, arguments[1:])
    commands: Any = Union[  # noqa: UP007 - built from a tuple
        tuple(Annotated[v.config, tyro.conf.subcommand(v.name, description=v.summary)] for v in VERBS)
    ]
    config, unknown = _in_one_line(
        lambda: tyro.cli(
            commands,
            prog="retipair",
            args=arguments,
            use_underscores=True,
            return_unknown_args=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        ),
        hint=f"`retipair {arguments[0]} --help` lists the flags",
    )
    verb = next(verb for verb in VERBS if isinstance(config, verb.config))
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r}; `retipair {verb.name} --help` lists the flags")
    return verb, config


def _check_flags(verb: Verb, arguments: Sequence[str]) -> None:
    """Refuse the first unknown --flag, before a missing or unreadable value is complained of."""
    known = ["--help", *(f"--{field.name}" for field in fields(verb.config))]
    for word in arguments:
        flag = word.partition("=")[0]
        if re.match(r"--?[A-Za-z]{2}", word) and not word.startswith(("-n", "-h")) and _spelt(flag) not in known:
            meant = _did_you_mean(f"--{_spelt(flag).lstrip('-')}", known)
            raise UserError(f"unknown argument {flag!r};{meant} `retipair {verb.name} --help` lists the flags")


def _spelt(flag: str) -> str:
    """Return a flag as the help spells it: with underscores."""
    return flag[:2] + flag[2:].replace("-", "_")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word.lower(), known, n=1)
    return f" did you mean {close[0]}?" if close else ""


def _in_one_line(parse: Callable[[], Any], hint: str) -> Any:
    """What `parse` returns. The box that tyro draws around a mistake becomes a UserError of one line."""
    with redirect_stderr(StringIO()) as box:
        try:
            return parse()
        except SystemExit as stop:
            if not stop.code:
                raise
    lines = [line.strip("│| ") for line in box.getvalue().splitlines()[1:]]  # the first is the box's title
    rules = [*(number for number, line in enumerate(lines) if not line.strip("─-╰╯+")), len(lines)]
    first = 1 if rules[0] == 0 else 0  # in plain ASCII there is a rule under the title
    said = lines[first : rules[first]]
    raise UserError(f"{' '.join(said).rstrip('.')}; {hint}")


def _fail(message: str, status: int) -> int:
    print(f"retipair: {printable(message)}", file=sys.stderr)
    return status
