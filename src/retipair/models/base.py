"""Open a base, a frozen diffusion model, and load its parts on demand.

A base is one of: a diffusers folder (two ship with the package), the id of a model on the Hugging Face hub, one
.safetensors file in the original (not diffusers) format, or random weights.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

from retipair.diffusion.schedule import NoiseSchedule
from retipair.models.byte_tokenizer import byte_tokenizer
from retipair.models.families import CONFIGS, SAMPLERS, ModelFamily
from retipair.models.hub import download_base, has_only_fp16, published_vocabulary
from retipair.models.loading import hash_samples, naming_errors, random_network
from retipair.models.quantization import Stored, quantize
from retipair.models.recognition import (
    check_inputs,
    family_of_file,
    family_of_folder,
    read_model_config,
    read_model_json,
)
from retipair.models.single_file import (
    NOTHING_DECLARED,
    DeclaredSchedule,
    declared_schedule,
    read_header,
    unet_inputs,
)
from retipair.runtime.atomic_io import shareable_name
from retipair.runtime.errors import SettingError

BUNDLED = Path(__file__).parent / "bundled"
"""The folder of the small trained bases in this package. Each base is a diffusers folder, made by `recipes/`."""


_ZERO_ALPHAS_CUMPROD = 1e-7
"""A last value of alphas_cumprod below this counts as 0 (zero terminal SNR). Some diffusers schedulers store 2^-24."""


@dataclass(frozen=True)
class Base:
    """An opened base.

    source: the argument of `open_base`, with an absolute path if it is a path.
    configs: the folder that contains the configs and, if `source_kind` is "folder", also the weights.
    tokenizer: the folder of --tokenizer, if given. declared: the noise schedule that a single file declares.
    """

    source: str
    family: ModelFamily
    configs: Path
    source_kind: Literal["folder", "file", "random"]
    tokenizer: Path | None = None
    declared: DeclaredSchedule = NOTHING_DECLARED

    @property
    def name(self) -> str:
        """Name that is safe to share: `source`, but of a path only the last part, as folder names may name patients."""
        return shareable_name(self.source)

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        return read_model_config(self.configs, "unet")

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return read_model_config(self.configs, "vae")

    @property
    def latent_factor(self) -> int:
        """Downsampling factor of the autoencoder: image height / latent height = image width / latent width."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.vae_config["latent_channels"]

    def latent_shape(self, joint_size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a joint image. joint_size: its (height, width) in px."""
        height, width = (side // self.latent_factor for side in joint_size)
        return self.latent_channels, height, width

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule that the base was trained with."""
        return NoiseSchedule.from_scheduler(self.scheduler("ddpm"))

    @property
    def timesteps(self) -> int:
        """Number of timesteps that the base was trained with."""
        return self.schedule.num_timesteps

    @property
    def view_size(self) -> int:
        """Side in px of a square view (CF or FA) at the resolution that the base was trained for.

        Published SDXL: 512, because two views side by side are 1024 wide. Published SD1.5: 512, because the joint image
        is 512 wide, and each view of 512 x 512 is squeezed to a width of 256 to fit into it.
        """
        sample = self.unet_config["sample_size"]
        width = (sample if isinstance(sample, int) else sample[-1]) * self.latent_factor
        return width // 2 if self.family.layout == "side_by_side" else width

    def fingerprint(self) -> str:
        """Return a hash of UNet and VAE configs, prediction type, zero terminal SNR and parts of each weight file."""
        digest = hashlib.sha256(json.dumps([self.unet_config, self.vae_config], sort_keys=True).encode())
        scheduler = self.scheduler("ddpm").config
        if (schedule := (scheduler.prediction_type, bool(scheduler.rescale_betas_zero_snr))) != ("epsilon", False):
            digest.update(json.dumps(schedule).encode())
        single = [Path(self.source)] if self.source_kind == "file" else []
        for path in single or self._weight_files():
            hash_samples(digest, path)
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        """Return the weight files of the UNet, autoencoder and text encoders, in an order independent of the path."""
        parts = ("unet", "vae", *self.family.text_encoders)
        return [path for part in parts for path in sorted((self.configs / part).glob("*.safetensors"))]

    def unet(
        self, dtype: torch.dtype = torch.float32, device: str = "cpu", stored: Stored | None = None
    ) -> UNet2DConditionModel:
        """Load the UNet with frozen weights.

        dtype: the dtype of the computation and of all weights that are not quantized.
        stored: the format of the quantized weights; None for no quantization.
        """
        if stored is None:
            return self._load("unet", UNet2DConditionModel, dtype, device).requires_grad_(False)
        unet = self._load("unet", UNet2DConditionModel, dtype, "cpu").requires_grad_(False)
        return quantize(unet, stored, device)  # layer by layer, to avoid a full-size copy on `device`

    def vae(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> AutoencoderKL:
        """Load the autoencoder with frozen weights. Do not use fp16: the activations of SDXL's autoencoder overflow."""
        return self._load("vae", AutoencoderKL, dtype, device).requires_grad_(False)

    def text_pipeline(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusionPipeline:
        """Load a diffusers pipeline without UNet and autoencoder, to call its `encode_prompt`."""
        pipeline = self._pipeline_with(dict.fromkeys(("unet", "vae")), dtype, device)
        for encoder, tokenizer in zip(self.family.text_encoders, self.family.tokenizers, strict=True):
            self._check_encoder(getattr(pipeline, encoder).requires_grad_(False).eval(), getattr(pipeline, tokenizer))
        return pipeline

    def pipeline(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> DiffusionPipeline:
        """Load the complete diffusers pipeline, for comparison with this package in tests and benchmarks."""
        if self.source_kind == "folder":
            with naming_errors(self.source):
                pipeline = self.family.pipeline.from_pretrained(str(self.configs), dtype=dtype, local_files_only=True)
            return pipeline.to(device)
        return self._pipeline_with({"unet": self.unet(dtype, device), "vae": self.vae(dtype, device)}, dtype, device)

    def _pipeline_with(self, parts: dict[str, Any], dtype: torch.dtype, device: str) -> DiffusionPipeline:
        """Build diffusers' pipeline from `parts` and the base's text encoders and tokenizers."""
        parts = parts | dict(zip(self.family.tokenizers, self.tokenizers(), strict=True))
        parts |= {**self._pipeline_options, "scheduler": self.scheduler("ddpm")}
        if self.source_kind != "file":
            encoders = {name: self._load(name, kind, dtype, device) for name, kind in self.family.text_encoders.items()}
            return self.family.pipeline(**parts, **encoders)
        with naming_errors(self.source):
            pipeline = self.family.pipeline.from_single_file(
                self.source, config=str(self.configs), local_files_only=True, torch_dtype=dtype, **parts
            )
            return pipeline.to(device)

    def _check_encoder(self, encoder: Any, tokenizer: CLIPTokenizer) -> None:
        """Raise UserError for missing encoder weights or a wrong vocabulary; the libraries report neither."""
        if any(parameter.is_meta for parameter in encoder.parameters()):
            raise SettingError("base", self.source, "incomplete text encoder; get the base again or choose another")
        if len(tokenizer) > encoder.config.vocab_size or len(tokenizer) < 256:
            raise SettingError(
                "base",
                self.source,
                f"the tokenizer has {len(tokenizer)} tokens, but the base's text encoder expects "
                f"{encoder.config.vocab_size}; pass --tokenizer FOLDER with the right tokenizer",
            )

    def scheduler(self, sampler: str) -> Any:
        """Create the diffusers scheduler named `sampler` (a key of SAMPLERS) from the base's scheduler config.

        Clipping to [-1, 1] is always off, because latents exceed this range. Raises UserError for a base that predicts
        noise with zero terminal SNR: at the last timestep, latents have no signal (Lin et al. 2023, arXiv 2305.08891).
        """
        config = read_model_config(self.configs, "scheduler", "scheduler_config.json") | self.declared.settings
        scheduler = SAMPLERS[sampler].from_config(config, clip_sample=False, thresholding=False)
        if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] < _ZERO_ALPHAS_CUMPROD:
            raise SettingError(
                "base",
                self.source,
                "predicts noise (epsilon) with zero terminal SNR, which gives NaN at the last "
                "timestep; in scheduler_config.json set prediction_type to v_prediction if the base was trained with "
                "v-prediction, otherwise set rescale_betas_zero_snr to false",
            )
        return scheduler

    @property
    def prediction(self) -> str:
        """Prediction type, zero terminal SNR if the base has it, and the place where they are declared, as text."""
        config = self.scheduler("ddpm").config
        zero = ", zero terminal SNR" if config.rescale_betas_zero_snr else ""
        where = " and ".join(self.declared.declarations) or (
            "the default, because the file declares no prediction type"
            if self.source_kind == "file"
            else "stated in its scheduler config"
        )
        return f"{config.prediction_type}{zero} ({where})"

    @property
    def warnings(self) -> list[str]:
        """A list of one warning if a .safetensors file declares contradictory prediction types, else an empty list."""
        if not self.declared.contradicted:
            return []
        return [f"{self.source}: its {self.declared.contradicted} contradicts its key v_pred, which is used"]

    @property
    def _pipeline_options(self) -> dict[str, Any]:
        """Arguments of the pipeline's constructor other than models, partly from the base's model_index.json."""
        declared = self.family.declared_options
        index = read_model_json(self.configs / "model_index.json") if declared else {}
        return {**self.family.pipeline_options, **{name: index.get(name, value) for name, value in declared.items()}}

    def _load(self, name: str, kind: Any, dtype: torch.dtype, device: str) -> Any:
        with naming_errors(self.source):
            if self.source_kind == "random":
                return random_network(name, kind, self.configs, dtype, device)
            if self.source_kind == "file":
                options = {"config": str(self.configs), "subfolder": name, "local_files_only": True}
                return kind.from_single_file(self.source, **options, torch_dtype=dtype).eval().to(device)
            variant = "fp16" if has_only_fp16(self.configs / name) else None
            options = {"subfolder": name, "variant": variant, "local_files_only": True, "use_safetensors": True}
            return kind.from_pretrained(str(self.configs), **options, dtype=dtype).eval().to(device)

    def tokenizers(self) -> list[CLIPTokenizer]:
        """Load one tokenizer for each text encoder, without loading the text encoders."""
        with naming_errors(self.source):
            return [self._load_tokenizer(name) for name in self.family.tokenizers]

    def _load_tokenizer(self, name: str) -> CLIPTokenizer:
        if self.source_kind == "random":
            return byte_tokenizer("!") if name == "tokenizer_2" else byte_tokenizer()
        folder = (self.tokenizer or self.configs) / name
        if not ((folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file()):
            folder = published_vocabulary(self.source, self.family, name)
        if (folder / "tokenizer_config.json").is_file():
            return CLIPTokenizer.from_pretrained(str(folder))
        published = read_model_config(CONFIGS / self.family.name, name, "tokenizer_config.json")
        options = {key: published[key] for key in ("model_max_length", "pad_token")}  # vocabulary files lack these
        return CLIPTokenizer.from_pretrained(str(folder), **options)


def open_base(source: str, tokenizer: Path | None = None, configs: Path | None = None) -> Base:
    """Find a base and detect its model family, without loading weights.

    source: the name of a bundled base, the name of a base with random weights (see `random_bases`), a diffusers folder,
    an original-format .safetensors file, or a hub id.
    tokenizer: the folder that contains the tokenizers (`tokenizer` and, for SDXL, `tokenizer_2`); default: those of the
    base or, if it has none, those published for its model family.
    configs: the folder of the configs for a .safetensors file; default: the published configs of the model family.
    Raises UserError, naming the source, if the base is not found or is neither SDXL nor SD1.5.
    """
    if source.startswith("random:"):
        return _open_random(source)
    if source in bundled_bases():
        return _open_folder(source, BUNDLED / source, "folder", tokenizer)
    path = Path(source)
    if path.exists():
        source = str(path.resolve())  # absolute path, for messages and the scores of `evaluate`
    if path.is_file():
        return _open_file(path.resolve(), tokenizer, configs)
    return _open_folder(source, path if path.is_dir() else download_base(source), "folder", tokenizer)


def _checked(base: Base) -> Base:
    """Return the base if its configs are complete and supported, else raise UserError."""
    with naming_errors(base.source):
        _check_schedule(base)
        prediction = base.scheduler("ddpm").config.prediction_type
        if prediction not in ("epsilon", "v_prediction"):
            raise SettingError(
                "base", base.source, f"predicts {prediction}; only epsilon (noise) and v_prediction are supported"
            )
        _ = base.view_size, base.latent_channels, base.timesteps
    return base


def _check_schedule(base: Base) -> None:
    """Raise UserError for a schedule without betas (EDM, flow matching): diffusers would use default betas instead."""
    config = read_model_config(base.configs, "scheduler", "scheduler_config.json")
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise SettingError(
            "base",
            base.source,
            f"its noise schedule is that of a {config.get('_class_name')}, which has no betas; "
            "only bases with a DDPM schedule are supported",
        )


def _open_folder(
    source: str, folder: Path, source_kind: Literal["folder", "random"], tokenizer: Path | None = None
) -> Base:
    with naming_errors(source):
        return _checked(Base(source, family_of_folder(folder, source), folder, source_kind, tokenizer))


def _open_file(path: Path, tokenizer: Path | None, configs: Path | None) -> Base:
    if path.suffix != ".safetensors":
        raise SettingError(
            "base",
            path,
            "only .safetensors files are read, because pickled checkpoints can run code; "
            "convert it with diffusers' scripts or download the .safetensors version",
        )
    with naming_errors(str(path)):
        header = read_header(path)
        family = family_of_file(header)
        folder, declared = configs or CONFIGS / family.name, declared_schedule(header)
        base = _checked(Base(str(path), family, folder, "file", tokenizer, declared))
        check_inputs(path, unet_inputs(header), (base.latent_channels, base.unet_config["cross_attention_dim"]))
    return base


def _open_random(source: str) -> Base:
    folder = CONFIGS / source.removeprefix("random:")
    if folder.parent != CONFIGS or not folder.is_dir():
        raise SettingError("base", source, f"unknown; choose one of {', '.join(random_bases())}")
    return _open_folder(source, folder, "random")


def bundled_bases() -> list[str]:
    """Return the names of the small trained bases that ship with the package."""
    return sorted(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()) if BUNDLED.is_dir() else []


def random_bases() -> list[str]:
    """Return the names of the bases with random weights: full-size for benchmarks, tiny for trials and tests."""
    return sorted(f"random:{folder.name}" for folder in CONFIGS.iterdir() if folder.is_dir())


def check_steps(setting: str, steps: int, base: Base) -> None:
    """Raise SettingError, naming `setting`, if `steps` is not below the number of timesteps of the base."""
    if steps >= base.timesteps:
        raise SettingError(setting, steps, f"this base allows at most {base.timesteps - 1}")
