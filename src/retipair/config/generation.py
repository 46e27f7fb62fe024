"""The settings of `retipair generate` and `retipair merge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retipair.config.common import FOLDERS, Memory, Precision, SamplerName


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Generate CF-FA pairs with an adapter. Pair i depends only on --seed and i; existing pairs are kept."""

    name: Annotated[str | None, tyro.conf.arg(aliases=["-n"])] = None
    """Name of the training run. Not needed with --checkpoint PATH --out DIR."""
    savedir: str = "pairs"
    """Folder of this set of pairs, under RESULTS/out_joint_{sdxl,sd15}_cffa_pairs_preds/NAME."""
    amount: int | None = None
    """Number of pairs; may be raised later, and existing pairs are kept.
    Default: 10; with --mode cf2fa and fa2cf, --per_view pairs for each view in --data."""
    shard: str | None = None
    """Generate only a part of the pairs: with I/N, the pairs I, I + N, I + 2 N, ... Machines that share no file system
    generate one part each, and `retipair merge` puts the parts together."""
    steps: int = 25
    """Denoising steps (50 in the original scripts); --mode from_data takes --strength of them."""
    mode: Literal["noise", "from_data", "cf2fa", "fa2cf"] = "noise"
    """noise: new eyes; from_data: variations of the training pairs, which are used in turn.
    cf2fa: an FA for each CF in --data, with the same vessels; fa2cf: a CF for each FA."""
    per_view: int = 1
    """--mode cf2fa, fa2cf: number of different pairs for each view; may be raised later."""
    best_of: int = 1
    """Make this many attempts at each pair, and keep the one with the highest consistency."""
    strength: float = 0.6
    """--mode from_data: noise added to a training pair, in (0, 1]; at 1 almost nothing of the pair remains."""
    checkpoint: str = "best"
    """Adapter to use: best or latest of the run, or the path of a checkpoint or unet_lora folder or of a LoRA file
    (kohya, diffusers, PEFT).
    With --base and --out and without -n and --checkpoint, the base generates without an adapter."""
    out: Path | None = None
    """Folder to write; default: a folder under RESULTS (see --savedir)."""
    base: str | None = None
    """Base to which the adapter is applied; default: the base that the adapter was trained on."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/), for a single-file base without network access."""
    results: Path = Path("results")
    """Folder under which all runs and generated pairs are written."""
    data: Path | None = None
    """--mode from_data, --max_copy: prepared folder of the training pairs; default: the --data of the run.
    --mode cf2fa, fa2cf: one image, a folder or table of images of any size, or a prepared or generated folder."""
    record_source: bool = False
    """Record the id of the training pair or given view also in the PNG metadata, not only in the manifest."""
    prompt: str | None = None
    """Prompt of every pair; default: the prompt or captions that the adapter was trained with."""
    size: int | None = None
    """Side of one view, px; only without an adapter, or for adapters that do not record it."""
    seed: int = 0
    """Seed; the randomness of pair i depends only on this seed and i."""
    batch_size: int = 1
    """Number of pairs in one forward pass. On a CPU it is always 1, so that the pairs do not depend on this setting."""
    min_consistency: float | None = None
    """Minimum consistency (vesselness correlation) of the views; pairs below it are generated again. Try 0.4."""
    max_copy: float | None = None
    """Maximum similarity to any training pair (docs/metrics.md); pairs above it are generated again. Try 0.55."""
    max_tries: int = 8
    """Attempts at a pair that --min_consistency or --max_copy rejects, before it is given up; may be raised later.
    With --best_of K, an attempt here is a round of K attempts."""
    sampler: SamplerName = "ddpm"
    """ddpm (as in the original scripts), ddim, dpmpp (DPM-Solver++ 2M) or euler."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance; 1 disables it, which saves one prediction of the network per step."""
    pair_guidance: float | None = None
    """Scale of cross-view guidance, which makes the vessels of both views agree better; 1 disables it.
    Default: 12; with --mode cf2fa and fa2cf: 2."""
    pair_guidance_from: float | None = None
    """Lowest timestep with cross-view guidance, as a fraction of the noise schedule; default: 0.35.
    Higher values are faster."""
    precision: Precision = "auto"
    """Precision of the UNet; auto: bf16 on CUDA GPUs that support it, else fp32. The autoencoder always uses fp32."""
    memory: Memory = "auto"
    """GiB of device memory available. Weights of the base are stored in the first format whose estimated memory fits:
    unquantised, fp8, nf4 (pip install 'retipair[nf4]'). Quantisation changes the generated pairs. auto: unquantised."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""
    device: str = "auto"
    """Device to compute on: auto, cuda, mps or cpu."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Put the pairs of several folders that `generate --shard` wrote into one folder. The folders are not changed."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write. It may contain a part of these pairs already, from an earlier merge."""
    parts: Annotated[tuple[Path, ...], FOLDERS]
    """Folders of generated pairs, made with the same settings."""
