"""Measure how quantized weights change the predictions of a base: the relative norm of the difference to fp32.

    python benchmarks/fewer_bits.py

Prints a Markdown table with the range over t = 200, 500 and 800. nf4 needs bitsandbytes (pip install 'retipair[nf4]').
"""

import argparse
from collections.abc import Sequence
from typing import get_args

import torch

from retipair.config import DEFAULT_PROMPT
from retipair.data.layout import Layout
from retipair.diffusion.noise import noise_like
from retipair.models.base import Base, bundled_bases, open_base
from retipair.models.conditioning import encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.quantization import Stored
from retipair.runtime.errors import UserError
from retipair.training.plan import VALIDATION_TIMESTEPS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=bundled_bases())
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args(arguments)
    print("| base | weights in | change, % |\n|---|---|---|", flush=True)
    for name in args.bases:
        base = open_base(name)
        reference = predictions(base, args.samples)
        print(f"| {name} | bf16 | {change(predictions(base, args.samples, torch.bfloat16), reference)} |", flush=True)
        for stored in get_args(Stored):
            try:
                cell = change(predictions(base, args.samples, torch.bfloat16, stored), reference)
            except UserError as error:
                cell = str(error)
            print(f"| {name} | {stored} | {cell} |", flush=True)


@torch.no_grad()
def predictions(
    base: Base, samples: int, dtype: torch.dtype = torch.float32, stored: Stored | None = None
) -> torch.Tensor:
    """Return the predictions for pure noise, (timesteps, samples, C, h, w)."""
    layout = Layout(base.family.layout, base.view_size)
    latents = noise_like(torch.zeros(samples, *base.latent_shape(layout.joint_size)), *((0, n) for n in range(samples)))
    conditioning = encode_prompts(base, [DEFAULT_PROMPT], layout.joint_size, "cpu").rows([0] * samples)
    denoise = Denoiser(base.unet(dtype, stored=stored).eval(), dtype, "cpu")
    return torch.stack([denoise(latents, torch.tensor([t] * samples), conditioning) for t in VALIDATION_TIMESTEPS])


def change(quantized: torch.Tensor, reference: torch.Tensor) -> str:
    """Return the smallest and the largest relative difference over the timesteps, in percent."""
    percent = [100 * float((a - b).norm() / b.norm()) for a, b in zip(quantized, reference, strict=True)]
    return f"{min(percent):.1f} to {max(percent):.1f}"


if __name__ == "__main__":
    main()
