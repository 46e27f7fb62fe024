"""Train on the same joint images with diffusers' LoRA script for SDXL and with `retipair train`, in turn.

    python benchmarks/peers.py train_text_to_image_lora_sdxl.py

The script is examples/text_to_image/train_text_to_image_lora_sdxl.py of https://github.com/huggingface/diffusers; it
needs torchvision and datasets. It runs as it is published, with one change: it would crop each joint image to a square,
so its functions for resizing and cropping are replaced while it runs, and the images stay whole.

Prints two Markdown tables. The first has the median time of a step, the ratio of the first row's time to it (median and
range over the rounds), the time from the start of the command to the end of its first step, and the peak memory. The
second compares the validation loss after the same time from the start; `retipair train` measures it for both adapters.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import numpy as np
import torch
from PIL import Image

from retipair import load_pairs
from retipair.models.base import open_base

PLAIN = ("--offset_noise_strength", "0", "--hf_lambda", "0", "--half_clean_fraction", "0", "--augment_variants", "1")
PROMPT = "a colour fundus photograph and a fluorescein angiogram of the same eye, side by side"
TIMED_SCRIPT = """
import json, runpy, sys, time, torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision import transforms
from torchvision.transforms import functional

times, script, *sys.argv = sys.argv[1:]
transforms.Resize = lambda *size, **how: lambda image: image
functional.crop = lambda image, *window: image
transforms.RandomCrop.get_params = staticmethod(lambda image, size: (0, 0, image.height, image.width))


def record(*of_step):
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    with open(times, "a") as stream:
        stream.write(json.dumps({"time": time.time(), "gpu": gpu}) + "\\n")


register_optimizer_step_post_hook(record)
sys.argv.insert(0, script)
runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class Timing:
    """What one training took.

    first: s from the start of the command to the end of the first step.
    step: median time of a step after the third, s.
    memory: peak memory, GiB: of the GPU if there is one, else of the process.
    """

    first: float
    step: float
    memory: float


@dataclass(frozen=True)
class Setting:
    """What both trainers get.

    data: folder of prepared pairs.
    images: the joint images of the training pairs, for the script.
    """

    script: Path
    folder: Path
    data: Path
    images: Path
    base: str
    size: int
    batch_size: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path)
    parser.add_argument("--base", default="tiny-sdxl")
    parser.add_argument("--size", type=int, default=256, help="side of a view, px")
    parser.add_argument("--amount", type=int, default=40, help="number of phantoms")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600, help="time of each training in the second table; 0: none")
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as directory:
        folder = Path(directory)
        data, images = folder / "pairs", folder / "images"
        run(retipair("phantom", data, "--amount", args.amount, "--size", args.size))
        write_joint_images(data, images)
        setting = Setting(args.script.resolve(), folder, data, images, args.base, args.size, args.batch_size)
        rounds = [measured(setting, args.steps, number) for number in range(args.rounds)]
        print_steps(rounds)
        if args.seconds:
            print_losses(setting, rounds, args.seconds)


