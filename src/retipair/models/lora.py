"""Add, save and load an adapter: LoRA weights for the UNet of a base, with the metadata that generation needs.

An adapter is a folder, or a LoRA file of another program (`lora_files`). The folder (`unet_lora/`) contains the same
weights and metadata in up to three files. PEFT and the original scripts read `adapter_model.safetensors`.
`load_lora_weights` of diffusers pipelines reads `pytorch_lora_weights.safetensors`. ComfyUI, Forge and kohya's
sd-scripts read `kohya_lora.safetensors`, which a DoRA does not have.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel as UNet
from diffusers.training_utils import EMAModel, cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from retipair.models.base import Base
from retipair.models.lora_files import (
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    Lora,
    check_layers,
    from_file,
    is_alpha,
    write_diffusers,
    write_kohya,
    write_peft,
)
from retipair.models.tensor_files import all_finite, widen_float8
from retipair.models.trained_views import TrainedViews
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import DamagedError, FileError, MissingError
from retipair.runtime.schema import from_values
from retipair.vision.modality import Modalities, drop_unrecorded, find_modalities

TARGETS = {
    "attention": ["to_k", "to_q", "to_v", "to_out.0"],
    "all": ["to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
}
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
KOHYA_WEIGHTS = "kohya_lora.safetensors"
METADATA_KEY = "retipair"
SCHEMA = "retipair.adapter/1"
_LARGEST_RANK = 4096
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True)
class AdapterMetadata:
    """Facts about the training of an adapter, for generation. Adapters are shared, so no field contains a path.

    system: the name of the model family.
    base: the name of the base.
    base_sha256: the fingerprint of the base.
    prompts: each prompt of the training, with the number of training pairs that have it.
    size_ids: the six size ids of SDXL; empty for SD1.5.
    views: facts about the training views, see `TrainedViews`; None in adapters of earlier versions.
    initial_sha256: the hash of the adapter from which the training started (--init_adapter); None if it started anew.
    modalities, vessels: the modalities of the training pairs, see `Modalities.recorded`; None for CF and FA.
    """

    system: str
    layout: str
    view_size: int
    base: str
    base_sha256: str
    rank: int
    alpha: float
    targets: str
    dora: bool
    rslora: bool
    prompts: list[tuple[str, int]]
    prompt_dropout: float
    size_ids: list[int]
    data_sha256: str
    step: int
    views: TrainedViews | None = None
    initial_sha256: str | None = None
    modalities: list[str] | None = None
    vessels: list[str] | None = None
    schema: str = SCHEMA

    @property
    def pair_modalities(self) -> Modalities:
        """The modalities of the pairs that the adapter was trained on."""
        return find_modalities(self.modalities, self.vessels)

    @property
    def values(self) -> dict[str, Any]:
        """All fields as JSON values; those of the modalities are left out if they are None, as earlier versions do."""
        return drop_unrecorded(asdict(self))


def add_adapter(unet: UNet, config: LoraConfig, seed: int = 0) -> None:
    """Add a new adapter to the UNet. It does not change predictions before it is trained.

    The adapter's weights are always fp32, because an adapter in bf16 barely learns.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config)
    cast_training_params(unet, torch.float32)


def lora_config(rank: int, alpha: float, targets: str, dora: bool, rslora: bool) -> LoraConfig:
    """Create the LoRA config of PEFT. targets: a key of TARGETS, which selects the layers to adapt."""
    lora_alpha = int(alpha) if float(alpha).is_integer() else alpha
    return LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=TARGETS[targets], use_dora=dora, use_rslora=rslora)


def adapter_parameters(unet: UNet) -> dict[str, torch.nn.Parameter]:
    """Return the trainable parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}


class MovingAverage(EMAModel):
    """Exponential moving average (EMA) of parameters, based on diffusers' EMAModel.

    Unlike EMAModel, it can skip a step with NaN or infinity without synchronisation of GPU and CPU. For warm-up, the
    decay of the first update is 0, and the decay of update k (k = 2, 3, ...) is at most k / (9 + k).
    updates: the number of updates, a scalar tensor on the device.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        super().__init__(parameters, decay)
        self.updates = torch.zeros((), device=self.shadow_params[0].device)

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.nn.Parameter], finite: torch.Tensor) -> None:
        """Update the average if `finite`, a scalar bool tensor on the device, is true; else leave it unchanged."""
        self.updates += finite
        warmup = torch.where(self.updates > 1, 9 / (9 + self.updates), 1.0)
        weight = warmup.clamp(min=1 - self.decay) * finite
        for shadow, parameter in zip(self.shadow_params, parameters, strict=True):
            shadow.sub_(weight * (shadow - parameter))


