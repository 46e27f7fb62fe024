"""The command line: parse the flags of a subcommand and call its function.

Subcommands are imported when they run, so that `--help` does not load torch.
"""

import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any, NoReturn, Union, get_args, get_type_hints

import tyro

from retipair import __version__
from retipair.config import (
    AppConfig,
    BenchConfig,
    CardConfig,
    DemoConfig,
    EvaluateConfig,
    ExportAdapterConfig,
    ExportMatchesConfig,
    ExportPairsConfig,
    GenerateConfig,
    MergeConfig,
    PhantomConfig,
    PrepareConfig,
    RegisterConfig,
    RunsConfig,
    TrainConfig,
    UtilityConfig,
)
from retipair.runtime.atomic_io import check_places
from retipair.runtime.errors import Stopped, UserError, is_out_of_memory, printable
from retipair.runtime.library_logging import quiet_from_import, quiet_libraries
from retipair.runtime.pillow import configure_pillow
from retipair.runtime.setting_checks import check_values
from retipair.runtime.signals import SignalReceived, end_on_signals, ignore_signals
from retipair.runtime.threads import configure_threads, process_count


@dataclass(frozen=True)
class Verb:
    name: str
    config: type
    function: str
    summary: str


VERBS = (
    Verb("prepare", PrepareConfig, "preparation.prepare:prepare", "raw pairs -> aligned pairs"),
    Verb("train", TrainConfig, "training.train:train", "aligned pairs -> adapter"),
    Verb("generate", GenerateConfig, "generation.generate:generate", "adapter -> new pairs"),
    Verb("merge", MergeConfig, "generation.merge:merge", "folders of `generate --shard` -> one folder"),
    Verb(
        "evaluate",
        EvaluateConfig,
        "evaluation.evaluate:evaluate",
        "real and generated pairs -> scores and a report",
    ),
    Verb(
        "runs", RunsConfig, "evaluation.runs:compare_runs", "compare runs: settings, best step, scores of their pairs"
    ),
    Verb(
        "export matches",
        ExportMatchesConfig,
        "matching.export:export",
        "pairs -> warped pairs, to train registration networks",
    ),
    Verb(
        "export adapter",
        ExportAdapterConfig,
        "runs.export_adapter:export_adapter",
        "adapter -> a file or folder for ComfyUI, kohya's sd-scripts, diffusers or PEFT",
    ),
    Verb(
        "export pairs",
        ExportPairsConfig,
        "preparation.export_pairs:export_pairs",
        "pairs -> a data set for Hugging Face's datasets, or for webdataset",
    ),
    Verb(
        "register",
        RegisterConfig,
        "preparation.register:register",
        "one raw pair or a folder -> FA in the frame of the CF, homography, error",
    ),
    Verb("utility", UtilityConfig, "matching.utility.utility:utility", "do generated pairs help to match real pairs?"),
    Verb("phantom", PhantomConfig, "phantoms.phantom:phantom", "render synthetic pairs with ground truth"),
    Verb("card", CardConfig, "evaluation.card:card", "README.md that describes a data set or an adapter"),
    Verb("app", AppConfig, "interfaces.app.app:app", "a page to draw, compare and review pairs, on this machine only"),
    Verb(
        "bench",
        BenchConfig,
        "trials.bench:bench",
        "time and memory of a training step, a pair or an evaluation on this machine",
    ),
    Verb("demo", DemoConfig, "trials.demo:demo", "phantom, prepare, train, generate and evaluate -> a report"),
)


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its exit status. Signals that arrive after the command has ended are ignored."""
    status = main(argv)
    ignore_signals()
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: success; 1: internal or system error; 2: invalid input, or another problem that the user can solve, as the
    message says; 128 + N: stopped by the signal with the number N (130 by SIGINT, 143 by SIGTERM).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"retipair {__version__}")
        return 0
    if sys.platform == "win32":
        return _fail("Windows is not supported: install retipair in WSL 2", status=2)
    end_on_signals()
    try:
        execute(arguments)
    except SystemExit as stop:  # by tyro: 0 after --help, 2 after an error message
        return int(stop.code or 0)
    except UserError as error:
        return _fail(str(error), status=2)
    except KeyboardInterrupt as stop:
        word, number = ("stopped", stop.number) if isinstance(stop, SignalReceived) else ("interrupted", signal.SIGINT)
        status = 128 + number
        if process_count() > 1:
            return _fail(f"{word} with the other processes; if one of them failed, its own message says why", status)
        return _fail(f"{word}; {_after_interrupt(arguments)}", status)
    except Stopped as stop:
        return _fail(str(stop), 128 + stop.number)
    except BrokenPipeError:  # the program that reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if message := _find_misplaced(error):
            return _fail(message, status=2)
        if os.environ.get("RETIPAIR_DEBUG"):
            raise
        return _fail(_explain(error), status=1)
    return 0


def execute(arguments: Sequence[str]) -> None:
    """Run one command. Raises the exceptions of the command, and SystemExit if tyro printed help or an error."""
    verb, config = _parse(arguments)
    check_values(config)
    if getattr(config, "offline", False):
        os.environ["HF_HUB_OFFLINE"] = "1"
    if notice := configure_threads():
        print(notice, file=sys.stderr)
    configure_pillow()
    module, function = verb.function.split(":")
    quiet_from_import()
    command = getattr(import_module(f"retipair.{module}"), function)
    with quiet_libraries():  # the commands show their own progress bars
        command(config)


def _find_misplaced(error: Exception) -> str | None:
    """Return an error text if `error` was caused by a file in place of a folder or the reverse, else None."""
    try:
        if isinstance(error, OSError):
            check_places(error)
    except UserError as misplaced:
        return str(misplaced)
    return None


def _after_interrupt(arguments: Sequence[str]) -> str:
    """Return a text that says what an interrupted command has saved, and how to continue it."""
    if arguments[:1] == ["bench"]:
        return "bench saves nothing: start it again"
    more = " with --resume" if arguments[:1] == ["train"] else ""
    return f"saved results are intact; run the same command{more} to continue"


def _explain(error: Exception) -> str:
    """Return the message for an error that is not invalid input: full disk, out of memory, or an internal error."""
    if is_out_of_memory(error):
        return (
            "out of memory; saved results are intact. Close other programs, or lower --batch_size, --size or --workers"
        )
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, OSError):
        return f"{message}; fix this and run the same command again"
    return f"{message}; internal error: rerun with RETIPAIR_DEBUG=1 for a traceback and please report it"


def _parse(arguments: Sequence[str]) -> tuple[Verb, Any]:
    arguments = _join_name(arguments) or ["--help"]
    if arguments[0] not in ("-h", "--help", *(verb.name for verb in VERBS)):
        known = [verb.name for verb in VERBS]
        hint = _did_you_mean(arguments[0], [*known, *(name.partition(" ")[0] for name in known)])
        raise UserError(f"no command {arguments[0]!r};{hint} `retipair --help` lists the commands")
    for verb in (verb for verb in VERBS if verb.name == arguments[0]):
        _check_flags(verb, arguments[1:])
    commands: Any = Union[  # noqa: UP007 - built from a tuple
        tuple(Annotated[v.config, tyro.conf.subcommand(v.name, description=v.summary)] for v in VERBS)
    ]
    config, unknown = tyro.cli(
        commands,
        prog="retipair",
        args=arguments,
        use_underscores=True,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    verb = next(verb for verb in VERBS if isinstance(config, verb.config))
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r}; `retipair {verb.name} --help` lists the flags")
    return verb, config


def _join_name(arguments: Sequence[str]) -> list[str]:
    """Join the words of a command's name, as in `export matches`, to one argument.

    Raises UserError if the second word is missing or wrong.
    """
    first, second, *_ = [*arguments, "", ""]
    seconds = [verb.name.partition(" ")[2] for verb in VERBS if verb.name.startswith(f"{first} ")]
    if not seconds:
        return list(arguments)
    if second in ("-h", "--help"):
        return [second]
    if second not in seconds:
        raise UserError(f"`retipair {first}` needs one of these words next: {', '.join(seconds)}")
    return [f"{first} {second}", *arguments[2:]]


def _check_flags(verb: Verb, arguments: Sequence[str]) -> None:
    """Raise UserError for the first unknown --flag. Without this check, tyro could complain about a value instead."""
    known = ["--help", *(f"--{field.name}" for field in fields(verb.config))]
    for word in arguments:
        flag = word.partition("=")[0]
        if (
            re.match(r"--?[A-Za-z]{2}", word)
            and not word.startswith(("-n", "-h"))
            and _with_underscores(flag) not in known
        ):
            hint = _did_you_mean(f"--{_with_underscores(flag).lstrip('-')}", known)
            raise UserError(f"unknown argument {flag!r};{hint} `retipair {verb.name} --help` lists the flags")
    given = [_with_underscores(word.partition("=")[0]) for word in arguments]
    for name, hint in get_type_hints(verb.config).items():
        if ... in get_args(hint) and given.count(f"--{name}") > 1:  # tyro would drop the values of the first flag
            raise UserError(f"--{name} is given twice; give all its values after one --{name}")


def _with_underscores(flag: str) -> str:
    """Return a flag with underscores for hyphens, as in the help: --batch_size for --batch-size."""
    return flag[:2] + flag[2:].replace("-", "_")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word.lower(), known, n=1)
    return f" did you mean {close[0]}?" if close else ""


def _fail(message: str, status: int) -> int:
    print(f"retipair: {printable(message)}", file=sys.stderr)
    return status
