"""--memory in training and generation: its effect on results, and the message on running out of memory."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import retipair
from conftest import train_command
from refusals import Refused
from retipair.config import TrainConfig
from retipair.generation import plan as generation_plan
from retipair.interfaces.cli import main
from retipair.models.base import open_base
from retipair.models.conditioning import Conditioning
from retipair.models.denoiser import Denoiser
from retipair.models.lora import UNet, adapter_parameters, add_adapter, load_adapter, lora_config, read_tensors
from retipair.models.memory_strategies import GENERATION_STRATEGIES, TRAINING_STRATEGIES
from retipair.models.quantization import FP8
from retipair.runs.run_dir import Run, read_state
from retipair.runtime.errors import OccupiedError, UserError
from retipair.training import plan as training_plan
from retipair.training.plan import make_plan

Folder = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def leads_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make every number of GiB select the strategy at that index, although a tiny base needs little memory."""

    def lead(place: int) -> None:
        monkeypatch.setattr(
            training_plan, "select_strategy", lambda memory, *_: TRAINING_STRATEGIES[0 if memory == "auto" else place]
        )
        monkeypatch.setattr(
            generation_plan,
            "select_strategy",
            lambda memory, *_: GENERATION_STRATEGIES[0 if memory == "auto" else place - 1],
        )

    return lead


def run_of(results: Path, system: str = "sdxl") -> Path:
    return results / f"out_joint_{system}_cffa_pairs/exp"


def way_of(run: Path) -> str:
    return json.loads((run / "config.json").read_text())["memory_way"]


def test_what_fits_is_left_as_it_is(trained: Folder, prepared: Path, base_folder: Folder) -> None:
    assert way_of(run_of(trained("sdxl"))) == "no memory savings"
    settings = {"name": "x", "data": prepared, "base": str(base_folder("sdxl"))}
    assert make_plan(TrainConfig(**settings, memory="8")).strategy == TRAINING_STRATEGIES[0]  # type: ignore[arg-type]
    assert make_plan(TrainConfig(**settings, gradient_checkpointing=True)).strategy == TRAINING_STRATEGIES[1]  # type: ignore[arg-type]


def test_the_estimate_is_said_first_and_the_truth_last(
    prepared: Path, base_folder: Folder, tmp_path: Path, capsys: Capture
) -> None:
    command = train_command("exp", base_folder("sd15"), prepared, tmp_path, "--num_samples", 0, "--max_steps", 1)
    assert main([*command, "--memory", "12"]) == 0
    said = capsys.readouterr().err
    assert "memory: 0.0 GiB estimated, with no memory savings (--memory 12)\n" in said
    last = re.search(r"memory: 0\.0\d GiB estimated, \d\.\d\d GiB used at most, with no memory savings \(used", said)
    assert last
    assert last[0] in (run_of(tmp_path, "sd15") / "training_log.txt").read_text()


@pytest.mark.nightly
def test_an_adapter_learns_on_a_base_in_fp8_and_fits_the_whole_one(
    leads_to: Callable[[int], None], base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    leads_to(2)
    flags = ("--memory", "8", "--learning_rate", "1e-3", "--max_steps", 6, "--num_samples", 0, "--precision", "bf16")
    assert main(train_command("exp", base_folder("sdxl"), prepared, tmp_path, *flags)) == 0
    run = run_of(tmp_path)
    assert way_of(run) == TRAINING_STRATEGIES[2].name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert losses[-1] < losses[0]
    first, last = (read_tensors(run / f"latest_checkpoints/step_{step:06d}/unet_lora") for step in (2, 6))
    assert all(not torch.equal(first[name], last[name]) for name in first)
    base = open_base(str(base_folder("sdxl")))
    load_adapter(run / "latest_checkpoints/step_000006/unet_lora", base.unet(), base)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("dtype", "checkpointing"), [(torch.float32, True), (torch.bfloat16, True), (torch.float32, False)]
)
def test_a_step_gives_the_adapter_gradients_and_leaves_weights_in_fp8(dtype: torch.dtype, checkpointing: bool) -> None:
    unet = open_base("random:tiny-sdxl").unet(dtype, stored="fp8").train()
    add_adapter(unet, lora_config(4, 4, "attention", dora=False, rslora=False))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    before = [weight.clone() for weight in stored_in(unet, FP8)]
    predicted(unet, dtype).square().mean().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in adapter_parameters(unet).values())
    after = stored_in(unet, FP8)
    assert before
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(before, after, strict=True))


