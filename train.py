"""The entry point of the original scripts for training: `retipair train`, with its flags and its output tree."""

import sys

from retipair.interfaces.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
