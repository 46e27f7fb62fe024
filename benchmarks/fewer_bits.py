"""What it changes to hold a base's weights in fewer bits: the norm of the difference in what it predicts, as a share.

    python benchmarks/fewer_bits.py

Prints a Markdown table, over t = 200, 500 and 800; nf4 needs bitsandbytes (pip install 'retipair[nf4]').
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
        whole = predictions(base, args.samples)
        print(f"| {name} | bf16 | {change(predictions(base, args.samples, torch.bfloat16), whole)} |", flush=True)
        for stored in get_args(Stored):
            try:
                found = change(predictions(base, args.samples, torch.bfloat16, stored), whole)
            except UserError as error:
                found = str(error)
            print(f"| {name} | {stored} | {found} |", flush=True)


@torch.no_grad()
def predictions(
    base: Base, samples: int, dtype: torch.dtype = torch.float32, stored: Stored | None = None
) -> torch.Tensor:
    """What it predicts of pure noise, (timesteps, samples, C, h, w)."""
    layout = Layout(base.family.layout, base.view_size)
    latents = noise_like(torch.zeros(samples, *base.latent_shape(layout.joint_size)), *((0, n) for n in range(samples)))
    heard = encode_prompts(base, [DEFAULT_PROMPT], layout.joint_size, "cpu").rows([0] * samples)
    denoise = Denoiser(base.unet(dtype, stored=stored).eval(), dtype, "cpu")
    return torch.stack([denoise(latents, torch.tensor([t] * samples), heard) for t in VALIDATION_TIMESTEPS])


def change(found: torch.Tensor, whole: torch.Tensor) -> str:
    """The least and the most over the timesteps."""
    shares = [100 * float((a - b).norm() / b.norm()) for a, b in zip(found, whole, strict=True)]
    return f"{min(shares):.1f} to {max(shares):.1f}"


if __name__ == "__main__":
    main()
