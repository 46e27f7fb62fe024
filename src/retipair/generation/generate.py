"""Adapter + seeds -> pairs."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from retipair.config import GenerateConfig
from retipair.data.dataset import load_views
from retipair.data.manifest import MANIFEST_NAME, to_line
from retipair.data.rejected import REJECTED_NAME
from retipair.diffusion.noise import generator
from retipair.generation.filters import (
    LEDGER_NAME,
    QualityFilter,
    RejectionLog,
    descriptors_of,
    read_rejection_log,
    rejection_line,
)
from retipair.generation.output import GeneratedFolder, check_folder, scan_output, write_pair
from retipair.generation.pair_generator import GeneratedImages, PairGenerator
from retipair.generation.plan import GenerationPlan, plan_generation, settings_of
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import adapter_sha256, load_adapter, merge_adapter
from retipair.models.memory import next_smaller_preset
from retipair.runs.run_dir import environment
from retipair.runtime.atomic_io import append_line, write_json
from retipair.runtime.console import console, progress
from retipair.runtime.distributed import DistributedState, distributed_state
from retipair.runtime.errors import Stopped, UserError, printable, unless_out_of_memory
from retipair.runtime.jsonl import shard_path
from retipair.runtime.lock import directory_lock
from retipair.runtime.profiling import memory_kind, peak_memory
from retipair.runtime.signals import graceful_shutdown


def generate(config: GenerateConfig) -> Path:
    """Draw the pairs that are not there yet; returns the folder with the manifest.

    Launched as several processes, each draws its share, and the first puts what they wrote together.
    """
    job = plan_generation(config)
    dist = distributed_state(job.device)
    with directory_lock(job.out, dist.is_main_process), peak_memory(job.device) as peak:
        out = unless_out_of_memory(lambda: generate_pairs(job, dist))
    if out is None:
        raise UserError(f"out of memory ({job.memory_summary}); what was drawn is whole: try {smaller_flags(job)}")
    if config.memory != "auto":
        console.print(f"{job.memory_summary}, {peak.gib - peak.floor:.1f} GiB used at most ({memory_kind(job.device)})")
    return out


def generate_pairs(job: GenerationPlan, dist: DistributedState) -> Path:
    """All of it; returns the folder."""
    # Check
    config = job.config
    settings = settings_of(job)
    with dist.main_process_first():
        check_folder(job.out, settings)
        done, ledger = scan_output(job.out, config.amount), read_rejection_log(job.out)
    there, tries = set(done.indices), ledger.tries
    missing = [i for i in range(1, config.amount + 1) if i not in there and tries[i] < config.max_tries]
    if not missing:
        print_end(job, done, ledger)
        return job.out

    # Set up
    texts = sorted({job.prompt(index) for index in missing})
    painter, conditioning = load(job, texts)
    if adapter_sha256(job.adapter) != settings["adapter_sha256"]:
        raise UserError(f"{job.adapter}: its training went on and replaced it meanwhile; give the command again")
    if job.base.declared.found:
        console.print(f"the base predicts {job.base.prediction}")
    for warning in job.warnings:
        console.print(f"warning: {printable(warning)}")
    gate = make_filter(job)
    if config.memory != "auto":  # to count it takes a second or more
        console.print(f"{job.memory_summary} (--memory {config.memory})")
    if dist.is_main_process:
        write_json(job.out / "settings.json", {"base": job.base.name, **settings, "environment": environment()})
        (job.out / MANIFEST_NAME).touch()  # after what says whose folder it is
    dist.wait_for_everyone()

    # Draw
    mine = dist.split_between_processes(missing)
    manifest, refused = (shard_path(job.out / name, dist.process_index) for name in (MANIFEST_NAME, LEDGER_NAME))
    with progress("Drawing pairs", len(mine)) as advance, graceful_shutdown("the pairs in hand are finished") as stop:
        queue = deque(mine)
        while queue and not stop.requested:
            batch = [queue.popleft() for _ in range(min(job.batch_size, len(queue)))]
            rows = [texts.index(job.prompt(index)) for index in batch]
            drawn = paint(job, painter, conditioning, rows, [(index, tries[index]) for index in batch])
            again = []
            for index, painted in zip(batch, drawn, strict=True):
                consistency = round(painted.pair.consistency(), 4)
                if refusal := gate.refusal(index, tries[index], painted.pair, consistency):
                    append_line(refused, rejection_line(refusal))
                    tries[index] += 1
                    if tries[index] < config.max_tries:
                        again.append(index)
                        continue
                else:
                    record = write_pair(job, painter, settings, index, tries[index], painted, consistency)
                    append_line(manifest, to_line(record))
                advance()
            queue.extendleft(reversed(again))

    # Put together
    dist.wait_for_everyone()
    if dist.is_main_process:
        done, ledger = scan_output(job.out, config.amount), read_rejection_log(job.out)
    if stop.requested and queue:
        count = (
            f" with {len(done.indices)} of {config.amount} pairs drawn" if dist.is_main_process else ""
        )  # who has counted
        raise Stopped(f"stopped{count}; the same command goes on", stop.number)
    if dist.is_main_process:
        print_end(job, done, ledger)
    return job.out


def load(job: GenerationPlan, texts: Sequence[str]) -> tuple[PairGenerator, Conditioning]:
    """What paints, and what it hears: row i for texts[i], the last row for no prompt."""
    config = job.config
    conditioning = encode_prompts(job.base, texts, job.layout.joint_size, job.device)
    unet = job.base.unet(job.dtype, job.device, job.way.stored)
    load_adapter(job.adapter, unet, job.base.source)
    if job.dtype == torch.float32 and not job.way.stored:  # in fewer bits the adapter would be rounded with the weights
        merge_adapter(unet)
    denoise = Denoiser(unet.eval(), job.dtype, job.device)
    vae = job.base.vae(device=job.device)
    return (
        PairGenerator(job.base, job.layout, denoise, vae, config.sampler, config.steps, config.guidance_scale),
        conditioning,
    )


def print_end(job: GenerationPlan, done: GeneratedFolder, ledger: RejectionLog) -> None:
    """Where the pairs are, what was refused, and the first figure to look at."""
    pairs, refused = len(done.consistencies), ledger.reasons.total()
    if not done.indices:
        advice = "lower --min_consistency (with another --savedir), or train longer"
        raise UserError(f"{job.out}: every pair was given up, {refused} draws refused ({ledger.tally}); {advice}")
    if refused:
        given_up = job.config.amount - len(done.indices)
        rest = f"; {given_up} pairs given up after {job.config.max_tries} tries each" if given_up > 0 else ""
        console.print(f"Refused {refused} draws ({ledger.tally}){rest}")
    if done.rejected:
        count = "1 pair is" if done.rejected == 1 else f"{done.rejected} pairs are"
        console.print(f"{count} rejected ({REJECTED_NAME}, or deleted by hand), and not drawn again")
    if not pairs:
        raise UserError(f"{job.out}: every pair is rejected; raise --amount to draw more")
    console.print(
        f"{pairs} synthetic pairs: {job.out}\n"
        f"Consistency (vesselness correlation) of the two views: {median(done.consistencies):.2f} (median); "
        "real pairs reach 0.4 to 0.7, views of different eyes about 0\n"
        f"Next: retipair evaluate --real PREPARED --generated {job.out} (detail, diversity and copies are judged there)"
    )


def paint(
    job: GenerationPlan,
    painter: PairGenerator,
    conditioning: Conditioning,
    rows: Sequence[int],
    tries: Sequence[tuple[int, int]],
) -> list[GeneratedImages]:
    """The pairs of these (index, attempt); rows: the row of `conditioning` that each hears."""
    if job.config.guidance_scale > 1:
        rows = [len(conditioning.embeddings) - 1] * len(rows) + list(rows)
    generators = [generator(job.config.seed, index, attempt) for index, attempt in tries]
    sources = [source for index, _ in tries if (source := job.source(index))]
    joints = np.stack([job.layout.join(*load_views(s, job.layout.view_size)) for s in sources]) if sources else None
    return painter.sample(conditioning.rows(rows), generators, joints, job.strength or 1.0)


def smaller_flags(job: GenerationPlan) -> str:
    """The flags to try when memory has run out after all."""
    if job.batch_size > 1:
        return "--batch_size 1"
    smaller = next_smaller_preset(job.way, job.ways, job.memory_of)
    return f"--memory {smaller}, with another --savedir" if smaller else "an adapter trained at a smaller --size"


def make_filter(job: GenerationPlan) -> QualityFilter:
    """What a pair must have to be kept."""
    known = descriptors_of(job.known) if job.known else None
    return QualityFilter(job.config.min_consistency, job.config.max_copy, known)