def stored_in(unet: UNet, dtype: torch.dtype) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in unet.parameters() if parameter.dtype == dtype]


def predicted(unet: UNet, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(0)
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    conditioning = Conditioning(
        torch.randn(1, 77, config.cross_attention_dim), torch.randn(1, pooled), torch.zeros(1, 6)
    )
    return Denoiser(unet, dtype, "cpu")(torch.randn(1, 4, 16, 32), torch.tensor([500]), conditioning)


@pytest.mark.parametrize(("stored", "most"), [("fp8", 0.08), ("nf4", 0.4)])
def test_fewer_bits_predict_nearly_the_same(stored: str, most: float) -> None:
    if stored == "nf4":
        pytest.importorskip("bitsandbytes")
    base = open_base("random:tiny-sdxl")
    with torch.no_grad():
        whole, small = (predicted(base.unet(stored=bits), torch.float32) for bits in (None, stored))  # type: ignore[arg-type]
    assert 0 < (small - whole).norm() / whole.norm() < most


def test_nf4_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"^weights in nf4 need bitsandbytes: pip install 'retipair\[nf4\]'$"):
        open_base("random:tiny-sdxl").unet(stored="nf4")


@pytest.mark.nightly
def test_a_resumed_run_keeps_its_way_or_says_what_differs(
    leads_to: Callable[[int], None], base_folder: Folder, prepared: Path, tmp_path: Path, capsys: Capture
) -> None:
    def train(steps: int, *flags: str) -> str:
        more = ("--num_samples", 0, "--max_steps", steps, "--lr_schedule", "constant", *flags)
        assert main(train_command("exp", base_folder("sdxl"), prepared, tmp_path, *more)) == 0
        return capsys.readouterr().err

    leads_to(1)
    train(1, "--memory", "16")
    assert "with gradient checkpointing (--memory auto)" in train(2, "--resume")  # auto keeps the strategy of the run
    leads_to(2)
    said = train(3, "--resume", "--memory", "8")
    change = f"memory: from step 2 on with {TRAINING_STRATEGIES[2].name}, before with {TRAINING_STRATEGIES[1].name}"
    assert change in said
    assert f"{change}\n" in (run_of(tmp_path) / "training_log.txt").read_text()
    assert way_of(run_of(tmp_path)) == TRAINING_STRATEGIES[2].name


def test_pairs_drawn_with_fewer_bits_are_other_pairs(
    leads_to: Callable[[int], None], trained: Folder, tmp_path: Path, refused: Refused
) -> None:
    leads_to(2)
    command = ["generate", "-n", "exp", "--results", str(trained("sdxl")), "--amount", "1", "--steps", "2"]
    assert main([*command, "--out", str(tmp_path / "small"), "--memory", "8"]) == 0
    assert json.loads((tmp_path / "small/settings.json").read_text())["dtype"] == "float32, weights in fp8"
    line = refused(*command, "--out", tmp_path / "small")
    assert (line.kind, line.path) == (OccupiedError, tmp_path / "small")


LIMITED = """
import resource, sys
from retipair.interfaces.cli import main
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced only on Linux")
def test_running_out_of_memory_is_one_line_that_says_what_to_try(
    base_folder: Folder, prepared: Path, tmp_path: Path
) -> None:
    """Limit a process to 4 GiB for a step that takes 9 GiB without gradient checkpointing."""
    command = train_command("exp", base_folder("sdxl"), prepared, tmp_path, "--num_samples", 0, "--batch_size", 1024)
    environment = {**os.environ, "PYTHONPATH": str(Path(retipair.__file__).parent.parent)}
    words = [sys.executable, "-c", LIMITED, *command, "--memory", "12"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("retipair: out of memory, with no memory savings (9.2 GiB were estimated); ")
    assert line.endswith("the last checkpoint, step 0, is intact: try --memory 8 --resume")
    [kept] = Run(run_of(tmp_path)).checkpoints()
    assert read_state(kept)[1]["step"] == 0
