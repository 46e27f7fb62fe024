"""An adapter has the same effect in every program's format, and comes back from each with the same weights."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters import KINDS, description, generate_joint, with_adapter
from retipair.models.base import Base, open_base
from retipair.models.empty import empty_unet
from retipair.models.families import CONFIGS, FAMILIES
from retipair.models.lora import (
    DIFFUSERS_WEIGHTS,
    KOHYA_WEIGHTS,
    TARGETS,
    load_adapter,
    read_adapter_metadata,
    read_fitting_lora,
    read_lora,
    save_adapter,
)
from retipair.models.lora_files import kohya_name
from retipair.runtime.errors import FileError
from single_file import write_single_file

NIGHTLY = pytest.mark.nightly
KOHYA_KINDS = [kind for kind in KINDS if kind != "dora"]


@pytest.fixture
def base(system: str, base_folder: Callable[[str], Path]) -> Base:
    return open_base(str(base_folder(system)))


def saved(base: Base, folder: Path, kind: str = "alpha", targets: str = "attention") -> Path:
    save_adapter(folder, base, with_adapter(base, kind, targets), description(base, kind))
    return folder


def weights(path: Path, base: Base) -> dict[str, torch.Tensor]:
    return read_lora(path, empty_unet(base), base).tensors


def loaded(path: Path, base: Base) -> Any:
    unet = base.unet().eval()
    load_adapter(path, unet, base)
    return unet


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", TARGETS)
def test_each_format_comes_back_with_the_same_weights(base: Base, kind: str, targets: str, tmp_path: Path) -> None:
    folder = saved(base, tmp_path, kind, targets)
    expected = weights(folder, base)
    for name in (DIFFUSERS_WEIGHTS, *([KOHYA_WEIGHTS] if kind != "dora" else [])):
        state = weights(folder / name, base)
        assert set(state) == set(expected)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())
        assert read_adapter_metadata(folder / name) == read_adapter_metadata(folder)
    assert (folder / KOHYA_WEIGHTS).exists() == (kind != "dora")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "rslora" else NIGHTLY) for k in KINDS])
def test_each_format_generates_the_same_image(base: Base, kind: str, tmp_path: Path) -> None:
    folder = saved(base, tmp_path, kind, "all")
    expected = generate_joint(base, loaded(folder, base))
    assert np.array_equal(generate_joint(base, loaded(folder / DIFFUSERS_WEIGHTS, base)), expected)
    if kind != "dora":
        by_kohya = generate_joint(base, loaded(folder / KOHYA_WEIGHTS, base))
        assert np.abs(by_kohya.astype(int) - expected).max() <= 1  # alpha x sqrt(rank) / rank is rounded


def merge_kohya(single_file: Path, lora: Path, original_names: bool, layers: list[str]) -> dict[str, torch.Tensor]:
    """Merge a kohya file into the weights of a base, by ComfyUI's rule for names, apart from our code.

    The names of SDXL's layers are those of the single file; those of SD1.5 are diffusers'.
    """
    state, lora_state = load_file(single_file), load_file(lora)
    prefix = "model.diffusion_model." if original_names else ""
    keys = {f"lora_unet_{name.removeprefix(prefix).removesuffix('.weight').replace('.', '_')}": name for name in layers}
    for key, name in keys.items():
        if (down := lora_state.pop(f"{key}.lora_down.weight", None)) is not None:
            up, alpha = (lora_state.pop(f"{key}.{part}") for part in ("lora_up.weight", "alpha"))
            delta = (up.flatten(1) @ down.flatten(1)).reshape(state[name].shape)
            state[name] = state[name] + delta * alpha / len(down)
    assert not lora_state, f"no layer for {next(iter(lora_state))}"
    return state


@pytest.mark.parametrize("kind", KOHYA_KINDS)
@pytest.mark.parametrize("targets", TARGETS)
def test_an_independent_merger_of_the_kohya_file_predicts_the_same(
    base: Base, kind: str, targets: str, tmp_path: Path
) -> None:
    folder, file, merged = saved(base, tmp_path / "a", kind, targets), tmp_path / "base.safetensors", base.unet().eval()
    if base.family.name == "sdxl":
        write_single_file(base.configs, file)
        names = [name for name in load_file(file) if name.startswith("model.") and name.endswith(".weight")]
        save_file(merge_kohya(file, folder / KOHYA_WEIGHTS, True, names), file)
        merged = UNet2DConditionModel.from_single_file(
            str(file), config=str(base.configs), subfolder="unet", local_files_only=True
        ).eval()
    else:
        save_file(merged.state_dict(), file)
        names = [name for name in load_file(file) if name.endswith(".weight")]
        merged.load_state_dict(merge_kohya(file, folder / KOHYA_WEIGHTS, False, names))
    expected = generate_joint(base, loaded(folder, base)).astype(int)
    assert np.abs(expected - generate_joint(base, base.unet().eval())).mean() > 1, "the adapter does nothing"
    assert_close(base, merged, loaded(folder, base))


def assert_close(base: Base, unet: Any, expected: Any) -> None:
    """The predictions of two UNets for the same noise are equal to five digits, computed in double precision."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, base.latent_channels, 16, 16, generator=rng).double()
    text = torch.randn(1, 77, base.unet_config["cross_attention_dim"], generator=rng).double()
    more = None
    if base.family.size_ids:
        config = base.unet_config
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        more = {"text_embeds": torch.zeros(1, pooled).double(), "time_ids": torch.zeros(1, 6).double()}
    with torch.no_grad():
        a, b = (net.double()(inputs, 500, text, added_cond_kwargs=more).sample for net in (unet, expected))
    assert torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))


