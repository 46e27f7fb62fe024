"""The original system's entry point for training: `retipair train`, with its flags and its output tree."""

import sys

from retipair.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
