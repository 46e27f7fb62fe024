"""Run `retipair generate`, under the name of the original sampling script, and with its flags and output folders."""

import sys

from retipair.interfaces.cli import run

if __name__ == "__main__":
    run(["generate", *sys.argv[1:]])
