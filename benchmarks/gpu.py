"""Run the measurements of `benchmarks/gpu.sh` in order of importance, until the time is used up.

Each row is the result of the `retipair bench` command in its first column. The JSON output is in results/bench/.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retipair.config import BenchConfig
from retipair.runtime.errors import UserError
from retipair.runtime.schema import to_values
from retipair.trials.bench import measured

PAGE = Path(__file__).parent.parent / "docs/benchmarks.md"
BEGIN, END = "<!-- gpu.sh writes from here -->\n", "<!-- to here -->\n"
HEAD = (
    "| Command: `retipair bench` | ms | pairs/s | TFLOP/s | of a matrix product | memory, GiB | other / retipair |\n"
    "|---|---|---|---|---|---|---|\n"
)
SDXL = BenchConfig(what="train", base="random:sdxl", repeats=10)
SD15 = replace(SDXL, base="random:sd15")
MEASUREMENTS = (
    SDXL,
    replace(SDXL, batch_size=8),
    replace(SDXL, against="original", repeats=5),
    replace(SDXL, gradient_checkpointing=True),
    replace(SDXL, memory="8"),
    replace(SDXL, what="generate", against="diffusers", repeats=3, warmup=1),
    replace(SDXL, what="generate", batch_size=8, repeats=2, warmup=1),
    replace(SDXL, what="encode"),
    SD15,
    replace(SD15, batch_size=8),
    replace(SD15, against="original"),
    replace(SD15, what="generate", against="diffusers", repeats=3, warmup=1),
    replace(SDXL, precision="fp32", repeats=5),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="use tiny bases and few repeats; do not change docs/")
    parser.add_argument("--minutes", type=float, default=5.5, help="start no measurement that may end later")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    selected = [small(config) for config in MEASUREMENTS] if args.small else MEASUREMENTS
    for number, (config, figures) in enumerate(measure(selected, args.minutes)):
        (args.out / f"gpu-{number:02d}.json").write_text(json.dumps(figures, indent=2) + "\n")
        rows.append(row(config, figures))
        print(rows[-1], flush=True)
    table = HEAD + "\n".join(rows) + f"\n\nMeasured by `benchmarks/gpu.sh` on {machine()}.\n"
    print(f"\n{table}")
    if not args.small:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(before + BEGIN + "\n" + table + "\n" + END + after, encoding="utf-8")


def small(config: BenchConfig) -> BenchConfig:
    base = config.base.replace("random:", "random:tiny-")
    return replace(config, base=base, steps=3, repeats=1, warmup=0, batch_size=min(config.batch_size, 2))


def measure(configs: Sequence[BenchConfig], minutes: float) -> Iterator[tuple[BenchConfig, dict[str, Any]]]:
    """Yield the results of the configurations that fit into the time; out of memory is reported as an error."""
    first_start, longest = time.monotonic(), 0.0
    for config in configs:
        started = time.monotonic()
        if started - first_start + longest > 60 * minutes:
            print(f"no time left for: {command(config)}", flush=True)
            continue
        try:
            figures = measured(config)
        except (UserError, torch.OutOfMemoryError) as error:
            figures = {"error": str(error).splitlines()[0]}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - started)
        yield config, figures


def row(config: BenchConfig, figures: Mapping[str, Any]) -> str:
    if "error" in figures:
        return f"| `{command(config)}` | {figures['error']} | | | | | |"
    memory = ", ".join(f"{phase} {gib:.1f}" for phase, gib in figures["memory_gib"].items())
    ratio = f"{figures['ratio']:.2f}" if "ratio" in figures else ""
    return (
        f"| `{command(config)}` | {figures['milliseconds']:.0f} | {figures['pairs_per_second']:.3g} | "
        f"{figures['tflops']:.3g} | {figures['share_of_matrix']:.0%} | {memory} | {ratio} |"
    )


def command(config: BenchConfig) -> str:
    """Return the command, with the flags that differ from the defaults."""
    defaults, values = to_values(BenchConfig(what=config.what)), to_values(config)
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    flags = [f"--{name}" + ("" if value is True else f" {value}") for name, value in changed.items()]
    return " ".join([config.what, *flags])


def machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    return f"{name}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
