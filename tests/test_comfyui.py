"""The ComfyUI workflows in docs/comfyui: connected, of core nodes, with the sizes and the prompt of the training."""

import json
from pathlib import Path

import pytest

from retipair.config import DEFAULT_PROMPT, GenerateConfig
from retipair.data.layout import Layout
from retipair.models.families import FAMILIES

FOLDER = Path(__file__).parent.parent / "docs/comfyui"
NODES = {  # core nodes of ComfyUI: their inputs, and the number of their outputs
    "CheckpointLoaderSimple": ({"ckpt_name"}, 3),
    "LoraLoaderModelOnly": ({"model", "lora_name", "strength_model"}, 1),
    "CLIPTextEncode": ({"clip", "text"}, 1),
    "CLIPTextEncodeSDXL": (
        {"clip", "width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"},
        1,
    ),
    "EmptyLatentImage": ({"width", "height", "batch_size"}, 1),
    "KSampler": (
        {"model", "seed", "steps", "cfg", "sampler_name", "scheduler"}
        | {"positive", "negative", "latent_image", "denoise"},
        1,
    ),
    "VAEDecode": ({"samples", "vae"}, 1),
    "ImageCrop": ({"image", "width", "height", "x", "y"}, 1),
    "ImageScale": ({"image", "upscale_method", "width", "height", "crop"}, 1),
    "ImageToMask": ({"image", "channel"}, 1),
    "MaskToImage": ({"mask"}, 1),
    "SaveImage": ({"images", "filename_prefix"}, 0),
}


@pytest.fixture
def nodes(system: str) -> list[dict]:
    return list(json.loads((FOLDER / f"{system}.json").read_text()).values())


def of_kind(nodes: list[dict], kind: str) -> list[dict]:
    return [node["inputs"] for node in nodes if node["class_type"] == kind]


def test_nodes_are_core_nodes_and_connected(system: str) -> None:
    workflow = json.loads((FOLDER / f"{system}.json").read_text())
    for node in workflow.values():
        inputs, _ = NODES[node["class_type"]]
        assert set(node["inputs"]) == inputs
        for source, output in (value for value in node["inputs"].values() if isinstance(value, list)):
            assert output < NODES[workflow[source]["class_type"]][1]


def test_sizes_and_prompt_are_those_of_the_training(system: str, nodes: list[dict]) -> None:
    layout = Layout(FAMILIES[system].layout, 512)
    height, width = layout.joint_size
    [latent] = of_kind(nodes, "EmptyLatentImage")
    assert (latent["width"], latent["height"]) == (width, height)
    cf, fa = of_kind(nodes, "ImageCrop")
    assert [(half["x"], half["width"], half["height"]) for half in (cf, fa)] == [
        (0, width // 2, height),
        (width // 2, width // 2, height),
    ]
    if system == "sdxl":
        [text] = of_kind(nodes, "CLIPTextEncodeSDXL")
        assert (text["text_g"], text["text_l"]) == (DEFAULT_PROMPT, DEFAULT_PROMPT)
        ids = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
        assert [text[name] for name in ids] == [512, 1024, 0, 0, 512, 1024]
    else:
        assert of_kind(nodes, "CLIPTextEncode") == [{"clip": ["1", 1], "text": DEFAULT_PROMPT}]
        assert all((scale["width"], scale["height"]) == (512, 512) for scale in of_kind(nodes, "ImageScale"))


def test_each_saved_view_comes_from_its_half_and_the_sampler_from_the_adapter(system: str) -> None:
    workflow = json.loads((FOLDER / f"{system}.json").read_text())

    def sources(key: str) -> list[dict]:
        """The nodes before a node, nearest first, along the first link of each."""
        inputs = workflow[key]["inputs"].values()
        link = next((value[0] for value in inputs if isinstance(value, list)), None)
        return [] if link is None else [workflow[link], *sources(link)]

    saved = {
        node["inputs"]["filename_prefix"]: key for key, node in workflow.items() if node["class_type"] == "SaveImage"
    }
    width = Layout(FAMILIES[system].layout, 512).joint_size[1] // 2
    for prefix, x in (("retipair/cf", 0), ("retipair/fa", width)):
        kinds = {node["class_type"]: node["inputs"] for node in sources(saved[prefix])}
        assert kinds["ImageCrop"]["x"] == x
        assert ("ImageScale" in kinds) == (system == "sd15")
        assert ("ImageToMask" in kinds) == (prefix == "retipair/fa")
        sampler = kinds["KSampler"]
        assert workflow[sampler["model"][0]]["class_type"] == "LoraLoaderModelOnly"
        assert (sampler["sampler_name"], sampler["steps"], sampler["cfg"]) == (
            GenerateConfig().sampler,
            GenerateConfig().steps,
            GenerateConfig().guidance_scale,
        )
