"""A base: a frozen diffusion model, opened without loading a weight; each part is loaded when, and only while, needed.

The only place that asks "SDXL or SD1.5?" and that knows the forms a base comes in: a diffusers folder (two ship with
the package), a hub id (the same folder, from the cache or the network), one original-format .safetensors file, or
random weights.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from retipair.models.byte_tokenizer import byte_tokenizer
from retipair.models.quantization import Stored, store
from retipair.models.single_file import (
    NOTHING_DECLARED,
    UNET,
    DeclaredSchedule,
    Header,
    declared_schedule,
    family_by_inputs,
    missing_part,
    other_family,
    read_header,
    unet_inputs,
)
from retipair.runtime.atomic_io import told
from retipair.runtime.errors import UserError, is_out_of_memory

# One bar for each of a base's parts says nothing: the command that loads it has its own.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

BUNDLED = Path(__file__).parent / "bundled"
"""The small trained bases that ship with the package, diffusers folders by name; made by `recipes/`."""

CONFIGS = Path(__file__).parent / "configs"
"""The published configs of both systems, without weights; and those of two tiny bases of the same kinds."""

_SAMPLES, _SAMPLE = 256, 2**14
"""How many stretches of a file tell it from another, spread evenly over it, and how many bytes each has."""

_CONFIG_FILES = ["model_index.json", "*/config.json"]

_NO_SIGNAL = 1e-7
"""alphas_cumprod of the last timestep where terminal SNR is zero: some of the library's schedulers put 2^-24 for 0."""

SAMPLERS = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
}


@dataclass(frozen=True, eq=False)
class System:
    """What tells SDXL from SD1.5 outside the network itself. published: the hub id of its base. There are but two."""

    name: Literal["sdxl", "sd15"]
    published: str
    layout: Literal["side_by_side", "squeezed"]
    pipeline: type[DiffusionPipeline]
    text_encoders: dict[str, type]
    tokenizers: tuple[str, ...]


