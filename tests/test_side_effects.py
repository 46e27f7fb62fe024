"""A program that imports retipair keeps its own settings of the process."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, warnings
from PIL import Image

def settings():
    os.umask(umask := os.umask(0o077))
    return umask, Image.MAX_IMAGE_PIXELS, [rule for rule in warnings.filters if "PIL" in str(rule)]

os.umask(0o027)
warnings.filterwarnings("error", module="PIL")
before = settings()
import retipair
folder = sys.argv[1]
assert len(list(retipair.load_pairs(folder))) == 5
assert len([item["id"] for item in retipair.PairDataset(folder)]) == 5
assert settings() == before, (before, settings())
"""


@pytest.mark.nightly
def test_loading_pairs_changes_no_setting_of_the_process(prepared: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, prepared], check=True)
