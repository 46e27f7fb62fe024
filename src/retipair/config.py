"""Every setting, once. The string under a field is its `--help` and its documentation; the default is the decision."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retipair.runtime.errors import UserError

DEFAULT_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
DEFAULT_PROMPT = "a colour fundus photograph and a fluorescein angiogram of the same eye, side by side"

Register = Literal["auto", "points", "features", "none"]
Benched = Literal["train", "generate", "encode", "evaluate"]
BestBy = Literal["loss", "consistency", "both"]
Precision = Literal["auto", "fp32", "bf16"]
Memory = Literal["auto", "24", "16", "12", "8"]
SamplerName = Literal["ddpm", "ddim", "dpmpp", "euler"]
SystemName = Literal["sdxl", "sd15"]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn raw views into aligned pairs: register FA to CF, crop to the shared field of view, split by eye."""

    raw: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RAW")]
    """Folder of raw views (ID/ID_01.png + ID_02.png, cf/ + fa/, or the Isfahan folders), or a .csv/.jsonl table."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: cf/, fa/, mask/, manifest.jsonl, contact_sheet.png."""
    size: int = 512
    """Side of the square prepared views, px."""
    register: Register = "auto"
    """How FA is aligned to CF: from points where there are any, else from vessels (auto); or one of these; or not."""
    max_residual_px: float = 5.0
    """Refuse a pair whose median landmark residual is larger than this, px at 512 whatever --size is; without points,
    one of which too few patches of vessels fit within it (docs/formats.md)."""
    min_consistency: float | None = None
    """Refuse a pair of lower consistency (vesselness correlation, -1 to 1, at 512 px whatever --size is); default: 0.25
    where it is registered by points, 0.2 by features, 0.15 with --register none."""
    allow_mirror: bool = False
    """Turn an FA that is mirrored left to right, where its pair fits only so; else such a pair is refused."""
    anonymise: Path | None = None
    """A key file, made if it is missing: ids, eyes and patients become keyed hashes in OUT, and so in all that is made
    of it. Keep it, and the table of names beside it, apart: the same key gives the same hashes."""
    skip_bad: bool = False
    """Leave out pairs whose files cannot be used, copies of other pairs and images that belong to no pair, and list
    them in OUT/skipped.txt; else nothing is prepared."""
    max_megapixels: int = 200
    """Refuse larger images: a small file may claim to hold gigabytes."""
    val_fraction: float = 0.2
    """Share of eyes (patients where known) kept for validation."""
    test_fraction: float = 0.0
    """Share of eyes kept for testing: never trained on, never a source for from_data."""
    seed: int = 0
    """Seed of the split."""
    workers: int = 0
    """Processes; 0 uses every core."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a base on prepared pairs with LoRA, so that one denoising draws both views of an eye."""

    name: Annotated[str, tyro.conf.arg(aliases=["-n"])]
    """Name of the run; its folder is RESULTS/out_joint_{sdxl,sd15}_cffa_pairs/NAME."""
    data: Path | None = None
    """Prepared folder, or a raw one, which is prepared once into RESULTS/prepared."""
    base: str = DEFAULT_BASE
    """Hub id, folder or .safetensors file of SDXL or SD1.5; tiny-sdxl and tiny-sd15 ship with the package."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/) for a single-file base without network."""
    results: Path = Path("results")
    """Root of the output trees."""
    size: int | None = None
    """Side of one view, px, a multiple of 64; default: what the base was made for (512 for SDXL and SD1.5)."""
    layout: Literal["auto", "side_by_side", "squeezed"] = "auto"
    """How two views make one joint image; auto: side_by_side for SDXL, squeezed (views at half width) for SD1.5."""

    max_steps: int = 15_000
    """Optimiser steps. May be raised on --resume."""
    batch_size: int = 1
    """Pairs in one forward pass."""
    gradient_accumulation_steps: int = 1
    """Forward passes in one optimiser step."""
    learning_rate: float = 5e-5
    """AdamW's learning rate at its highest."""
    lr_schedule: Literal["original", "constant", "cosine"] = "original"
    """original: constant for 4,000 of 15,000 steps (in proportion for shorter runs), then cosine to --lr_end."""
    lr_warmup_steps: int = 0
    """Steps of linear warm-up at the start."""
    lr_end: float = 1e-5
    """Learning rate at --max_steps for the schedules that fall."""
    weight_decay: float = 1e-2
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm; 0 switches clipping off."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps the optimiser's state in 8 bits (CUDA; pip install 'retipair[adamw8bit]')."""

    unet_lora_rank: int = 16
    """Rank of the adapter."""
    unet_lora_alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank (alpha / sqrt(rank) with --rslora)."""
    lora_targets: Literal["attention", "all"] = "attention"
    """attention: to_q to_k to_v to_out.0; all: also the feed-forward and projection layers."""
    dora: bool = False
    """Learn magnitude and direction apart (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    ema_decay: float = 0.0
    """Keep a moving average of the adapter, with warm-up, and validate and save that; 0 is off, 0.999 usual."""

    offset_noise_strength: float = 0.1
    """Adds this times one constant a sample, channel and half to the noise, so that overall brightness is learnt."""
    hf_lambda: float = 0.5
    """Weight of the high-frequency loss: L1 of the high-passed clean latents, each half apart."""
    hf_kernel: int = 7
    """Width of the Gaussian blur behind the high-pass, latent pixels, odd."""
    hf_sigma: float = 1.5
    """Its sigma, latent pixels."""
    hf_max_timestep: int = 300
    """The high-frequency loss counts only at timesteps below this: the error of x0 is amplified ~15x at high ones."""
    min_snr_gamma: float = 0.0
    """Min-SNR loss weighting (arXiv 2303.09556); 0 is off, 5 usual."""
    half_clean_fraction: float = 0.0
    """Share of samples in which CF or FA (evenly) gets no noise and only the other counts: looking across is all that
    helps there. Bases learn agreement so; adapters of a base that has it gained under .01."""

    prompt: str = DEFAULT_PROMPT
    """The sentence for pairs that have no caption of their own."""
    prompt_dropout: float = 0.0
    """Share of samples trained without a prompt; needed for --guidance_scale above 1 when generating, 0.1 usual."""
    augment_variants: int = 8
    """Variants of each pair, encoded once and drawn from: the pair itself, others flipped, turned, shifted, relit."""

    precision: Precision = "auto"
    """Arithmetic of the frozen base: auto is bf16 on CUDA that has it, else fp32. The adapter is always fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them, whatever --memory says: less memory, about a third slower."""
    memory: Memory = "auto"
    """GiB of device memory to stay within, by the first of these whose estimate fits: nothing saved, gradient
    checkpointing, that and the base's weights in fp8, that and in nf4 (pip install 'retipair[nf4]'). auto: one of the
    first two, by what is free."""
    offline: bool = False
    """Never reach the network: a hub id must be in the cache already."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    seed: int = 42
    """Everything random is a function of this and the step."""
    deterministic: bool = False
    """The same bits from each run on a GPU of one kind, somewhat slower; a CPU gives them anyway."""

    on_nan: Literal["stop", "skip"] = "stop"
    """When a step's gradient is no number: stop, or leave the step out and say so. No checkpoint ever has it."""
    val_every: int = 500
    """Steps between validations, each with sample pairs and a checkpoint; step 0 included."""
    log_every: int = 100
    """Steps between lines of training_log.txt."""
    num_samples: int | None = None
    """Pairs sampled at each validation; default: 10, and in proportion fewer (at least 2) in runs under 500 steps."""
    sample_steps: int | None = None
    """Denoising steps of those samples; default: 50, and in proportion fewer (at least 10) in runs under 500 steps."""
    best_by: BestBy = "loss"
    """What makes a step the best: validation loss, how well the samples' halves match, or one of them and neither
    worse (both)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send the metrics there (pip install 'retipair[tensorboard]' or 'retipair[wandb]')."""
    resume: bool = False
    """Go on from the last checkpoint, or start where there is none: one command for a cluster's restarts."""
    dry_run: bool = False
    """Print the resolved settings, shapes, trainable parameters and a memory estimate; touch nothing."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Draw new CF-FA pairs from an adapter. Pair i depends on --seed and i alone; what is there is kept."""

    name: Annotated[str | None, tyro.conf.arg(aliases=["-n"])] = None
    """Name of the training run. Not needed with --checkpoint PATH --out DIR."""
    savedir: str = "pairs"
    """Folder for this set of pairs, under RESULTS/out_joint_{sdxl,sd15}_cffa_pairs_preds/NAME."""
    amount: int = 10
    """How many pairs; may be raised later, what exists is kept."""
    steps: int = 50
    """Denoising steps."""
    mode: Literal["noise", "from_data"] = "noise"
    """noise: new eyes; from_data: variations of the training pairs, in order."""
    strength: float = 0.6
    """from_data: how much noise the real pair gets, in (0, 1]; 1 keeps almost nothing of it."""
    checkpoint: str = "best"
    """best, latest, or the path of a checkpoint or unet_lora folder."""
    out: Path | None = None
    """Write here instead of under RESULTS."""
    base: str | None = None
    """Base to put the adapter on; default: the one it was trained on."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/) for a single-file base without network."""
    results: Path = Path("results")
    """Root of the output trees."""
    data: Path | None = None
    """from_data: prepared folder to take pairs from; default: the run's own."""
    record_source: bool = False
    """from_data: name the training pair in the metadata of the PNGs too; the manifest always names it."""
    prompt: str | None = None
    """Sentence for every pair; default: the adapter's own prompt or captions."""
    size: int | None = None
    """Side of one view, px; only for adapters that do not record it."""
    seed: int = 0
    """Everything random about pair i is a function of this and i."""
    batch_size: int = 1
    """Pairs in one forward pass (on the CPU always 1, so that the bytes never depend on it)."""
    min_consistency: float | None = None
    """Keep a pair only if its consistency (vesselness correlation) is this at least, else draw it again; try 0.4."""
    max_copy: float | None = None
    """Keep a pair only if its likeness to every training pair is this at most (docs/metrics.md); try 0.55."""
    max_tries: int = 8
    """How often a pair is drawn before it is given up, with the former two; may be raised later."""
    sampler: SamplerName = "ddpm"
    """ddpm (the original's), ddim, dpmpp (DPM-Solver++ 2M) or euler."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is off and twice as fast."""
    precision: Precision = "auto"
    """Arithmetic of the UNet: auto is bf16 on CUDA that has it, else fp32. The autoencoder always decodes in fp32."""
    memory: Memory = "auto"
    """GiB of device memory to stay within: the base's weights as they are, else in fp8, else in nf4 (pip install
    'retipair[nf4]'), whichever estimate fits first; pairs are then other ones. auto: as they are."""
    offline: bool = False
    """Never reach the network: a hub id must be in the cache already."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Judge generated pairs against real ones, or check real ones alone: figures, each beside its reference."""

    real: Path
    """Prepared folder of real pairs."""
    generated: Path | None = None
    """Folder that `generate` wrote, or a prepared one; without it the real pairs alone are checked."""
    out: Path = Path("evaluation")
    """Folder to write: report.html, scores.json, figures.csv, and features/, what was measured of each pair."""
    base: str | None = None
    """Base whose autoencoder bounds what a model can reach: hub id, folder, file, tiny-sdxl or tiny-sd15."""
    adapter: Path | None = None
    """Any folder of the run that drew the pairs: adds its training curves."""
    deep: Path | None = None
    """Folder of an image model that you have (DINO, DINOv2, ViT-MAE as RETFound, as transformers saves them): adds the
    distance on its features, and FID."""
    withhold_copies: bool = False
    """Add the generated pairs that are copies of training pairs to rejected.txt in --generated, which every command
    obeys, and judge the others."""
    workers: int = 0
    """Pairs measured at once; 0 is the number of cores."""
    offline: bool = False
    """Never reach the network: a hub id must be in the cache already."""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Draw rendered eyes with a known answer: pairs to train on at once, or raw views that measure registration."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: a prepared folder (with --unregistered: raw/), and truth/ with all that is known of each eye."""
    amount: int = 10
    """How many pairs; may be raised later, what exists is kept."""
    size: int = 512
    """Side of the square views, px."""
    seed: int = 0
    """Everything random about pair i is a function of this and i; also the seed of the split."""
    camera: str | None = None
    """amber, rose, umber, sallow or teal for all pairs; default: for each one of them, but teal, the demo's own."""
    disease: str | None = None
    """healthy, diabetic or vein_occlusion for all eyes; default: healthy or diabetic, drawn for each."""
    unregistered: bool = False
    """Write raw views, the FA from a camera that moved, turned and tilted, with key points: for retipair prepare."""
    points: int = 20
    """--unregistered: key points a pair, where vessels fork or cross, spread over the field."""
    jitter: float = 1.0
    """--unregistered: how far off they are in each view, sigma in px at 512."""
    wrong: int = 2
    """--unregistered: how many of them lie in nonsense places in the FA."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """See the whole way on rendered eyes: align, train, generate, evaluate. Minutes, no GPU."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[OUT]")] = Path("demo")
    """Folder to write; what an earlier demo left there is used again."""
    system: SystemName = "sdxl"
    """Which small base, and with it which layout: tiny-sdxl (side by side) or tiny-sd15 (squeezed)."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure what a step, a pair, an encoding or a judgement costs on this machine, on rendered eyes."""

    what: Annotated[tyro.conf.Positional[Benched], tyro.conf.arg(metavar="{train,generate,encode,evaluate}")]
    """train: a step; generate: a pair from noise; encode: a pair into latents; evaluate: a pair measured."""
    base: str = "tiny-sdxl"
    """As for train; random:sdxl and random:sd15 have the full size and random weights, nothing to download."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/) for a single-file base without network."""
    against: Literal["none", "bare", "original", "diffusers"] = "none"
    """Take turns with something else. train: bare (forward and backward of the same network, nothing else) or original
    (the original system's step); generate: diffusers (its own pipeline)."""
    size: int | None = None
    """Side of one view, px, a multiple of 64; default: what the base was made for."""
    batch_size: int = 1
    """Pairs at once."""
    steps: int = 50
    """generate: denoising steps."""
    precision: Precision = "auto"
    """Arithmetic of the frozen base, as for train and generate. The original's is always fp32."""
    gradient_checkpointing: bool = False
    """train: recompute activations instead of keeping them."""
    memory: Memory = "auto"
    """train, generate: as there."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """train: as for train."""
    offline: bool = False
    """Never reach the network: a hub id must be in the cache already."""
    device: str = "auto"
    """auto, cuda, mps or cpu."""
    repeats: int = 10
    """How often each is timed; the median counts."""
    warmup: int = 2
    """How often each runs before."""
    json: Path | None = None
    """Also write the figures to this file."""


MOST_PAIRS = 10_000_000
_MOST = 2**32


def check_values(config: Any) -> None:
    """Refuse settings that no command can work with: numbers beyond all use, names that no file system takes."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name} {value}: must be a finite number")
        if isinstance(value, int) and abs(value) > _MOST:
            raise UserError(f"--{name} {value!s:.20}: beyond all use; at most 2^32")
        if isinstance(value, str | Path) and "\0" in str(value):
            raise UserError(f"--{name}: holds a NUL; write it again")
        if isinstance(value, str | Path) and str(value).encode(errors="replace").decode() != str(value):
            raise UserError(f"--{name} {value}: is not UTF-8; rename it, or write it again")
        if isinstance(value, Path):
            _check_path(value)


def _check_path(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path}: cannot be reached ({error.strerror}); give another path") from None


def check_folder_name(flag: str, name: str) -> None:
    """Refuse what is not one folder's name."""
    if not name or Path(name).name != name or name.startswith(".") or len(name.encode()) > 200:
        raise UserError(f"{flag} {name!r}: must be one folder name of at most 200 bytes, without a leading dot")


def check_size(size: int | None) -> None:
    """Refuse a view size that latents cannot have; None is the base's own."""
    if size is not None and (size < 64 or size % 64):
        raise UserError(f"--size {size}: must be a multiple of 64")
