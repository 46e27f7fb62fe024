"""docs/reference.md is what `--help` prints; `make reference` writes it."""

import contextlib
import io
import os

from retipair.interfaces.cli import VERBS, main

HEAD = """# Every flag

The output of `retipair VERB --help`; `make reference` writes this page. `train.py` and `test_gen.py` are
`retipair train` and `retipair generate`.
"""


def reference() -> str:
    """The page."""
    os.environ.update(COLUMNS="110", NO_COLOR="1")
    return HEAD + "".join(f"\n## retipair {verb.name}\n\n```text\n{_help(verb.name)}```\n" for verb in VERBS)


def _help(verb: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main([verb, "--help"])
    return "".join(line.rstrip() + "\n" for line in out.getvalue().strip().splitlines())


if __name__ == "__main__":
    print(reference(), end="")
