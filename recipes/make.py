"""Rebuild a bundled base from nothing: phantoms, autoencoder, UNet, diffusers folder.

    python recipes/make.py tiny-sdxl
    python recipes/make.py tiny-sd15 --start results/recipes/tiny-sdxl
    python recipes/make.py tiny-sdxl --start tiny-sdxl --done 5000    the last phase again, from the weights that ship

About five hours on two cores; a GPU is used where there is one. Killed and started again with the same command it goes
on to the same weights (on a CPU, with as many threads). `--ship` puts the result into the package.
"""

import argparse
import os
import shutil
from pathlib import Path

import autoencoder
import card
import denoiser
import folders
import grain
import torch

from retipair.models.base import BUNDLED, open_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(folders.UNETS))
    parser.add_argument("--out", type=Path, default=Path("results/recipes"), help="where state and result lie")
    parser.add_argument("--start", type=Path, help="a base to share the autoencoder with and to start the UNet from")
    parser.add_argument(
        "--done", type=int, default=0, help="steps that the start has behind it: the phases go on there"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw eyes")
    parser.add_argument("--ship", action="store_true", help="put the finished base into the package")
    args = parser.parse_args()
    total = sum(phase.steps for phase in denoiser.PHASES[args.name])
    if args.done and not (args.start and args.done < total):
        parser.error(f"--done {args.done}: needs --start, and must be below the {total} steps of the recipe")
    if args.start and not (open_base(str(args.start)).configs / card.NAME).is_file():
        parser.error(f"--start {args.start}: has no {card.NAME} that says how it was made")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # where float32 is asked for, the finest latents need it
    args.out.mkdir(parents=True, exist_ok=True)
    if args.start:
        vae = open_base(str(args.start)).vae().to(device).eval()
    else:
        vae = grain.train(autoencoder.train(args.out, device, args.workers), args.out, device, args.workers)
    unet = denoiser.train(args.name, args.out, vae, device, args.workers, args.start, args.done)
    folders.write_base(args.out / args.name, args.name, unet, vae)
    card.write_card(args.out / args.name, args.name, args.out, args.start, args.done)
    if args.ship:
        shutil.rmtree(BUNDLED / args.name, ignore_errors=True)
        shutil.copytree(args.out / args.name, BUNDLED / args.name)


if __name__ == "__main__":
    main()
