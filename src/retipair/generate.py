"""Adapter + seeds -> pairs."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from retipair.config import DEFAULT_PROMPT, GenerateConfig, json_sha256
from retipair.data.dataset import Entry, content_sha256, load_views, of_split, read_dataset
from retipair.data.layout import Layout
from retipair.data.manifest import GeneratedPair, append_record, read_whole_lines, write_manifest
from retipair.data.pair import chessboard, save_image
from retipair.diffusion.noise import generator
from retipair.errors import UserError
from retipair.gate import Gate, Refusal, append_refusal, prints_of, read_refusals, tally
from retipair.model.adapter import Description, adapter_sha256, load_adapter, merge_adapter, read_description
from retipair.model.base import Base, open_base
from retipair.model.conditioning import Conditioning, encode_prompts
from retipair.model.denoiser import Denoiser
from retipair.model.device import choose_device, choose_dtype
from retipair.painter import Painted, Painter, draw_prompt, synthetic_mark
from retipair.plan import check_finite, check_folder_name, check_size, check_steps, prepared_folder
from retipair.progress import console, progress
from retipair.run import Run, environment, find_run, read_json, results_folder, write_json
from retipair.vision.ridges import vesselness_correlation

SHARD = 10_000
"""Pairs in one folder; the original's flat tree up to here, then a folder more."""


@dataclass(frozen=True)
class Job:
    """What to draw with, found and checked before anything is loaded or written."""

    config: GenerateConfig
    base: Base
    layout: Layout
    adapter: Path
    prompts: list[tuple[str, int]]
    out: Path
    sources: list[Entry]
    known: list[Entry]
    device: str
    dtype: torch.dtype
    warnings: list[str]

    @property
    def strength(self) -> float | None:
        return self.config.strength if self.config.mode == "from_data" else None

    def source(self, index: int) -> Entry | None:
        """The training pair that pair `index` varies: they take turns in order."""
        return self.sources[(index - 1) % len(self.sources)] if self.sources else None

    def prompt(self, index: int) -> str:
        """The sentence of pair `index`: its source's own, or one of the adapter's drawn by (seed, index).

        A source without a caption was trained with the sentence that is nobody's caption.
        """
        source = self.source(index)
        if source is not None and source.caption in dict(self.prompts):
            return str(source.caption)
        return draw_prompt(self._nobodys or self.prompts, self.config.seed, index)

    @cached_property
    def _nobodys(self) -> list[tuple[str, int]]:
        captions = {source.caption for source in self.sources}
        return [(text, count) for text, count in self.prompts if text not in captions]


def generate(config: GenerateConfig) -> Path:
    """Draw the pairs that are not there yet; returns the folder with the manifest."""
    # Check
    job = make_job(config)
    settings = settings_of(job)
    done = already_drawn(job, settings)
    refused = read_refusals(job.out)
    tries = Counter(refusal.index for refusal in refused)
    missing = [i for i in range(1, config.amount + 1) if i not in done and tries[i] < config.max_tries]
    if not missing:
        say_end(job, list(done.values()), refused)
        return job.out

    # Set up
    for warning in job.warnings:
        console.print(f"warning: {warning}", markup=False)
    texts = sorted({job.prompt(index) for index in missing})
    conditioning = encode_prompts(job.base, texts, job.layout.joint_size, job.device)
    unet = job.base.unet(job.dtype)
    load_adapter(job.adapter, unet, job.base.source)
    if job.dtype == torch.float32:  # in fewer bits the fp32 adapter would be rounded with the weights
        merge_adapter(unet)
    denoise = Denoiser(unet.to(job.device).eval(), job.dtype, job.device)
    vae = job.base.vae().to(job.device)
    painter = Painter(job.base, job.layout, denoise, vae, config.sampler, config.steps, config.guidance_scale)

    gate = make_gate(job)

    # Draw
    job.out.mkdir(parents=True, exist_ok=True)
    write_json(job.out / "settings.json", {"base": job.base.source, **settings, "environment": environment()})
    write_manifest(job.out, [done[index] for index in sorted(done)])
    with progress("Drawing pairs", config.amount, config.amount - len(missing)) as advance:
        while missing:
            indices = missing[: batch_size(job)]
            rows = [texts.index(job.prompt(index)) for index in indices]
            drawn = paint(job, painter, conditioning, rows, [(index, tries[index]) for index in indices])
            for index, painted in zip(indices, drawn, strict=True):
                pair = painted.pair
                consistency = round(vesselness_correlation(pair.cf, pair.fa, pair.mask), 4)
                if refusal := gate.refusal(index, tries[index], pair, consistency):
                    append_refusal(job.out, refusal)
                    refused.append(refusal)
                    tries[index] += 1
                    if tries[index] < config.max_tries:
                        continue
                else:
                    done[index] = write_pair(job, settings, index, tries[index], painted, consistency)
                    append_record(job.out, done[index])
                missing.remove(index)
                advance()
    write_manifest(job.out, [done[index] for index in sorted(done)])  # in order also where a gap was filled
    say_end(job, list(done.values()), refused)
    return job.out


