"""Run `retipair train`, under the name of the original training script, and with its flags and output folders."""

import sys

from retipair.interfaces.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
