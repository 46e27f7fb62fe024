"""The benchmarks run, and their tables say what is known beforehand."""

import runpy
from pathlib import Path

import pytest

SQUEEZING = Path(__file__).parent.parent / "benchmarks/squeezing.py"


def test_side_by_side_costs_nothing_and_squeezing_something(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SQUEEZING))["main"](["--amount", "1", "--sizes", "256"])
    head, _, free, squeezed = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()
    ]
    assert free[1] == "`side_by_side`"
    assert free[3:9] == ["exact", "exact", "1.00", "1.00", "1.00", "1.00"]
    costs = {name: (float(b), a) for name, a, b in zip(head[3:], free[3:], squeezed[3:], strict=True)}
    for name, (after, before) in costs.items():
        if "PSNR" in name:
            assert 25 < after < 50, name
        elif "found" in name:
            assert after == pytest.approx(float(before), abs=15), name
        else:
            assert 0 < after < float(before), name
