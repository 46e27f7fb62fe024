"""Write a base with a merged adapter as one file in the original format, which ComfyUI and other programs read."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from retipair.models.base import Base
from retipair.models.hub import has_only_fp16
from retipair.models.loading import naming_errors
from retipair.models.lora import load_adapter, merge_adapter
from retipair.models.original_format import State, clip_state, open_clip_state, unet_state, vae_state
from retipair.models.tensor_files import all_finite, write_tensors
from retipair.runtime.errors import FileError, SettingError


def write_merged(path: Path, base: Base, adapter: Path, metadata: Mapping[str, str]) -> None:
    """Write UNet, autoencoder and text encoders of a base, with the adapter merged into the UNet.

    Each tensor has the dtype of the base's own file; the sum of weight and adapter is computed in float32 before.

    Raises UserError if the adapter does not fit the base, if a merged weight is NaN or infinity, or if the base has
    random weights.
    """
    if base.source_kind == "random":
        raise SettingError("base", base.source, "has random weights; pass the base that the adapter was trained on")
    unet = base.unet()
    load_adapter(adapter, unet, base)
    merge_adapter(unet)
    merged = unet_state(unet.state_dict(), base.unet_config)
    if base.source_kind == "file":
        state, own = load_file(base.source), _metadata(Path(base.source))
    else:
        state, own = {**_folder_state(base), **_declarations(base)}, {"format": "pt"}
    merged = {name: tensor.to(state[name].dtype) for name, tensor in merged.items()}
    if not all_finite(merged.values()):
        raise FileError(adapter, f"merged into {base.source}, it gives NaN or infinity; use another checkpoint")
    write_tensors(path, {name: tensor.contiguous() for name, tensor in (state | merged).items()}, {**own, **metadata})


def _folder_state(base: Base) -> State:
    """Return all tensors of a diffusers folder with their original names."""
    state = unet_state(_weights(base, "unet"), base.unet_config)
    # The autoencoder is loaded as a model, because old files have other names.
    dtypes = {tensor.dtype for tensor in _weights(base, "vae").values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    state |= vae_state(base.vae(dtype).state_dict(), base.vae_config)
    formats = ((clip_state, "transformer."), (open_clip_state, "model."))
    encoders = zip(base.family.text_encoders, base.family.single_file_encoders, strict=True)
    for (name, prefix), (convert, inner) in zip(encoders, formats, strict=False):  # SD1.5 has only the first
        state |= convert(_weights(base, name), prefix + inner)
    return state


def _declarations(base: Base) -> State:
    """Return the empty tensors that declare v-prediction and zero terminal SNR."""
    config = base.scheduler("ddpm").config
    names = {"v_pred": config.prediction_type == "v_prediction", "ztsnr": bool(config.rescale_betas_zero_snr)}
    return {name: torch.tensor([]) for name, declared in names.items() if declared}


def _weights(base: Base, part: str) -> State:
    with naming_errors(base.source):
        return {name: tensor for file in _files(base.configs / part) for name, tensor in load_file(file).items()}


def _files(folder: Path) -> Iterator[Path]:
    """Yield the weight files that diffusers would load: the fp16 variant only if there is no other."""
    wanted = has_only_fp16(folder)
    return (path for path in sorted(folder.glob("*.safetensors")) if (".fp16" in path.name) == wanted)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