def save_adapter(folder: Path, base: Base, unet: UNet, description: AdapterMetadata) -> None:
    """Write the adapter and its metadata into `folder`, as files for PEFT, diffusers and kohya's sd-scripts."""
    state = {name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(unet).items()}
    lora, metadata = Lora(state, unet.peft_config["default"]), as_file_metadata(description)
    folder.mkdir(parents=True, exist_ok=True)
    write_peft(folder, lora, metadata)
    write_diffusers(folder / DIFFUSERS_WEIGHTS, lora, base, metadata)
    if not description.dora:
        write_kohya(folder / KOHYA_WEIGHTS, lora, base, metadata)


def as_file_metadata(description: AdapterMetadata | None) -> dict[str, str]:
    """Return the entry of the metadata of a .safetensors file that describes an adapter; {} for None."""
    if description is None:
        return {}
    return {METADATA_KEY: json.dumps(description.values, sort_keys=True, ensure_ascii=False)}


def read_adapter_metadata(folder: Path) -> AdapterMetadata | None:
    """Read the metadata of an adapter, a folder or file; None if it has no metadata.

    Adapters of the original scripts and of other programs have none. Raises UserError, naming the adapter, if it is not
    readable.
    """
    with _open_weights(folder) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(folder, f"its metadata is damaged ({error}); use another checkpoint") from None
    description = from_values(AdapterMetadata, values, f"{folder}: its metadata", "use another checkpoint")
    if description.schema != SCHEMA:
        raise FileError(folder, "written by another version of retipair; use that version")
    try:
        find_modalities(description.modalities, description.vessels)
    except ValueError as error:
        raise DamagedError(folder, f"its metadata is damaged (modalities: {error}); use another checkpoint") from None
    views_damaged = description.views is not None and not description.views.is_valid
    if not description.prompts or description.view_size % 64 or views_damaged:
        raise DamagedError(folder, "its metadata is damaged (prompts, view_size or views); use another checkpoint")
    return description


def load_adapter(path: Path, unet: UNet, base: Base) -> None:
    """Add an adapter, a folder or file, to the UNet of a base, in fp32. Raises UserError as `read_fitting_lora`."""
    set_peft_model_state_dict(unet, read_fitting_lora(path, unet, base).tensors)


def read_fitting_lora(path: Path, unet: UNet, base: Base) -> Lora:
    """Read an adapter, a folder or file, and add it with untrained weights to the UNet, to check that it fits.

    unet: the UNet of the base. It may be on the meta device.
    Raises UserError, naming the adapter, if it is unreadable, contains NaN or infinity, or does not fit the UNet.
    """
    lora = read_lora(path, unet, base)
    try:
        add_adapter(unet, lora.config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        damaged = path / "adapter_config.json" if path.is_dir() else path
        raise DamagedError(damaged, f"damaged ({error}); use another checkpoint") from None
    check_fits(path, unet, lora, base)
    return lora


def set_adapter(path: Path, unet: UNet, lora: Lora, base: Base) -> None:
    """Set the weights of the adapter that was added to a UNet. Raises UserError, naming `path`, if they do not fit."""
    check_fits(path, unet, lora, base)
    set_peft_model_state_dict(unet, lora.tensors)


def check_fits(path: Path, unet: UNet, lora: Lora, base: Base) -> None:
    """Raise UserError, naming `path`, unless the adapter that was added to a UNet has the layers of `lora`."""
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(unet).items()}
    found = {name: tensor.shape for name, tensor in lora.tensors.items()}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise FileError(
            path,
            f"this adapter does not fit {base.source}, or adapts only a part of the layers (see its tensor "
            f"{wrong[0]}); with --base, pass the base it was trained on",
        )


def read_lora(path: Path, unet: UNet, base: Base) -> Lora:
    """Read the weights and settings of an adapter, a folder or file.

    unet: the UNet of the base. Its weights are not used, so it may be on the meta device.
    Raises UserError, naming the adapter, if it is unreadable, contains NaN or infinity, or has damaged layers or
    layers of several ranks.
    """
    return to_lora(path, read_tensors(path), unet, base)


