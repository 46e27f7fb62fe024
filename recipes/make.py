"""Train a bundled base from scratch: phantoms, autoencoder, UNet, diffusers folder.

    python recipes/make.py tiny-sdxl
    python recipes/make.py tiny-sd15 --start results/recipes/tiny-sdxl
    python recipes/make.py tiny-sdxl --start tiny-sdxl --done 6600

The third command repeats the last phase, from the weights that ship with the package.

Takes about five hours on two cores; a GPU is used if available. If killed, the same command resumes the training and
gives the same weights (on a CPU, with the same number of threads).
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
import views

from retipair.models.base import BUNDLED, open_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(folders.UNETS))
    parser.add_argument(
        "--out", type=Path, default=Path("results/recipes"), help="folder for training states and results"
    )
    parser.add_argument(
        "--start", type=Path, help="base whose autoencoder is used and whose UNet weights are the initial ones"
    )
    parser.add_argument(
        "--done",
        type=int,
        default=0,
        help="number of steps of the recipe that the weights of --start were already trained for; they are skipped",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="number of processes that compute the anatomy of eyes"
    )
    parser.add_argument("--ship", action="store_true", help="copy the trained base into the package")
    args = parser.parse_args()
    total = sum(phase.steps for phase in denoiser.PHASES[args.name])
    if args.done and not (args.start and args.done < total):
        parser.error(f"--done {args.done}: requires --start and must be below the {total} steps of the recipe")
    if args.start and not (open_base(str(args.start)).configs / card.NAME).is_file():
        parser.error(f"--start {args.start}: has no {card.NAME}; the model card must contain the training history")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # the finest directions of the latents need full float32 precision
    args.out.mkdir(parents=True, exist_ok=True)
    if args.start:
        vae = open_base(str(args.start)).vae().to(device).eval()
    else:
        vae = grain.train(autoencoder.train(args.out, device, args.workers), args.out, device, args.workers)
    unet = denoiser.train(args.name, args.out, vae, device, args.workers, args.start, args.done)
    folders.write_base(args.out / args.name, args.name, unet, vae)
    views.write_views(args.out / args.name, views.measure())
    card.write_card(args.out / args.name, args.name, args.out, args.start, args.done)
    if args.ship:
        shutil.rmtree(BUNDLED / args.name, ignore_errors=True)
        shutil.copytree(args.out / args.name, BUNDLED / args.name)


if __name__ == "__main__":
    main()