def test_diffusers_loads_the_kohya_file_with_the_same_image(base: Base, tmp_path: Path) -> None:
    folder = saved(base, tmp_path)
    pipeline: Any = base.pipeline()
    pipeline.load_lora_weights(str(folder / KOHYA_WEIGHTS))
    assert np.array_equal(generate_joint(base, pipeline.unet.eval()), generate_joint(base, loaded(folder, base)))


def attention_names_of_sdxl() -> list[str]:
    """The names of SDXL's attention layers in kohya's files, by the numbers of its blocks and their transformers."""
    depths = {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10, "input_blocks_8_1": 10}
    depths |= {"middle_block_1": 10} | {f"output_blocks_{block}_1": 10 if block < 3 else 2 for block in range(6)}
    layers = [f"attn{n}_to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out_0")]
    return [
        f"lora_unet_{block}_transformer_blocks_{number}_{layer}"
        for block, depth in depths.items()
        for number in range(depth)
        for layer in layers
    ]


def attention_names_of_sd15() -> list[str]:
    blocks = [f"down_blocks_{level}_attentions_{layer}" for level in range(3) for layer in range(2)]
    blocks += ["mid_block_attentions_0", *(f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in range(3))]
    layers = [f"attn{n}_to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out_0")]
    return [f"lora_unet_{block}_transformer_blocks_0_{layer}" for block in blocks for layer in layers]


@pytest.mark.parametrize(
    ("system", "expected"), [("sdxl", attention_names_of_sdxl()), ("sd15", attention_names_of_sd15())]
)
def test_the_layers_of_the_published_models_have_the_names_that_kohya_writes(system: str, expected: list[str]) -> None:
    published = json.loads((Path(__file__).parent / "published" / f"{system}.json").read_text())["unet"]
    config = json.loads((CONFIGS / system / "unet" / "config.json").read_text())
    adapted = tuple(f".{layer}.weight" for layer in TARGETS["attention"])
    layers = [name.removesuffix(".weight") for name in published if name.endswith(adapted)]
    names = [kohya_name(layer, config, FAMILIES[system]) for layer in layers]
    assert sorted(names) == sorted(expected)
    assert len(names) == {"sdxl": 560, "sd15": 128}[system]