SDXL = System(
    name="sdxl",
    published="stabilityai/stable-diffusion-xl-base-1.0",
    layout="side_by_side",
    pipeline=StableDiffusionXLPipeline,
    text_encoders={"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection},
    tokenizers=("tokenizer", "tokenizer_2"),
)
SD15 = System(
    name="sd15",
    published="stable-diffusion-v1-5/stable-diffusion-v1-5",
    layout="squeezed",
    pipeline=StableDiffusionPipeline,
    text_encoders={"text_encoder": CLIPTextModel},
    tokenizers=("tokenizer",),
)
SYSTEMS = {system.name: system for system in (SDXL, SD15)}


@dataclass(frozen=True)
class Base:
    """An opened base. `configs` is the folder with its configs, and with its weights unless it is a file or random."""

    source: str
    system: System
    configs: Path
    form: Literal["folder", "file", "random"]
    tokenizer: Path | None = None
    declared: DeclaredSchedule = NOTHING_DECLARED

    @property
    def name(self) -> str:
        """What others may be told: a hub id, one of ours, or the last part of a path, which may name people."""
        return told(self.source)

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        return _read_config(self.configs, "unet")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return _read_config(self.configs, "vae")

    @property
    def latent_factor(self) -> int:
        """Pixels of the joint image for one latent pixel, along each side."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae_config["latent_channels"]

    def latent_shape(self, joint_size: tuple[int, int]) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a joint image of (height, width) px."""
        height, width = (side // self.latent_factor for side in joint_size)
        return self.latent_channels, height, width

    @cached_property
    def timesteps(self) -> int:
        """How many timesteps the base was trained with."""
        return self.scheduler("ddpm").config.num_train_timesteps

    @property
    def view_size(self) -> int:
        """Side of a view, px, that the base was made for: 512 for SDXL (two fill its 1024) and SD1.5 (two share it)."""
        sample = self.unet_config["sample_size"]
        width = (sample if isinstance(sample, int) else sample[-1]) * self.latent_factor
        return width // 2 if self.system.layout == "side_by_side" else width

    def fingerprint(self) -> str:
        """Hash the configs, what the UNet predicts, and samples of all weights: cheap, and different for other weights.

        The same base has the same fingerprint wherever it lies and whatever its file is called.
        """
        digest = hashlib.sha256(json.dumps([self.unet_config, self.vae_config], sort_keys=True).encode())
        scheduler = self.scheduler("ddpm").config
        if (schedule := (scheduler.prediction_type, bool(scheduler.rescale_betas_zero_snr))) != ("epsilon", False):
            digest.update(json.dumps(schedule).encode())
        single = [Path(self.source)] if self.form == "file" else []
        for path in single or self._weight_files():
            _update_with_samples(digest, path)
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        """The weights of all parts of a folder, in an order that does not depend on where it lies."""
        parts = ("unet", "vae", *self.system.text_encoders)
        return [path for part in parts for path in sorted((self.configs / part).glob("*.safetensors"))]

    def unet(
        self, dtype: torch.dtype = torch.float32, device: str = "cpu", stored: Stored | None = None
    ) -> UNet2DConditionModel:
        """The UNet, frozen. stored: the fewer bits that its weights are held in; `dtype` is what they are used in."""
        if stored is None:
            return self._load("unet", UNet2DConditionModel, dtype, device).requires_grad_(False)
        whole = self._load("unet", UNet2DConditionModel, dtype, "cpu").requires_grad_(False)
        return store(whole, stored, device)  # which never has it whole

    def vae(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> AutoencoderKL:
        """The autoencoder, frozen. Never in fp16: SDXL's overflows there."""
        return self._load("vae", AutoencoderKL, dtype, device).requires_grad_(False)

    def text_pipeline(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusionPipeline:
        """The library's own pipeline with text encoders and tokenizers alone: what `encode_prompt` needs."""
        pipeline = self._pipeline_with(dict.fromkeys(("unet", "vae")), dtype, device)
        for encoder, tokenizer in zip(self.system.text_encoders, self.system.tokenizers, strict=True):
            self._check_encoder(getattr(pipeline, encoder).requires_grad_(False).eval(), getattr(pipeline, tokenizer))
        return pipeline

    def pipeline(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusionPipeline:
        """The library's own pipeline, whole: what ours is held against."""
        if self.form == "folder":
            with _errors_name(self.source):
                whole = self.system.pipeline.from_pretrained(str(self.configs), dtype=dtype, local_files_only=True)
            return whole.to(device)
        return self._pipeline_with({"unet": self.unet(dtype, device), "vae": self.vae(dtype, device)}, dtype, device)

    def _pipeline_with(self, parts: dict[str, Any], dtype: torch.dtype, device: str) -> DiffusionPipeline:
        """The library's pipeline of these parts, and of what the base has of text encoders and tokenizers."""
        parts = parts | dict(zip(self.system.tokenizers, self.tokenizers(), strict=True))
        parts |= {**self._extras, "scheduler": self.scheduler("ddpm")}
        if self.form != "file":
            encoders = {n: self._load(n, kind, dtype, device) for n, kind in self.system.text_encoders.items()}
            return self.system.pipeline(**parts, **encoders)
        with _errors_name(self.source):
            whole = self.system.pipeline.from_single_file(
                self.source, config=str(self.configs), local_files_only=True, torch_dtype=dtype, **parts
            )
            return whole.to(device)

    def _check_encoder(self, encoder: Any, tokenizer: CLIPTokenizer) -> None:
        """The libraries load a cut-off encoder or an empty vocabulary without a word."""
        if any(parameter.is_meta for parameter in encoder.parameters()):
            raise UserError(f"--base {self.source}: its text encoder is incomplete; get it again or choose another")
        if len(tokenizer) > encoder.config.vocab_size or len(tokenizer) < 256:
            raise UserError(
                f"--base {self.source}: a vocabulary of {len(tokenizer)} does not fit its text encoder "
                f"({encoder.config.vocab_size}); pass --tokenizer FOLDER with the right one"
            )

    def scheduler(self, sampler: str) -> Any:
        """The library's scheduler with the base's own betas, prediction type and spacing.

        Clipping to [-1, 1] is off whatever the class's default: latents are not pixels. Raises UserError for a base
        that predicts noise with zero terminal SNR: its last timestep has no answer (Lin et al. 2023, arXiv 2305.08891).
        """
        config = _read_config(self.configs, "scheduler", "scheduler_config.json") | self.declared.settings
        made = SAMPLERS[sampler].from_config(config, clip_sample=False, thresholding=False)
        if made.config.prediction_type == "epsilon" and made.alphas_cumprod[-1] < _NO_SIGNAL:
            raise UserError(
                f"--base {self.source}: predicts noise (epsilon) with zero terminal SNR, which gives NaN at the last "
                "timestep; in scheduler_config.json set prediction_type to v_prediction if it was trained so, else "
                "rescale_betas_zero_snr to false"
            )
        return made

    @property
    def prediction(self) -> str:
        """Say what the UNet predicts, and where that is declared."""
        config = self.scheduler("ddpm").config
        zero = ", zero terminal SNR" if config.rescale_betas_zero_snr else ""
        where = " and ".join(self.declared.found) or (
            "the file declares nothing else" if self.form == "file" else "its scheduler config"
        )
        return f"{config.prediction_type}{zero} ({where})"

    @property
    def warnings(self) -> list[str]:
        """Say what in it contradicts itself."""
        if not self.declared.contradicted:
            return []
        return [f"{self.source}: its {self.declared.contradicted} contradicts its key v_pred, which is used"]

    @property
    def _extras(self) -> dict[str, Any]:
        """Arguments of the pipeline's constructor that are no models, as the base's model_index.json has them."""
        if self.system is SDXL:
            index = _read_json(self.configs / "model_index.json")
            return {
                "force_zeros_for_empty_prompt": index.get("force_zeros_for_empty_prompt", True),
                "add_watermarker": False,
            }
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def _load(self, name: str, kind: Any, dtype: torch.dtype, device: str) -> Any:
        with _errors_name(self.source):
            if self.form == "random":
                return _random(name, kind, self.configs, dtype, device)
            if self.form == "file":
                options = {"config": str(self.configs), "subfolder": name, "local_files_only": True}
                return kind.from_single_file(self.source, **options, torch_dtype=dtype).eval().to(device)
            variant = "fp16" if _has_only_fp16(self.configs / name) else None
            options = {
                "subfolder": name,
                "variant": variant,
                "local_files_only": True,
                "use_safetensors": True,
            }
            return kind.from_pretrained(str(self.configs), **options, dtype=dtype).eval().to(device)

    def tokenizers(self) -> list[CLIPTokenizer]:
        """The base's own tokenizers, one for each text encoder; those are not loaded."""
        with _errors_name(self.source):
            return [self._load_tokenizer(name) for name in self.system.tokenizers]

    def _load_tokenizer(self, name: str) -> CLIPTokenizer:
        if self.form == "random":
            return byte_tokenizer("!") if name == "tokenizer_2" else byte_tokenizer()
        folder = (self.tokenizer or self.configs) / name
        if not ((folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()):
            folder = _cached_vocabulary(self, name)
        if (folder / "tokenizer_config.json").is_file():
            return CLIPTokenizer.from_pretrained(str(folder))
        published = _read_config(CONFIGS / self.system.name, name, "tokenizer_config.json")
        options = {key: published[key] for key in ("model_max_length", "pad_token")}  # which a vocabulary does not have
        return CLIPTokenizer.from_pretrained(str(folder), **options)


def open_base(source: str, tokenizer: Path | None = None, configs: Path | None = None) -> Base:
    """Find a base and read which system it is; no weights are loaded.

    source: the name of a bundled base, "random:sdxl" or the like, a diffusers folder, an original-format .safetensors
    file, or a hub id.
    configs: for a file, the folder with the configs of its parts; default: the published ones of its system.
    Raises UserError, naming the source and what to use instead, if it cannot be found or is of neither system.
    """
    if source.startswith("random:"):
        return _open_random(source)
    if source in bundled_bases():
        return _open_folder(source, BUNDLED / source, "folder", tokenizer)
    path = Path(source)
    if path.exists():
        source = str(path.resolve())  # an adapter names its base: that must hold from every folder
    if path.is_file():
        return _open_file(path.resolve(), tokenizer, configs)
    return _open_folder(source, path if path.is_dir() else _from_hub(source), "folder", tokenizer)


def _checked(base: Base) -> Base:
    """The base, if its configs say what every command needs to know."""
    with _errors_name(base.source):
        _check_schedule(base)
        kind = base.scheduler("ddpm").config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise UserError(f"--base {base.source}: predicts {kind}; only epsilon (noise) and v_prediction work")
        _ = base.view_size, base.latent_channels, base.timesteps
    return base


def _check_schedule(base: Base) -> None:
    """Refuse a schedule without betas (EDM, flow matching): the library would put default ones in their place."""
    config = _read_config(base.configs, "scheduler", "scheduler_config.json")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise UserError(
            f"--base {base.source}: its noise schedule is that of a {config.get('_class_name')}, which has no betas; "
            "only bases of DDPM's schedule work"
        )


def _open_folder(source: str, folder: Path, form: Literal["folder", "random"], tokenizer: Path | None = None) -> Base:
    with _errors_name(source):
        return _checked(Base(source, _system_of_folder(folder, source), folder, form, tokenizer))


def _open_file(path: Path, tokenizer: Path | None, configs: Path | None) -> Base:
    if path.suffix != ".safetensors":
        raise UserError(
            f"--base {path}: only .safetensors files are read, pickled checkpoints can run code; "
            "convert it with diffusers' scripts or download the .safetensors version"
        )
    with _errors_name(str(path)):
        header = read_header(path)
        system = _system_of_file(header)
        folder, declared = configs or CONFIGS / system.name, declared_schedule(header)
        base = _checked(Base(str(path), system, folder, "file", tokenizer, declared))
        _check_inputs(path, unet_inputs(header), (base.latent_channels, base.unet_config["cross_attention_dim"]))
    return base


def _open_random(source: str) -> Base:
    folder = CONFIGS / source.removeprefix("random:")
    if folder.parent != CONFIGS or not folder.is_dir():
        raise UserError(f"--base {source}: there are {', '.join(random_bases())}")
    return _open_folder(source, folder, "random")


def bundled_bases() -> list[str]:
    """Names of the small trained bases that ship with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()) if BUNDLED.is_dir() else []


def random_bases() -> list[str]:
    """Bases with random weights: full-size ones for measuring, tiny ones for trying out and for tests."""
    return sorted(f"random:{folder.name}" for folder in CONFIGS.iterdir() if folder.is_dir())


# What system is it?


def _system_of_folder(folder: Path, source: str) -> System:
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"--base {source}: no model_index.json in this folder; give a diffusers folder of SDXL or SD1.5, "
            "a .safetensors file or a hub id"
        )
    index = _read_json(folder / "model_index.json")
    if "unet" not in index:
        raise _not_supported(source, f"a {index.get('_class_name')}, which has no UNet")
    unet = _read_config(folder, "unet")
    kind = unet.get("addition_embed_type")
    system = {"text_time": SDXL, None: SD15}.get(kind)
    if system is None or unet.get("_class_name") != "UNet2DConditionModel":
        raise UserError(
            f"--base {source}: neither SDXL nor SD1.5 (UNet {unet.get('_class_name')}, conditioning {kind}); "
            "other families are not supported"
        )
    inputs = unet.get("in_channels", 0), unet.get("cross_attention_dim", 0)
    if family := family_by_inputs(*inputs):
        raise _not_supported(source, family)
    width = sum(_read_config(folder, name).get("hidden_size", 0) for name in system.text_encoders)
    _check_inputs(source, inputs, (_read_config(folder, "vae").get("latent_channels", 0), width))
    return system


def _system_of_file(header: Header) -> System:
    if family := other_family(header) or family_by_inputs(*unet_inputs(header)):
        raise _not_supported(header.path, family)
    system = SDXL if UNET + "label_emb.0.0.weight" in header.shapes else SD15
    if part := missing_part(header, system.name):
        raise UserError(f"--base {header.path}: has no {part}; give a file of the whole base")
    return system


def _check_inputs(source: object, inputs: tuple[int, int], given: tuple[int, int]) -> None:
    """Refuse a UNet that takes other (channels, width of text features) than its base, or its system, gives."""
    if inputs != given:
        takes, gives = (f"{channels} channels and text features {width} wide" for channels, width in (inputs, given))
        raise UserError(
            f"--base {source}: neither SDXL nor SD1.5: its UNet takes {takes}, where the base has {gives}; "
            "other families are not supported"
        )


def _not_supported(source: object, family: str) -> UserError:
    return UserError(f"--base {source}: is {family}; give a base of SDXL or SD1.5")


# Where does it lie?


def _from_hub(source: str) -> Path:
    """The folder of a hub id in the cache, downloaded first where there is a network."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise UserError(f"--base {source}: no such file or folder")
    try:
        configs = snapshot_download(source, allow_patterns=_CONFIG_FILES, local_files_only=_offline())
        _system_of_folder(Path(configs), source)  # before many GB of another family are downloaded
        return Path(DiffusionPipeline.download(source, use_safetensors=True, local_files_only=_offline()))
    except UserError:
        raise
    except Exception as error:  # the hub client raises a dozen kinds; each means the same to the user
        reason = shorten(str(error).partition("\n")[0] or type(error).__name__, 80, placeholder=" ...")
        raise UserError(
            f"--base {source}: not in the cache, and not to be had from the hub ({reason}). Copy its folder here and "
            "pass --base FOLDER; to try the commands, pass --base tiny-sdxl, which ships with the package"
        ) from None


def _offline() -> bool:
    """As the hub's own client reads it, and as --offline sets it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _cached_vocabulary(base: Base, name: str) -> Path:
    """A file has no vocabulary inside: take the published one's folder from the cache, or from the network."""
    repository = base.system.published
    try:
        files = [
            hf_hub_download(repository, file, subfolder=name, local_files_only=_offline())
            for file in ("vocab.json", "merges.txt")
        ]
        return Path(files[0]).parent
    except Exception:  # as in `_from_hub`: whatever the hub client raises, the vocabulary is not to be had
        raise UserError(
            f"--base {base.source}: its tokenizer vocabulary is not in the cache ({repository}); pass --tokenizer "
            f"FOLDER, a folder with {' and '.join(f'{t}/vocab.json' for t in base.system.tokenizers)}"
        ) from None


def _has_only_fp16(folder: Path) -> bool:
    weights = [path.name for path in folder.glob("*.safetensors")]
    return bool(weights) and all(".fp16." in name for name in weights)


# Reading


def _update_with_samples(digest: Any, path: Path) -> None:
    """Hash a file's size and evenly spaced stretches of it, its beginning and its end among them."""
    size = path.stat().st_size
    digest.update(f"{size}".encode())
    with path.open("rb") as stream:
        for number in range(_SAMPLES):
            stream.seek(max(size - _SAMPLE, 0) * number // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE))


def _read_config(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    return _read_json(folder / part / name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the base is not a whole diffusers folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); get the base again") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; get the base again")
    return values


def _random(name: str, kind: Any, configs: Path, dtype: torch.dtype, device: str) -> Any:
    """Random weights from a config, the same in every process; made where they are wanted, which is far quicker."""
    with torch.random.fork_rng(devices=[]), _default_dtype(dtype), torch.device(device):
        torch.manual_seed(0)
        return _from_config(kind, _read_config(configs, name)).eval()


def _from_config(kind: Any, config: dict[str, Any]) -> Any:
    if hasattr(kind, "load_config"):
        return kind.from_config(config)
    return kind(kind.config_class.from_dict(config))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _errors_name(source: str) -> Iterator[None]:
    """What the libraries raise for broken weights or configs becomes one line that names the base."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--base {source}: cannot be loaded ({reason[:200]}); get it again or choose another"
        ) from error


def empty_unet(base: Base) -> UNet2DConditionModel:
    """The UNet's shape without its memory (meta device): for counting and planning."""
    return _empty(base, "unet", UNet2DConditionModel)


def empty_vae(base: Base) -> AutoencoderKL:
    """The autoencoder's shape, likewise."""
    return _empty(base, "vae", AutoencoderKL)


def empty_text_encoders(base: Base) -> list[torch.nn.Module]:
    """The text encoders' shapes, likewise."""
    return [_empty(base, name, kind) for name, kind in base.system.text_encoders.items()]


def _empty(base: Base, name: str, kind: Any) -> Any:
    with _errors_name(base.source), torch.device("meta"):
        return _from_config(kind, _read_config(base.configs, name))


def check_steps(flag: str, steps: int, base: Base) -> None:
    """Refuse more denoising steps than the base has timesteps to step through."""
    if steps >= base.timesteps:
        raise UserError(f"{flag} {steps}: this base allows at most {base.timesteps - 1}")
