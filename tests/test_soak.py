"""A short soak; `make soak` is the long one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.nightly
def test_killed_six_times_all_is_as_if_nothing_had_happened() -> None:
    script = Path(__file__).with_name("soak.py")
    done = subprocess.run([sys.executable, script, "--kills", "6"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"killed (\d+) times, (\d+) inside", done.stdout) == [("3", "1"), ("3", "1")]
    assert "all is as without a kill" in done.stdout
