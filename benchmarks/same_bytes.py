"""Check that two versions of the package write the same results, for a change that must not affect them.

    python benchmarks/same_bytes.py BEFORE AFTER

BEFORE and AFTER are checkouts. For each bundled base, both run `prepare`, `train` (12 steps with validation and
samples), `generate` (4 pairs from noise, and 4 variations) and `evaluate`. Images, adapter tensors and scores are
compared. Takes about six minutes on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

BASES = ("tiny-sdxl", "tiny-sd15")
SIZE = 256
VARYING = ("environment", "seconds", "memory_gib", "cost", "sha256", "retipair", "target_modules")
"""Keys whose values, or the order of whose values, depend on the machine (PEFT writes a set) or on the version."""
TEXTS = ("doubt", "doubts", "headline", "verdict", "advice", "furthest", "name")
"""Keys of messages, which a later version may reword."""
SETTINGS = ("settings",)
"""Keys of settings; a later version may add one."""


def commands(base: str, raw: Path, out: Path) -> Iterator[list[str]]:
    """Yield the arguments of all commands for a base."""
    results, pairs = out / "results", out / "pairs"
    yield ["prepare", str(raw), str(pairs), "--size", str(SIZE), "--workers", "1"]
    flags = ["--base", base, "--data", str(pairs), "--results", str(results), "--device", "cpu"]
    yield [
        "train",
        "-n",
        "one",
        *flags,
        "--max_steps",
        "12",
        "--val_every",
        "6",
        "--log_every",
        "3",
        "--sample_steps",
        "4",
        "--precision",
        "fp32",
    ]
    named = ["-n", "one", "--results", str(results), "--device", "cpu", "--steps", "4", "--amount", "4"]
    yield ["generate", *named, "--savedir", "new"]
    yield ["generate", *named, "--savedir", "varied", "--mode", "from_data"]
    new = results / f"out_joint_{base.removeprefix('tiny-')}_cffa_pairs_preds/one/new"
    yield ["evaluate", "--real", str(pairs), "--generated", str(new), "--out", str(out / "scores")]


def run(checkout: Path, raw: Path, out: Path) -> None:
    """Run all commands with the package of a checkout, with paths relative to `out`, equal for both versions."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    for base in BASES:
        (out / base).mkdir(parents=True)
        for arguments in commands(base, raw, Path(base)):
            subprocess.run([sys.executable, "-m", "retipair", *arguments], cwd=out, env=environment, check=True)


def content(path: Path) -> Any:
    """Return the compared content of a file: pixels and texts, tensors, JSON without the ignored keys, or CSV text."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.size, image.mode, image.text, np.asarray(image).tobytes()  # type: ignore[attr-defined]
    if path.suffix == ".safetensors":
        return {name: (tensor.dtype.str, tensor.tobytes()) for name, tensor in load_file(path).items()}
    if path.suffix in (".json", ".jsonl"):
        return [without(json.loads(line)) for line in documents(path)]
    return path.suffix != ".csv" or path.read_text()


def documents(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def without(value: Any) -> Any:
    """Remove the ignored keys from a JSON value."""
    if isinstance(value, dict):
        return {key: without(one) for key, one in value.items() if key not in (*VARYING, *TEXTS, *SETTINGS)}
    return [without(one) for one in value] if isinstance(value, list) else value


def compared(folder: Path) -> dict[str, Path]:
    """Return the files to compare by name: images, adapters and records, without caches and machine descriptions."""
    kinds = (".png", ".safetensors", ".json", ".jsonl", ".csv")
    files = (path for path in folder.rglob("*") if path.suffix in kinds)
    excluded = {"features", "latents", "environment.json", "checksums.json", "bench.json"}
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path for name, path in named.items() if not excluded & set(Path(name).parts)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--raw", type=Path, help="raw pairs; default: phantoms")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = args.raw or rendered(args.before.resolve(), Path(folder))
        outs = [Path(folder) / name for name in ("before", "after")]
        for checkout, out in zip((args.before, args.after), outs, strict=True):
            run(checkout.resolve(), raw.resolve(), out)
        before, after = map(compared, outs)
        different = sorted(set(before) ^ set(after))
        different += [
            name for name in sorted(set(before) & set(after)) if content(before[name]) != content(after[name])
        ]
        print(f"{len(before)} files compared, {len(different)} differ", *different, sep="\n  ")
    return min(len(different), 1)


def rendered(checkout: Path, folder: Path) -> Path:
    words = ["phantom", str(folder / "phantoms"), "--amount", "6", "--size", str(SIZE), "--unregistered"]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "retipair", *words], env=environment, check=True)
    return folder / "phantoms/raw"


if __name__ == "__main__":
    sys.exit(main())
