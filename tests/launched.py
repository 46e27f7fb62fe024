"""Several commands in a process that was launched with others: `launched.py COMMANDS`, a JSON list of their words."""

import json
import sys
from pathlib import Path

from retipair.interfaces.cli import main

if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text()):
        if status := main(words):
            sys.exit(status)
