"""The entry point of the original scripts for generating: `retipair generate`, with its flags and its output tree."""

import sys

from retipair.interfaces.cli import run

if __name__ == "__main__":
    run(["generate", *sys.argv[1:]])