def say_end(job: Job, pairs: Sequence[GeneratedPair], refused: Sequence[Refusal]) -> None:
    """Where the pairs are, what was refused, and the first figure to look at."""
    if not pairs:
        why = f"{len(refused)} draws refused ({tally(refused)})"
        advice = "lower --min_consistency (with another --savedir), or train longer"
        raise UserError(f"{job.out}: every pair was given up, {why}; {advice}")
    if refused:
        given_up = job.config.amount - len(pairs)
        rest = f"; {given_up} pairs given up after {job.config.max_tries} tries each" if given_up > 0 else ""
        console.print(f"Refused {len(refused)} draws ({tally(refused)}){rest}", markup=False)
    console.print(
        f"{len(pairs)} synthetic pairs: {job.out}\n"
        f"Vessels of the two views correlate by {median(pair.consistency for pair in pairs):.2f} (median); "
        "real pairs reach 0.4 to 0.7, views of different eyes about 0",
        markup=False,
    )


def batch_size(job: Job) -> int:
    """On the CPU batched kernels round otherwise: one pair a forward keeps the bytes independent of the batch."""
    return 1 if job.device == "cpu" else job.config.batch_size


def paint(
    job: Job, painter: Painter, conditioning: Conditioning, rows: Sequence[int], tries: Sequence[tuple[int, int]]
) -> list[Painted]:
    """The pairs of these (index, attempt); rows: the row of `conditioning` that each hears."""
    if job.config.guidance_scale > 1:
        rows = [len(conditioning.embeddings) - 1] * len(rows) + list(rows)
    generators = [generator(job.config.seed, index, attempt) for index, attempt in tries]
    sources = [source for index, _ in tries if (source := job.source(index))]
    joints = np.stack([job.layout.join(*load_views(s, job.layout.view_size)) for s in sources]) if sources else None
    return painter.paint(conditioning.rows(rows), generators, joints, job.strength or 1.0)


# What to draw with


def make_job(config: GenerateConfig) -> Job:
    """Find run, adapter, base and sources. Raises UserError for what cannot work."""
    _check(config)
    base = open_base(config.base, config.tokenizer) if config.base else None
    run, adapter = find_adapter(config, base)
    description = read_description(adapter)
    base = base or open_base(_recorded_base(description, adapter), config.tokenizer)
    check_steps("--steps", config.steps, base)
    warnings: list[str] = []
    layout, prompts = _as_trained(config, base, description, adapter, warnings)
    out = config.out or results_folder(config.results, base.system.name, "_preds") / str(config.name) / config.savedir
    device = choose_device(config.device)
    dtype = choose_dtype(config.precision, device)
    trained = partial(training_pairs, config, run, layout, description, warnings)
    sources = trained("--mode from_data") if config.mode == "from_data" else []
    known = trained("--max_copy") if config.max_copy is not None else []
    return Job(config, base, layout, adapter, prompts, out, sources, known, device, dtype, warnings)


