"""The settings of `retipair train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retipair.config.common import DEFAULT_BASE, DEFAULT_PROMPT, Memory, Precision

BestBy = Literal["loss", "consistency", "both"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a base with LoRA on prepared pairs, to generate both views of an eye jointly."""

    name: Annotated[str, tyro.conf.arg(aliases=["-n"])]
    """Name of the run; its folder is RESULTS/out_joint_{sdxl,sd15}_cffa_pairs/NAME."""
    data: Path | None = None
    """Prepared folder; or a raw one, or a data set of Parquet files, which is prepared once into RESULTS/prepared."""
    reviewed: bool = False
    """Leave out the pairs that were rejected in `retipair app` (review.jsonl in --data)."""
    base: str = DEFAULT_BASE
    """Hub id, folder or .safetensors file of SDXL or SD1.5; tiny-sdxl and tiny-sd15 ship with the package."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/), for a single-file base without network access."""
    results: Path = Path("results")
    """Folder under which all runs and generated pairs are written."""
    size: int | None = None
    """Side of one view, px, a multiple of 64; default: the base's own (512 for SDXL and SD1.5)."""
    layout: Literal["auto", "side_by_side", "squeezed"] = "auto"
    """How the two views form one image; auto: side_by_side for SDXL, squeezed (both at half width) for SD1.5."""

    max_steps: int = 15_000
    """Optimiser steps. May be raised on --resume."""
    batch_size: int = 1
    """Number of pairs in one forward pass."""
    gradient_accumulation_steps: int = 1
    """Number of forward passes in one optimiser step."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["original", "constant", "cosine"] = "original"
    """original: constant for 4,000 of 15,000 steps (in proportion for shorter runs), then cosine to --lr_end."""
    lr_warmup_steps: int = 0
    """Steps of linear warm-up at the start."""
    lr_end: float = 1e-5
    """Learning rate at --max_steps, for the schedules original and cosine."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm; 0 disables clipping."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps the optimiser's state in 8 bits (CUDA; pip install 'retipair[adamw8bit]')."""

    init_adapter: Path | None = None
    """Start from this adapter instead of an untrained one: the folder of a run (its best checkpoint), of a checkpoint
    or unet_lora, or a LoRA file (kohya, diffusers, PEFT). Its rank, alpha and layers must be those of the flags."""
    unet_lora_rank: int = 16
    """Rank of the adapter."""
    unet_lora_alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank (alpha / sqrt(rank) with --rslora)."""
    lora_targets: Literal["attention", "all"] = "attention"
    """Layers to adapt. attention: to_q to_k to_v to_out.0; all: also the feed-forward and projection layers."""
    dora: bool = False
    """Train the magnitude and the direction of the weights separately (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Scale the output of the adapter by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    ema_decay: float = 0.0
    """Validate and save an exponential moving average of the adapter, with warm-up; 0 disables it, 0.999 is usual."""

    offset_noise_strength: float = 0.1
    """Offset noise: scale of a random constant that is added to the noise of each sample, channel and view.
    It lets the model learn the mean brightness."""
    hf_lambda: float = 0.5
    """Weight of the high-frequency loss: the L1 error of predicted clean latents, high-pass filtered in each view."""
    hf_kernel: int = 7
    """Kernel width of the Gaussian blur that the high-pass filter subtracts, in latent pixels; odd."""
    hf_sigma: float = 1.5
    """Sigma of the Gaussian blur that the high-pass filter subtracts, in latent pixels."""
    hf_max_timestep: int = 300
    """The high-frequency loss is used only below this timestep.
    At higher timesteps, errors of the predicted noise are amplified up to 15-fold in the clean latents."""
    min_snr_gamma: float = 0.0
    """Gamma of Min-SNR loss weighting (arXiv 2303.09556); 0 disables it, 5 is usual."""
    half_clean_fraction: float = 0.5
    """Fraction of the samples in which one view gets no noise, and the loss is computed on the other view only.
    This trains the agreement of the views, and lets the adapter draw one view from the other (docs/one_view.md)."""

    size_ids: Literal["full", "native"] = "full"
    """Original size of a pair in the size ids of SDXL. full: the size of the training image, for every pair.
    native: the size before the pair was enlarged, so that the blur of small images is not learnt for the full size."""

    prompt: str = DEFAULT_PROMPT
    """Prompt of pairs without a caption."""
    prompt_dropout: float = 0.0
    """Fraction of the samples trained without a prompt; 0 disables it, 0.1 is usual.
    Without dropout, --guidance_scale above 1 in `retipair generate` may harm quality."""
    augment_variants: int = 8
    """Number of variants of each pair: the pair itself, and copies with random geometry and brightness.
    Each variant is encoded to latents once, before the training."""

    precision: Precision = "auto"
    """Precision of the frozen base. The adapter is always fp32. auto: bf16 on CUDA GPUs that support it, and on CPUs on
    which a short measurement finds matrix products at least 1.25 times as fast in bf16 (one process), else fp32.
    A resumed run keeps its precision."""
    gradient_checkpointing: bool = False
    """Always use gradient checkpointing, even if --memory does not select it: less memory, about a third slower."""
    memory: Memory = "auto"
    """GiB of device memory available. The first strategy whose estimated memory fits is used:
    no savings; gradient checkpointing; checkpointing with the base in fp8; checkpointing with the base in nf4.
    nf4 needs pip install 'retipair[nf4]'. auto: the first or second, by free memory."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""
    device: str = "auto"
    """Device to compute on: auto, cuda, mps or cpu."""
    seed: int = 42
    """Seed of all random numbers, except the noise of the validation, which is always the same."""
    deterministic: bool = False
    """Make runs on the same GPU model bit-identical, but somewhat slower. CPU runs with the same
    number of threads are always bit-identical."""

    on_nan: Literal["stop", "skip"] = "stop"
    """If the gradient is NaN or infinite: stop, or skip the step with a warning. Such a gradient is never applied."""
    val_every: int = 500
    """Number of steps between validations, from step 0 on. Each validation writes sample pairs and a checkpoint."""
    log_every: int = 100
    """Number of steps between log lines in training_log.txt."""
    num_samples: int | None = None
    """Number of sample pairs generated at each validation.
    Default: 10, proportionally fewer (at least 2) in runs under 500 steps with --best_by loss."""
    sample_steps: int | None = None
    """Number of denoising steps for each sample pair.
    Default: 50, proportionally fewer (at least 10) in runs under 500 steps with --best_by loss."""
    sample_pair_guidance: float = 1.0
    """Scale of cross-view guidance of the sample pairs. The default, 1, disables it, unlike in `retipair generate`."""
    best_by: BestBy = "loss"
    """Criterion for the best step: validation loss, consistency of the sample pairs, or both.
    both: one improves and the other does not get worse."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send the metrics and the sample pairs to this tracker.
    It needs pip install 'retipair[tensorboard]' or 'retipair[wandb]'."""
    resume: bool = False
    """Resume from the last checkpoint, or start if there is none. A cluster job can simply repeat this command."""
    dry_run: bool = False
    """Print the resolved settings, shapes, trainable parameters and a memory estimate; write nothing."""