def write_joint_images(data: Path, images: Path) -> None:
    """Write the joint images of the training pairs, with a caption for each, as the script reads them."""
    images.mkdir()
    pairs = [pair for pair in load_pairs(data) if pair.split == "train"]
    for pair in pairs:
        joint = np.concatenate([pair.cf, np.repeat(pair.fa[..., None], 3, axis=2)], axis=1)
        Image.fromarray(joint).save(images / f"{pair.id}.png")
    lines = [json.dumps({"file_name": f"{pair.id}.png", "text": PROMPT}) for pair in pairs]
    (images / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def measured(setting: Setting, steps: int, number: int) -> dict[str, Timing]:
    """Run each trainer once, and return its times by the name of its row."""

    def ours(name: str, *flags: str) -> Timing:
        return train(setting, f"{name}{number}", steps, flags)[0]

    rows = {"script, fp32": lambda: train_script(setting, steps, "no")[0]}
    rows["retipair, fp32, loss of the script"] = lambda: ours("plain", *PLAIN, "--precision", "fp32")
    rows["script, bf16"] = lambda: train_script(setting, steps, "bf16")[0]
    rows["retipair, bf16, loss of the script"] = lambda: ours("bf16", *PLAIN, "--precision", "bf16")
    rows["retipair, default settings"] = lambda: ours("default")
    return {name: row() for name, row in rows.items()}


def print_steps(rounds: Sequence[Mapping[str, Timing]]) -> None:
    first, *_ = rounds[0]
    print("| Trainer | ms per step | script in fp32 / this | first step, s | peak memory, GiB |\n|---|---|---|---|---|")
    for name in rounds[0]:
        timings = [one[name] for one in rounds]
        ratios = [one[first].step / one[name].step for one in rounds]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        start, memory = median(t.first for t in timings), median(t.memory for t in timings)
        print(f"| {name} | {1000 * median(t.step for t in timings):.0f} | {spread} | {start:.1f} | {memory:.2f} |")


def print_losses(setting: Setting, rounds: Sequence[Mapping[str, Timing]], seconds: float) -> None:
    """Train each for the same time, first step included, and print the validation loss of its adapter."""

    def steps_of(name: str) -> int:
        first, step = (median(getattr(one[name], part) for one in rounds) for part in ("first", "step"))
        return max(1, int((seconds - first) / step))

    print(f"\n| Trainer | steps in {seconds:.0f} s | validation loss |\n|---|---|---|")
    print(f"| none (the base alone) | 0 | {validation_loss(setting, None):.4f} |")
    count = steps_of("script, fp32")
    print(f"| script, fp32 | {count} | {validation_loss(setting, train_script(setting, count, 'no')[1]):.4f} |")
    ours = {"retipair, fp32, loss of the script": (*PLAIN, "--precision", "fp32"), "retipair, default settings": ()}
    for number, (name, flags) in enumerate(ours.items()):
        count = steps_of(name)
        adapter = train(setting, f"long{number}", count, flags)[1]
        print(f"| {name} | {count} | {validation_loss(setting, adapter):.4f} |")


def train_script(setting: Setting, steps: int, precision: str) -> tuple[Timing, Path]:
    """Run the script, and return its times and the file of its adapter."""
    out, times = setting.folder / "script", setting.folder / "times.jsonl"
    times.unlink(missing_ok=True)
    command = [sys.executable, "-c", TIMED_SCRIPT, times, setting.script, "--train_data_dir", setting.images]
    command += ["--pretrained_model_name_or_path", open_base(setting.base).configs, "--output_dir", out]
    command += ["--resolution", setting.size, "--train_batch_size", setting.batch_size, "--max_train_steps", steps]
    command += [
        "--rank",
        16,
        "--learning_rate",
        1e-4,
        "--lr_warmup_steps",
        0,
        "--mixed_precision",
        precision,
        "--seed",
        0,
    ]
    command += ["--checkpointing_steps", 10**9, "--cache_dir", setting.folder / "cache"]
    first, peak = run(command, times)
    lines = [json.loads(line) for line in times.read_text().splitlines()]
    timing = Timing(first, step_time([line["time"] for line in lines]), lines[-1]["gpu"] / 2**30 or peak)
    return timing, out / "pytorch_lora_weights.safetensors"


def train(setting: Setting, name: str, steps: int, flags: Sequence[str]) -> tuple[Timing, Path]:
    """Run `retipair train`, and return its times and the folder of its adapter."""
    folder = run_folder(setting, name)
    first, peak = run([*retipair_train(setting, name, steps), *flags], folder / "training_log.txt")
    lines = [line for line in metrics(setting, name) if line["kind"] == "training"]
    memory = max(line["memory_gib"] for line in lines) if torch.cuda.is_available() else peak
    timing = Timing(first, step_time([line["seconds"] for line in lines]), memory)
    return timing, folder / f"latest_checkpoints/step_{steps:06d}"


def step_time(ends: Sequence[float]) -> float:
    """Return the median time of a step from the ends of all steps, s. The first three steps are left out."""
    return median(after - before for before, after in pairwise(ends[2:]))


def validation_loss(setting: Setting, adapter: Path | None) -> float:
    """Return the validation loss of an adapter: that of step 0 of a training that begins with it."""
    name = f"judged{len(list(setting.folder.glob('out_*/judged*')))}"
    start = ["--init_adapter", adapter] if adapter else []
    run([*retipair_train(setting, name, 1), *PLAIN, *start])
    return next(line["loss"] for line in metrics(setting, name) if line["kind"] == "validation" and line["step"] == 0)


def retipair_train(setting: Setting, name: str, steps: int) -> list[object]:
    flags = ["--base", setting.base, "--size", setting.size, "--batch_size", setting.batch_size, "--max_steps", steps]
    flags += ["--learning_rate", 1e-4, "--lr_schedule", "constant", "--log_every", 1, "--num_samples", 0, "--seed", 0]
    return retipair("train", "-n", name, "--data", setting.data, "--results", setting.folder, *flags)


def metrics(setting: Setting, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder(setting, name) / "metrics.jsonl").read_text().splitlines()]


def run_folder(setting: Setting, name: str) -> Path:
    return setting.folder / "out_joint_sdxl_cffa_pairs" / name


def retipair(*arguments: object) -> list[object]:
    return [sys.executable, "-m", "retipair", *arguments]


def run(command: Sequence[object], log: Path | None = None) -> tuple[float, float]:
    """Run a command, and return (s until `log` has content, peak of the resident memory in GiB)."""
    words, start, first = list(map(str, command)), time.monotonic(), 0.0
    with TemporaryFile("w+") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            if log and not first and log.is_file() and log.stat().st_size:
                first = time.monotonic() - start
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            output.seek(0)
            sys.exit(f"{output.read()}\nfailed: {' '.join(words)}")
    return first, ended[2].ru_maxrss / 2**20


if __name__ == "__main__":
    main()
