"""Commands in processes of their own, to send signals to."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def started(command: Sequence[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "retipair", *command]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(ready: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Until it is, while the process runs."""
    until = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
