"""The original system's entry point for generating: `retipair generate`, with its flags and its output tree."""

import sys

from retipair.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
