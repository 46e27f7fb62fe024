"""The benchmarks run, and their tables say what is known beforehand."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SQUEEZING = BENCHMARKS / "squeezing.py"
OTHERS = {
    "scaling.py": (
        "--base random:tiny-sd15 --repeats 1 --pairs 2 3 --batches 1 2",
        "### Evaluation time by number of pairs",
    ),
    "tricks.py": ("--base random:tiny-sd15 --repeats 1", "| --precision bf16 |"),
    "flat_memory.py": ("--amounts 5 10", "| evaluate | 10 |"),
    "long_run.py": ("--hours 0.02 --pairs 400 --every 0.2", "| generate, 400 pairs |"),
    "checks.py": ("--base random:tiny-sd15 --repeats 5", "| random:tiny-sd15, batch size 1 |"),
    "manifests.py": ("--pairs 100 --repeats 1", "| 100 |"),
    "modalities.py": ("--amount 1", "| `cf` | `autofluorescence` |"),
    "starting.py": ("--repeats 1", "| `retipair train` with a small base, until the first logged step |"),
    "shared_cpu.py": ("--base random:tiny-sd15 --rounds 1 --repeats 1", "| 1 | default of retipair |"),
    "fewer_bits.py": ("--bases random:tiny-sd15 --samples 1", "| random:tiny-sd15 | fp8 |"),
    "memory.py": ("--small", "| peak |"),
    "gpu.py": ("--small --minutes 0.1", "of a matrix product"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_others_run_at_small_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags, said = OTHERS[name]
    runpy.run_path(str(BENCHMARKS / name))["main"](flags.split())
    assert said in capsys.readouterr().out


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
