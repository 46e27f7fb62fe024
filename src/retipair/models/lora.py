"""Add, save and load an adapter: LoRA weights for the UNet of a base, with the metadata that generation needs.

The folder of an adapter (`unet_lora/`) contains the same weights and metadata in two files. PEFT and the original
scripts read `adapter_model.safetensors`. `load_lora_weights` of diffusers pipelines reads
`pytorch_lora_weights.safetensors`.

The second file uses PEFT's tensor names with the prefix `unet.`. diffusers' `convert_state_dict_to_diffusers` is not
used: it renames only the tensors of `to_q/k/v/out`, and `load_lora_weights` ignores a part of the tensors if a file
mixes renamed tensors with others.
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
from diffusers.training_utils import EMAModel, _collate_lora_metadata, cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from retipair.models.base import Base
from retipair.models.trained_views import TrainedViews
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import DamagedError, FileError, MissingError
from retipair.runtime.schema import from_values

TARGETS = {
    "attention": ["to_k", "to_q", "to_v", "to_out.0"],
    "all": ["to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"],
}
PEFT_WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
_PEFT_PREFIX = "base_model.model."
_METADATA_KEY = "retipair"
SCHEMA = "retipair.adapter/1"
_LARGEST_RANK = 4096


@dataclass(frozen=True, kw_only=True)
class AdapterMetadata:
    """Facts about the training of an adapter, for generation. Adapters are shared, so no field contains a path.

    system: the name of the model family.
    base: the name of the base.
    base_sha256: the fingerprint of the base.
    prompts: each prompt of the training, with the number of training pairs that have it.
    size_ids: the six size ids of SDXL; empty for SD1.5.
    views: facts about the training views, see `TrainedViews`; None in adapters of earlier versions.
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
    schema: str = SCHEMA


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
    """Write the adapter and its metadata into `folder`, as a file for PEFT and a file for diffusers."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(unet).items()}
    metadata = {_METADATA_KEY: json.dumps(asdict(description), sort_keys=True, ensure_ascii=False)}
    unet.peft_config["default"].save_pretrained(str(folder))
    save_file({_PEFT_PREFIX + n: t for n, t in state.items()}, folder / PEFT_WEIGHTS, {"format": "pt", **metadata})
    pipeline: Any = base.family.pipeline
    pipeline.save_lora_weights(folder, state, **_collate_lora_metadata({"unet": unet}))
    _add_metadata(folder / DIFFUSERS_WEIGHTS, metadata)


def _add_metadata(path: Path, more: dict[str, str]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {**(file.metadata() or {}), **more}
    save_file(load_file(path), path, metadata)


def read_adapter_metadata(folder: Path) -> AdapterMetadata | None:
    """Read the metadata of the adapter in `folder`; None if it has no metadata.

    Adapters of the original scripts have none. Raises UserError, naming the folder, if it contains no readable adapter.
    """
    with _open_weights(folder) as file:
        text = (file.metadata() or {}).get(_METADATA_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(folder, f"its metadata is damaged ({error}); use another checkpoint") from None
    description = from_values(AdapterMetadata, values, f"{folder}: its metadata", "use another checkpoint")
    if description.schema != SCHEMA:
        raise FileError(folder, "written by another version of retipair; use that version")
    views_damaged = description.views is not None and not description.views.is_valid
    if not description.prompts or description.view_size % 64 or views_damaged:
        raise DamagedError(folder, "its metadata is damaged (prompts, view_size or views); use another checkpoint")
    return description


def load_adapter(folder: Path, unet: UNet, base: str) -> None:
    """Add the adapter in `folder` to a UNet, in fp32. base: the name of the UNet's base, for the error message.

    Raises UserError, naming the folder, if the adapter is unreadable, contains NaN or infinity, or does not fit the
    UNet.
    """
    state = read_tensors(folder)
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise FileError(folder, "contains NaN or infinity, because its training diverged; use another checkpoint")
    config = _read_lora_config(folder)
    if any(tensor.shape[0] != config.r for name, tensor in state.items() if name.endswith("lora_A.weight")):
        raise FileError(
            folder, f"some tensors do not have the rank {config.r} of adapter_config.json; use another checkpoint"
        )
    try:
        add_adapter(unet, config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise DamagedError(folder / "adapter_config.json", f"damaged ({error}); use another checkpoint") from None
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(unet).items()}
    if expected != {name: tensor.shape for name, tensor in state.items()}:
        raise FileError(folder, f"this adapter does not fit {base}; with --base, pass the base it was trained on")
    set_peft_model_state_dict(unet, state)


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
    valid = type(rank) is int and 0 < rank <= _LARGEST_RANK and type(alpha) in (int, float)
    valid &= isinstance(targets, list) and all(isinstance(t, str) and re.fullmatch(r"[\w.]+", t) for t in targets)
    if not valid:
        raise DamagedError(path, "damaged (r, lora_alpha or target_modules); use another checkpoint")
    if unknown := next((key for key in ("rank_pattern", "alpha_pattern", "modules_to_save") if values.get(key)), None):
        raise FileError(path, f"{unknown} is not supported; use an adapter with one rank and alpha for all layers")
    dora, rslora = (values.get(key) is True for key in ("use_dora", "use_rslora"))
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_dora=dora, use_rslora=rslora)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors by name. The names are those of PEFT without the prefix `base_model.model.`."""
    with _open_weights(folder) as file:
        return {name.removeprefix(_PEFT_PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def adapter_sha256(folder: Path) -> str:
    """Return a hash of the tensors, settings and metadata. A hash of the files could differ between two saves."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(folder).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    description = read_adapter_metadata(folder)
    lora = _read_lora_config(folder)
    settings = [lora.r, lora.lora_alpha, lora.use_dora, lora.use_rslora, sorted(lora.target_modules or [])]
    digest.update(json.dumps([settings, asdict(description) if description else None], sort_keys=True).encode())
    return digest.hexdigest()


def _open_weights(folder: Path) -> Any:
    path = folder / PEFT_WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise FileError(
            folder / "adapter_model.bin",
            "pickled weights are not read, because they can run code; load the adapter "
            "with PEFT and save it again (save_pretrained writes .safetensors)",
        )
    if not path.is_file() or not (folder / "adapter_config.json").is_file():
        raise MissingError(
            folder, f"no adapter here (an adapter needs {PEFT_WEIGHTS} and adapter_config.json); check --checkpoint"
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DamagedError(path, f"damaged ({error}); use another checkpoint") from None
