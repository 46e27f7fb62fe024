"""The settings of all commands. The string under a field is its `--help` text and its documentation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DEFAULT_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
DEFAULT_PROMPT = "a colour fundus photograph and a fluorescein angiogram of the same eye, side by side"
MAX_AMOUNT = 10_000_000
"""Maximum of --amount."""

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
    """How the FA is aligned to the CF.
    points: by landmarks; features: by vessels; none: the views are aligned already.
    auto: points for a pair with landmarks, else features."""
    max_residual_px: float = 5.0
    """Refuse a pair if the median distance of its landmarks after alignment exceeds this.
    The distance is in px of a view 512 px wide, for any --size.
    Without landmarks: refuse a pair if too few vessel patches match within this distance (docs/formats.md)."""
    min_consistency: float | None = None
    """Refuse a pair of lower consistency (vesselness correlation of the views, -1 to 1, at 512 px for any --size).
    Default: 0.25 if registered by points, 0.2 by features, 0.15 with --register none."""
    allow_mirror: bool = False
    """Accept an FA that can only be aligned mirrored, and flip it; without this flag such a pair is refused."""
    anonymise: Path | None = None
    """Replace the names of pairs, eyes and patients by keyed hashes, in OUT and everything derived from it.
    The value is the key file, created if missing; the same key gives the same hashes.
    Keep the key file, and the table of original names that is written beside it, away from the data."""
    skip_bad: bool = False
    """Skip pairs with missing or unusable files, copies of other pairs, and single images without the other view.
    They are listed in OUT/skipped.txt; without this flag any of them stops the command."""
    max_megapixels: int = 200
    """Refuse images with more megapixels than this, because a small file can decompress to gigabytes."""
    val_fraction: float = 0.2
    """Fraction of the eyes (of the patients, if they are known) for validation."""
    test_fraction: float = 0.0
    """Fraction of the eyes for testing. They are never used for training, nor varied by --mode from_data."""
    seed: int = 0
    """Seed of the random split into training, validation and test pairs."""
    workers: int = 0
    """Number of processes; 0: one per core."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a base with LoRA on prepared pairs, to generate both views of an eye jointly."""

    name: Annotated[str, tyro.conf.arg(aliases=["-n"])]
    """Name of the run; its folder is RESULTS/out_joint_{sdxl,sd15}_cffa_pairs/NAME."""
    data: Path | None = None
    """Prepared folder, or a raw one, which is then prepared once into RESULTS/prepared."""
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
    At later timesteps, errors of the predicted noise are amplified up to 15-fold in the clean latents."""
    min_snr_gamma: float = 0.0
    """Gamma of Min-SNR loss weighting (arXiv 2303.09556); 0 disables it, 5 is usual."""
    half_clean_fraction: float = 0.0
    """Fraction of the samples in which one view gets no noise, and the loss is computed on the other view only.
    This trains the consistency of the views. It helps to train a base.
    With adapters, it changed the consistency by less than 0.01."""

    prompt: str = DEFAULT_PROMPT
    """Prompt of pairs without a caption."""
    prompt_dropout: float = 0.0
    """Fraction of the samples trained without a prompt; 0 disables it, 0.1 is usual.
    Without it, --guidance_scale above 1 in `retipair generate` may harm quality."""
    augment_variants: int = 8
    """Number of variants of each pair: the pair itself, and copies with random geometry and brightness.
    Each variant is encoded to latents once, before the training."""

    precision: Precision = "auto"
    """Precision of the frozen base; auto: bf16 on CUDA GPUs that support it, else fp32. The adapter is always fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of storing them, for any --memory: needs less memory, is about a third slower."""
    memory: Memory = "auto"
    """GiB of device memory available. The first strategy whose estimated memory fits is used:
    no savings; gradient checkpointing; checkpointing with the base in fp8; checkpointing with the base in nf4.
    nf4 needs pip install 'retipair[nf4]'. auto: the first or second, by free memory."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""
    device: str = "auto"
    """Device to compute on: auto, cuda, mps or cpu."""
    seed: int = 42
    """Seed of all random numbers."""
    deterministic: bool = False
    """Make runs on the same GPU model bit-identical, but somewhat slower. CPU runs are always bit-identical."""

    on_nan: Literal["stop", "skip"] = "stop"
    """If the gradient is NaN or infinite: stop, or skip this step with a warning. Neither changes the weights."""
    val_every: int = 500
    """Number of steps between validations, from step 0 on. Each validation writes sample pairs and a checkpoint."""
    log_every: int = 100
    """Number of steps between log lines in training_log.txt."""
    num_samples: int | None = None
    """Number of sample pairs generated at each validation.
    Default: 10, proportionally fewer (at least 2) in runs under 500 steps."""
    sample_steps: int | None = None
    """Number of denoising steps for each sample pair.
    Default: 50, proportionally fewer (at least 10) in runs under 500 steps."""
    best_by: BestBy = "loss"
    """Criterion for the best step: validation loss, consistency of the sample pairs, or both.
    both: one improves and the other does not get worse."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send the metrics to this tracker (pip install 'retipair[tensorboard]' or 'retipair[wandb]')."""
    resume: bool = False
    """Resume from the last checkpoint, or start if there is none. A cluster job can simply repeat this command."""
    dry_run: bool = False
    """Print the resolved settings, shapes, trainable parameters and a memory estimate; write nothing."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Generate CF-FA pairs with an adapter. Pair i depends only on --seed and i; existing pairs are kept."""

    name: Annotated[str | None, tyro.conf.arg(aliases=["-n"])] = None
    """Name of the training run. Not needed with --checkpoint PATH --out DIR."""
    savedir: str = "pairs"
    """Folder of this set of pairs, under RESULTS/out_joint_{sdxl,sd15}_cffa_pairs_preds/NAME."""
    amount: int = 10
    """Number of pairs; may be raised later, and existing pairs are kept."""
    steps: int = 50
    """Denoising steps."""
    mode: Literal["noise", "from_data"] = "noise"
    """noise: new eyes; from_data: variations of the training pairs, one after the other."""
    strength: float = 0.6
    """--mode from_data: noise added to a training pair, in (0, 1]; at 1 almost nothing of the pair remains."""
    checkpoint: str = "best"
    """Adapter to use: best or latest of the run, or the path of a checkpoint or unet_lora folder."""
    out: Path | None = None
    """Folder to write; default: a folder under RESULTS (see --savedir)."""
    base: str | None = None
    """Base to which the adapter is applied; default: the base that the adapter was trained on."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/), for a single-file base without network access."""
    results: Path = Path("results")
    """Folder under which all runs and generated pairs are written."""
    data: Path | None = None
    """--mode from_data, --max_copy: prepared folder of the training pairs; default: the --data of the run."""
    record_source: bool = False
    """--mode from_data: record the id of the training pair also in the PNG metadata, not only in the manifest."""
    prompt: str | None = None
    """Prompt of every pair; default: the prompt or captions that the adapter was trained with."""
    size: int | None = None
    """Side of one view, px; only for adapters whose files do not record the size."""
    seed: int = 0
    """Seed; the randomness of pair i depends only on this seed and i."""
    batch_size: int = 1
    """Number of pairs in one forward pass. On a CPU it is always 1, so that the pairs do not depend on this setting."""
    min_consistency: float | None = None
    """Minimum consistency (vesselness correlation) of the views; pairs below it are generated again. Try 0.4."""
    max_copy: float | None = None
    """Maximum similarity to any training pair (docs/metrics.md); pairs above it are generated again. Try 0.55."""
    max_tries: int = 8
    """Attempts at a pair that --min_consistency or --max_copy rejects, before it is given up; may be raised later."""
    sampler: SamplerName = "ddpm"
    """ddpm (as in the original system), ddim, dpmpp (DPM-Solver++ 2M) or euler."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance; 1 disables guidance, which is twice as fast."""
    pair_guidance: float = 1.0
    """Scale of cross-view guidance, which makes the vessels of both views agree better; 1 disables it, try 5."""
    pair_guidance_from: float = 0.35
    """--pair_guidance: its lowest timestep, as a fraction of the noise schedule. Higher values are faster."""
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
class EvaluateConfig:
    """Evaluate generated pairs against real ones, or check real pairs alone."""

    real: Path
    """Prepared folder of real pairs."""
    generated: Path | None = None
    """Folder written by `generate`, or a prepared folder; without it only the real pairs are checked."""
    out: Path = Path("evaluation")
    """Folder to write: report.html, scores.json, figures.csv, and features/ (the measurements of each pair)."""
    base: str | None = None
    """Base of the generated pairs (hub id, folder, file, tiny-sdxl or tiny-sd15).
    With it, the report says how much detail its autoencoder preserves."""
    adapter: Path | None = None
    """Folder of the run that generated the pairs, or a folder inside it; adds the training curves to the report."""
    deep: Path | None = None
    """Folder of an image model in transformers' format (DINO, DINOv2, or ViT-MAE such as RETFound).
    Adds two distances between real and generated pairs on the features of this model: squared MMD and FID."""
    withhold_copies: bool = False
    """Add generated pairs that are copies of training pairs to rejected.txt in --generated.
    Only the other pairs are evaluated. All commands then skip the copies."""
    workers: int = 0
    """Number of pairs measured at once; 0: one per core."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """Render synthetic eyes with ground truth: pairs to train on, or raw views to test registration."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder to write: a prepared folder (with --unregistered: raw/), and truth/ with the ground truth of each eye."""
    amount: int = 10
    """Number of pairs; may be raised later, and existing pairs are kept."""
    size: int = 512
    """Side of the square views, px."""
    seed: int = 0
    """Seed of the pairs and of the split; the randomness of pair i depends only on this seed and i."""
    camera: str | None = None
    """Camera of all pairs: amber, rose, umber, sallow or teal; default: one of the first four at random for each."""
    disease: str | None = None
    """State of all eyes: healthy, diabetic or vein_occlusion; default: healthy or diabetic at random."""
    unregistered: bool = False
    """Write raw views with landmarks for `retipair prepare`; the FA camera is shifted, rotated and tilted."""
    points: int = 20
    """--unregistered: landmarks per pair, at vessel bifurcations and crossings, spread over the field."""
    jitter: float = 1.0
    """--unregistered: standard deviation of the random errors of landmarks in each view, in px of a 512 px view."""
    wrong: int = 2
    """--unregistered: number of landmarks that are outliers, at random positions in the FA."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Run the whole pipeline on synthetic eyes: align, train, generate, evaluate. Takes minutes and needs no GPU."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[OUT]")] = Path("demo")
    """Folder to write; results of an earlier demo there are reused."""
    system: SystemName = "sdxl"
    """sdxl: the base tiny-sdxl with the views side by side; sd15: the base tiny-sd15 with squeezed views."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Benchmark a training step, generation, encoding or evaluation on this machine, with synthetic eyes."""

    what: Annotated[tyro.conf.Positional[Benched], tyro.conf.arg(metavar="{train,generate,encode,evaluate}")]
    """train: an optimiser step; generate: pairs from noise; encode: pairs to latents; evaluate: metrics of pairs."""
    base: str = "tiny-sdxl"
    """Base, as for `retipair train`; random:sdxl and random:sd15 have the full size and random weights: no download."""
    tokenizer: Path | None = None
    """Folder with tokenizer/ (and tokenizer_2/), for a single-file base without network access."""
    against: Literal["none", "bare", "original", "diffusers"] = "none"
    """Also time a baseline, in alternation with retipair.
    train: bare (only forward and backward pass of the same network) or original (step of the original scripts).
    generate: diffusers (the pipeline of that library)."""
    size: int | None = None
    """Side of one view, px, a multiple of 64; default: the base's own."""
    batch_size: int = 1
    """Number of pairs in one forward pass."""
    steps: int = 50
    """generate: number of denoising steps."""
    precision: Precision = "auto"
    """Precision of the frozen base, as for train and generate. The original scripts always use fp32."""
    gradient_checkpointing: bool = False
    """train: recompute activations instead of storing them."""
    memory: Memory = "auto"
    """Device memory available, as for `retipair train` and `retipair generate`."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """train: optimiser, as in `retipair train`."""
    offline: bool = False
    """Do not use the network; a base given by its hub id must be in the cache already."""
    device: str = "auto"
    """Device to compute on: auto, cuda, mps or cpu."""
    repeats: int = 10
    """Number of timed repetitions; the median is reported."""
    warmup: int = 2
    """Number of untimed repetitions before the timed ones."""
    json: Path | None = None
    """Also write the results to this JSON file."""