def _check(config: GenerateConfig) -> None:
    for name in ("amount", "steps", "batch_size", "max_tries"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: must be at least 1")
    if not 0 < config.strength <= 1:
        raise UserError(f"--strength {config.strength}: must be above 0 and at most 1")
    if config.mode == "noise" and config.strength != GenerateConfig.strength:
        raise UserError(
            f"--strength {config.strength}: only --mode from_data has a strength; add that, or leave it out"
        )
    if config.mode == "from_data" and int(config.steps * config.strength) < 1:
        raise UserError(f"--strength {config.strength} of --steps {config.steps} is less than one step; raise either")
    for name in ("min_consistency", "max_copy"):
        if (value := getattr(config, name)) is not None and not -1 <= value <= 1:
            raise UserError(f"--{name} {value}: must be from -1 to 1")
    if config.max_copy is not None and config.mode == "from_data":
        raise UserError("--max_copy: variations of training pairs are copies by intent; only with --mode noise")
    if not config.guidance_scale >= 1:
        raise UserError(f"--guidance_scale {config.guidance_scale}: must be at least 1 (off)")
    check_finite(config)
    if not 0 <= config.seed < 2**32:
        raise UserError(f"--seed {config.seed}: must be at least 0 and below 2^32")
    check_size(config.size)
    check_folder_name("--savedir", config.savedir)
    if config.name is not None:
        check_folder_name("--name", config.name)
    if config.name is None and (config.checkpoint in ("best", "latest") or config.out is None):
        raise UserError("give the run's name with -n, or --checkpoint PATH --out DIR")


def find_adapter(config: GenerateConfig, base: Base | None) -> tuple[Run | None, Path]:
    """The run, if a name tells it, and the `unet_lora` folder that --checkpoint means."""
    system: str | None = base.system.name if base else None
    if config.checkpoint in ("best", "latest"):
        run = find_run(config.results, str(config.name), system)
        return run, run.adapter_folder(config.checkpoint)
    folder = Path(config.checkpoint)
    adapter = folder / "unet_lora" if (folder / "unet_lora").is_dir() else folder
    description = read_description(adapter)
    system = system or (description.system if description else None)
    return (find_run(config.results, config.name, system) if config.name else None), adapter


def _recorded_base(description: Description | None, adapter: Path) -> str:
    if description is None:
        raise UserError(f"{adapter}: does not say which base it was trained on; pass --base (and --prompt, --size)")
    return description.base


def _as_trained(
    config: GenerateConfig, base: Base, description: Description | None, adapter: Path, warnings: list[str]
) -> tuple[Layout, list[tuple[str, int]]]:
    """Layout and prompts of the training, so that sampling cannot disagree with it."""
    if description is None:
        size, prompt = config.size or base.view_size, config.prompt or DEFAULT_PROMPT
        warnings.append(f"{adapter} does not describe itself; taking --size {size} --prompt {prompt!r}")
        return Layout(base.system.layout, size), [(prompt, 1)]
    if (description.system, description.layout) != (base.system.name, base.system.layout):
        raise UserError(
            f"{adapter}: was trained on {description.system} ({description.layout}), but {base.source} is "
            f"{base.system.name} ({base.system.layout}); pass the base it was trained on with --base"
        )
    if config.size not in (None, description.view_size):
        raise UserError(f"--size {config.size}: this adapter was trained at {description.view_size}; leave --size out")
    if config.guidance_scale > 1 and not description.prompt_dropout:
        warnings.append("trained without --prompt_dropout, so --guidance_scale above 1 may do harm")
    prompts = [(config.prompt, 1)] if config.prompt is not None else description.prompts
    return Layout(base.system.layout, description.view_size), prompts


def training_pairs(
    config: GenerateConfig,
    run: Run | None,
    layout: Layout,
    description: Description | None,
    warnings: list[str],
    needed_by: str,
) -> list[Entry]:
    """The training pairs, never those of the other sides of the split; needed_by: the flag that asks for them.

    Raises UserError if the run's own pairs are gone or are no longer those it was trained on: prepared again, they may
    be split otherwise, and eyes that validated must not be varied, nor copies be looked for among other pairs.
    """
    data = trained_on(config, run)
    if data is None:
        raise UserError(f"{needed_by} needs pairs: pass --data FOLDER (a prepared folder)")
    if not data.exists():
        raise UserError(f"{data}: the pairs of this run are gone; pass --data FOLDER to say where they are")
    folder = prepared_folder(data, config.results, layout.view_size)
    entries = read_dataset(folder)
    if description is not None and content_sha256(entries) != description.data_sha256:
        if config.data is None:
            raise UserError(
                f"{folder}: no longer what this adapter was trained on (prepared again?); "
                "pass --data FOLDER to take its training pairs all the same"
            )
        warnings.append(f"{folder} is not what this adapter was trained on; {needed_by} takes its training pairs")
    return of_split(entries, "train", folder)


def trained_on(config: GenerateConfig, run: Run | None) -> Path | None:
    """Where the training pairs are: what --data says, else the run."""
    return config.data or (run.read_config().data if run else None)


def make_gate(job: Job) -> Gate:
    """What a pair must have to be kept."""
    known = prints_of(job.known) if job.known else None
    return Gate(job.config.min_consistency, job.config.max_copy, known)


# What is there already


def settings_of(job: Job) -> dict[str, Any]:
    """Everything the pairs depend on beside their index."""
    config = job.config
    return {
        "adapter_sha256": adapter_sha256(job.adapter),
        "base_sha256": job.base.fingerprint(),
        "layout": job.layout.name,
        "size": job.layout.view_size,
        "prompts": job.prompts,
        "seed": config.seed,
        "mode": config.mode,
        "strength": job.strength,
        "sources_sha256": content_sha256(job.sources) if job.sources else None,
        "steps": config.steps,
        "sampler": config.sampler,
        "guidance_scale": config.guidance_scale,
        "min_consistency": config.min_consistency,
        "max_copy": config.max_copy,
        "known_sha256": content_sha256(job.known) if job.known else None,
        "dtype": str(job.dtype).removeprefix("torch."),
    }


def already_drawn(job: Job, settings: dict[str, Any]) -> dict[int, GeneratedPair]:
    """The whole pairs of an earlier call with the same settings, by index.

    Raises UserError if the folder holds something else, so that nothing of it is overwritten.
    """
    if not job.out.is_dir() or all(path.name.startswith(".") for path in job.out.iterdir()):
        return {}
    if not (job.out / "settings.json").is_file():
        raise UserError(f"{job.out}: is not empty and not ours; choose another --savedir or --out")
    saved = read_json(job.out / "settings.json")
    for key, value in json.loads(json.dumps(settings)).items():
        if saved.get(key) != value:
            raise UserError(f"{job.out}: was made with {key} {saved.get(key)}, not {value}; choose another --savedir")
    whole = [record for record in read_whole_lines(job.out) if isinstance(record, GeneratedPair)]
    return {one.index: one for one in whole if all((job.out / view).is_file() for view in (one.cf, one.fa))}


# Writing


def pair_folder(index: int) -> str:
    """Where pair `index` (from 1) lies: a numbered folder; past 10,000 in a folder of its ten thousand."""
    shard = (index - 1) // SHARD
    return str(index) if shard == 0 else f"{shard * SHARD + 1}-{(shard + 1) * SHARD}/{index}"


def write_pair(
    job: Job, settings: dict[str, Any], index: int, attempt: int, painted: Painted, consistency: float
) -> GeneratedPair:
    """Write a pair's images; returns its manifest line."""
    folder, config = pair_folder(index), job.config
    source = job.source(index)
    how = f"variation of pair {source.id} at strength {job.strength}" if source else "from noise"
    mark = synthetic_mark(config.seed, index, job.base.source, how)
    images = {
        "cf": painted.cf,
        "joint": painted.joint,
        "cf_fa_chessboard": chessboard(painted.cf, painted.fa),
    }
    for name, image in {**images, "fa": painted.fa}.items():
        save_image(job.out / folder / f"{name}.png", image, mark)
    if source is not None:
        write_original(job, source, job.out / folder)
    return GeneratedPair(
        id=str(index),
        index=index,
        seed=config.seed,
        attempt=attempt,
        mode=config.mode,
        source_id=source.id if source else None,
        source_eye=source.group if source else None,
        strength=job.strength,
        prompt=job.prompt(index),
        cf=f"{folder}/cf.png",
        fa=f"{folder}/fa.png",
        size=job.layout.view_size,
        base=job.base.source,
        adapter_sha256=settings["adapter_sha256"],
        settings_sha256=json_sha256(settings),
        fa_chroma=round(painted.fa_chroma, 3),
        consistency=consistency,
    )


def write_original(job: Job, source: Entry, folder: Path) -> None:
    """The pair that was varied, beside the variation, and marked as what it is."""
    mark = {"Synthetic": "no: the pair that was varied; if it is a patient's, so is this", "Pair": source.id}
    for name, view in zip(("cf", "fa"), load_views(source, job.layout.view_size), strict=True):
        save_image(folder / f"{name}_original.png", view, mark)