def test_the_kohya_file_has_three_tensors_for_each_layer_and_metadata_without_paths(base: Base, tmp_path: Path) -> None:
    folder = saved(base, tmp_path, "rslora")
    with safe_open(folder / KOHYA_WEIGHTS, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    layers = {name.partition(".")[0] for name in names}
    assert names == {f"{layer}.{part}" for layer in layers for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "4")  # rsLoRA: 2 x sqrt(4)
    assert metadata["modelspec.architecture"] == base.family.lora_architecture
    own = json.dumps({key: value for key, value in metadata.items() if key != "retipair"})
    assert str(base.configs) not in own
    assert base.source not in own


# --- Files of other programs


@contextmanager
def refused(path: Path, problem: str) -> Iterator[None]:
    with pytest.raises(FileError, match=problem) as caught:
        yield
    assert caught.value.path == path


def test_other_names_and_half_precision_are_read(base: Base, tmp_path: Path) -> None:
    """diffusers' names in a kohya file, which some trainers write for SDXL, and diffusers' names of 2023."""
    folder = saved(base, tmp_path)
    expected = weights(folder, base)
    layers = sorted({name.rpartition(".lora_")[0] for name in expected})
    state, old = {}, {}
    for layer in layers:
        down, up = (expected[f"{layer}.lora_{matrix}.weight"] for matrix in "AB")
        flat = f"lora_unet_{layer.replace('.', '_')}"
        state |= {f"{flat}.lora_down.weight": down.half(), f"{flat}.lora_up.weight": up.half()}
        state[f"{flat}.alpha"] = torch.tensor(11.0).half()
        attention, _, part = layer.rpartition(".to_")
        where = f"unet.{attention}.processor.to_{part.removesuffix('.0')}_lora"
        old |= {f"{where}.down.weight": down, f"{where}.up.weight": up}
    save_file(state, tmp_path / "other.safetensors")
    lora = read_lora(tmp_path / "other.safetensors", empty_unet(base), base)
    assert all(torch.equal(lora.tensors[name], tensor.half()) for name, tensor in expected.items())
    assert (lora.config.r, lora.config.lora_alpha) == (4, 11.0)
    on_unet = get_peft_model_state_dict(loaded(tmp_path / "other.safetensors", base))
    assert all(tensor.dtype == torch.float32 for tensor in on_unet.values())
    save_file(old, tmp_path / "old.safetensors")
    lora = read_lora(tmp_path / "old.safetensors", empty_unet(base), base)
    assert all(torch.equal(lora.tensors[name], tensor) for name, tensor in expected.items())
    assert (lora.config.r, lora.config.lora_alpha) == (4, 4)  # without an alpha, it is the rank


def test_files_that_are_no_lora_for_this_base_are_refused(base: Base, tmp_path: Path) -> None:
    folder = saved(base, tmp_path)
    state = load_file(folder / KOHYA_WEIGHTS)
    layer = next(iter(state)).partition(".")[0]
    down, up = f"{layer}.lora_down.weight", f"{layer}.lora_up.weight"
    bad = tmp_path / "bad.safetensors"
    cases = {
        "text encoders": {"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0)},
        "LoHa": {f"{layer}.hada_w1_a": torch.ones(4, 4)},
        "is not in this base": {"lora_unet_input_blocks_99_1_proj_in.alpha": torch.tensor(1.0)},
        "different ranks": {down: state[down][:2].clone(), up: state[up][:, :2].clone()},
        "equal ranks": {down: state[down][:2].clone()},
        "two matrices": {down: torch.tensor(1.0)},
        "different alphas": {f"{layer}.alpha": torch.tensor(1.0)},
        "alpha is NaN or larger": {name: torch.tensor(1e37) for name in state if name.endswith(".alpha")},
        "NaN": {down: torch.full_like(state[down], float("nan"))},
        "in different ways": {f"{layer}.dora_scale": torch.ones(4, 1)},
        "is unknown": {f"{layer}.bias": torch.ones(4)},
    }
    for problem, changes in cases.items():
        save_file({**state, **changes}, bad)
        with refused(bad, problem):
            read_lora(bad, empty_unet(base), base)
    bad.write_bytes(b"")
    save_file(load_file(folder / "kohya_lora.safetensors") | {f"{layer}.alpha": torch.ones(2)}, bad)
    with refused(bad, "single number"):
        read_lora(bad, empty_unet(base), base)
    save_file({name: tensor for name, tensor in state.items() if name != up}, bad)
    with refused(bad, "two matrices"):
        read_lora(bad, empty_unet(base), base)
    no_rank = {
        name: t[:0] if "lora_down" in name else t[:, :0] if "lora_up" in name else t for name, t in state.items()
    }
    save_file({name: tensor.clone() for name, tensor in no_rank.items()}, bad)
    with refused(bad, "equal ranks"):
        read_lora(bad, empty_unet(base), base)
    with refused(folder / "adapter_model.safetensors", "adapter_config.json"):
        read_lora(folder / "adapter_model.safetensors", empty_unet(base), base)
    save_file({"some.weight": torch.ones(2)}, bad)
    with refused(bad, "contains no LoRA"):
        read_lora(bad, empty_unet(base), base)
    bad.write_bytes(b"no safetensors")
    with refused(bad, "damaged"):
        read_lora(bad, empty_unet(base), base)
    pickled = tmp_path / "adapter.ckpt"
    pickled.write_bytes(b"")
    with refused(pickled, "pickled"):
        read_lora(pickled, empty_unet(base), base)


def test_damaged_files_of_diffusers_are_refused(base: Base, tmp_path: Path) -> None:
    file, bad = saved(base, tmp_path) / DIFFUSERS_WEIGHTS, tmp_path / "bad.safetensors"
    state = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    settings = json.loads(metadata["lora_adapter_metadata"])
    for alpha in (float("nan"), float("inf"), 10**400):
        save_file(state, bad, {"lora_adapter_metadata": json.dumps({**settings, "unet.lora_alpha": alpha})})
        with refused(bad, "alpha is NaN or larger"):
            read_lora(bad, empty_unet(base), base)
    save_file(state, bad, {"lora_adapter_metadata": json.dumps({**settings, "unet.use_dora": True})})
    with refused(bad, "does not fit .*lora_magnitude_vector"):
        read_fitting_lora(bad, empty_unet(base), base)
    key = next(name for name in state if name.endswith("attn1.to_k.lora_B.weight"))
    pair = {"lora_A.weight": torch.zeros(4, 4), "lora_B.weight": torch.zeros(4, 4)}
    for problem, changes in {
        "twice": {key.replace(".to_k.lora_B", ".processor.to_k_lora.up"): state[key].clone()},
        "its tensor other.bias is unknown": {"unet.other.bias": torch.zeros(4)},
        "its layer other is not in this base": {f"unet.other.{name}": tensor for name, tensor in pair.items()},
    }.items():
        save_file({**state, **changes}, bad, metadata)
        with refused(bad, problem):
            read_lora(bad, empty_unet(base), base)


def test_damaged_folders_are_refused(base: Base, tmp_path: Path) -> None:
    folder = saved(base, tmp_path)
    settings, weights_path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    values, state = json.loads(settings.read_text()), load_file(weights_path)
    for alpha in (float("nan"), float("-inf"), 10**400):
        settings.write_text(json.dumps({**values, "lora_alpha": alpha}))
        with refused(settings, "lora_alpha"):
            read_lora(folder, empty_unet(base), base)
    settings.write_text(json.dumps(values))
    down = next(name for name in state if "lora_A" in name)
    up = down.replace("lora_A", "lora_B")
    for changes in (
        {down: torch.tensor(1.0)},
        {up: state[up][:, :3].clone()},
        {up: state[up][..., None, None].clone()},
    ):
        save_file({**state, **changes}, weights_path)
        with refused(folder, f"its layer {down.removeprefix('base_model.model.').partition('.lora_')[0]}"):
            read_lora(folder, empty_unet(base), base)


def test_float8_is_read_as_float32(base: Base, tmp_path: Path) -> None:
    folder, file = saved(base, tmp_path), tmp_path / "float8.safetensors"
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(folder / KOHYA_WEIGHTS).items()}
    save_file(state, file)
    rounded = {name: tensor.to(torch.float8_e4m3fn).float() for name, tensor in weights(folder, base).items()}
    read = weights(file, base)
    assert set(read) == set(rounded)
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in read.items())
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    layer = next(iter(state)).partition(".")[0]
    bad = torch.full_like(state[f"{layer}.lora_up.weight"].float(), float("nan")).to(torch.float8_e4m3fn)
    save_file({**state, f"{layer}.lora_up.weight": bad}, file)
    with refused(file, "NaN"):
        weights(file, base)


def test_the_same_adapter_gives_the_same_bytes(base: Base, tmp_path: Path) -> None:
    """PEFT and safetensors alone write the layers and the metadata in an order that differs between processes."""
    first, second = (saved(base, tmp_path / name, targets="all") for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name
    targets = json.loads((first / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(TARGETS["all"])
    with safe_open(first / DIFFUSERS_WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["lora_adapter_metadata"])["unet.target_modules"] == targets