def to_lora(path: Path, tensors: dict[str, torch.Tensor], unet: UNet, base: Base) -> Lora:
    """Return the adapter with these tensors (`read_tensors`), as `read_lora` does."""
    tensors = {name: widen_float8(tensor) for name, tensor in tensors.items()}
    if not all_finite(tensors.values()):
        raise FileError(path, "contains NaN or infinity, because its training diverged; use another checkpoint")
    if path.is_file():
        return from_file(path, tensors, _read_metadata(path), unet, base.family)
    config = _read_lora_config(path)
    if check_layers(path, tensors, unet) != config.r:
        raise FileError(
            path, f"some tensors do not have the rank {config.r} of adapter_config.json; use another checkpoint"
        )
    return Lora(tensors, config)


def settings_of(lora: Lora) -> tuple[int, float, str, bool, bool]:
    """Return the arguments of `lora_config` for a LoRA: rank, alpha, targets ("all" or "attention"), DoRA, rsLoRA."""
    config = lora.config
    layers = {name.rpartition(".lora_")[0] for name in lora.tensors}
    targets = "attention" if all(layer.endswith(tuple(TARGETS["attention"])) for layer in layers) else "all"
    return config.r, float(config.lora_alpha), targets, bool(config.use_dora), bool(config.use_rslora)


def merge_adapter(unet: UNet) -> None:
    """Merge the adapter into the UNet's fp32 weights. Predictions get faster and change only by rounding."""
    unet.fuse_lora()
    unet.unload_lora()


def _read_lora_config(folder: Path) -> LoraConfig:
    """Read the supported settings from adapter_config.json.

    All other settings are ignored, for security. For example, a setting may contain the name of a module that PEFT
    would import, or a regular expression that takes unlimited time.

    Raises UserError for damaged settings. Ranks or alphas that differ between layers, and modules trained in full, are
    not supported and also raise UserError.
    """
    path = folder / "adapter_config.json"
    values = read_json(path)
    rank, alpha, targets = values.get("r"), values.get("lora_alpha"), values.get("target_modules")
    valid = type(rank) is int and 0 < rank <= _LARGEST_RANK and is_alpha(alpha)
    valid &= isinstance(targets, list) and all(isinstance(t, str) and re.fullmatch(r"[\w.]+", t) for t in targets)
    if not valid:
        raise DamagedError(path, "damaged (r, lora_alpha or target_modules); use another checkpoint")
    if unknown := next((key for key in ("rank_pattern", "alpha_pattern", "modules_to_save") if values.get(key)), None):
        raise FileError(path, f"{unknown} is not supported; use an adapter with one rank and alpha for all layers")
    dora, rslora = (values.get(key) is True for key in ("use_dora", "use_rslora"))
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_dora=dora, use_rslora=rslora)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an adapter by name.

    For a folder, the names are those of PEFT without the prefix `base_model.model.`; for a file, those of the file.
    """
    prefix = PEFT_PREFIX if path.is_dir() else ""
    with _open_weights(path) as file:
        return {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _read_metadata(path: Path) -> dict[str, str]:
    with _open_weights(path) as file:
        return file.metadata() or {}


def adapter_sha256(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> str:
    """Return a hash of the tensors, settings and metadata. A hash of the files could differ between two saves.

    tensors: the tensors, if they have been read already.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((tensors or read_tensors(path)).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(_settings(path), sort_keys=True).encode())
    return digest.hexdigest()


def _settings(path: Path) -> list[Any]:
    """Return the settings and metadata of an adapter, as values of JSON."""
    if path.is_file():
        return [_read_metadata(path)]
    description, lora = read_adapter_metadata(path), _read_lora_config(path)
    settings = [lora.r, lora.lora_alpha, lora.use_dora, lora.use_rslora, sorted(lora.target_modules or [])]
    return [settings, description.values if description else None]


def weights_file(path: Path) -> Path:
    """Return the file that contains the weights of an adapter, which is a folder or this file."""
    return path if path.is_file() else path / PEFT_WEIGHTS


def _open_weights(path: Path) -> Any:
    weights = weights_file(path)
    pickled = path if path.suffix in _PICKLED and path.is_file() else path / "adapter_model.bin"
    if pickled.is_file() and not (path / PEFT_WEIGHTS).is_file():
        raise FileError(
            pickled,
            "pickled weights are not read, because they can run code; load the adapter "
            "with PEFT and save it again (save_pretrained writes .safetensors)",
        )
    if not weights.is_file() or not (path.is_file() or (path / "adapter_config.json").is_file()):
        raise MissingError(
            path, f"no adapter here (a folder with {PEFT_WEIGHTS} and adapter_config.json, or a .safetensors file)"
        )
    try:
        return safe_open(weights, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DamagedError(weights, f"damaged ({error}); use another checkpoint") from None
