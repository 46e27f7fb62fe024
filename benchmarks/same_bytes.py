"""Do two versions of the package make the same bytes? For changes that must change nothing.

    python benchmarks/same_bytes.py BEFORE AFTER

BEFORE and AFTER are checkouts. With each bundled base: prepare, 12 steps with validation and samples, 4 pairs of each
mode, evaluate. Images, tensors of the adapters and scores are compared; about six minutes on two cores.
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
UNEQUAL = ("environment", "seconds", "memory_gib", "cost", "sha256", "retipair", "target_modules")
"""Keys whose values depend on the machine, or whose order does (PEFT writes a set)."""
WORDS = ("doubt", "doubts", "headline", "verdict", "advice", "furthest", "name")
"""Keys of sentences, which may be reworded."""
SETTINGS = ("settings",)
"""Keys of settings, to which a later version may add."""


def commands(base: str, raw: Path, out: Path) -> Iterator[list[str]]:
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
    ]
    named = ["-n", "one", "--results", str(results), "--device", "cpu", "--steps", "4", "--amount", "4"]
    yield ["generate", *named, "--savedir", "new"]
    yield ["generate", *named, "--savedir", "varied", "--mode", "from_data"]
    new = results / f"out_joint_{base.removeprefix('tiny-')}_cffa_pairs_preds/one/new"
    yield ["evaluate", "--real", str(pairs), "--generated", str(new), "--out", str(out / "scores")]


def run(checkout: Path, raw: Path, out: Path) -> None:
    """Run all commands with the package of a checkout, in a folder of the same name for both."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    for base in BASES:
        (out / base).mkdir(parents=True)
        for words in commands(base, raw, Path(base)):
            subprocess.run([sys.executable, "-m", "retipair", *words], cwd=out, env=environment, check=True)


def content(path: Path) -> Any:
    """What is compared of a file: pixels, tensors, JSON without what depends on the machine; else its bytes."""
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
    if isinstance(value, dict):
        return {key: without(one) for key, one in value.items() if key not in (*UNEQUAL, *WORDS, *SETTINGS)}
    return [without(one) for one in value] if isinstance(value, list) else value


def compared(folder: Path) -> dict[str, Path]:
    """The files that users read, by name: no caches, locks or environments."""
    kinds = (".png", ".safetensors", ".json", ".jsonl", ".csv")
    files = (path for path in folder.rglob("*") if path.suffix in kinds)
    hidden = {"features", "latents", "environment.json", "checksums.json", "bench.json"}
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path for name, path in named.items() if not hidden & set(Path(name).parts)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--raw", type=Path, help="raw pairs; default: rendered ones")
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
