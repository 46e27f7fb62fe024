"""`retipair generate`: generate pairs with an adapter."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from retipair.config import GenerateConfig
from retipair.data.dataset import PairRecord, load_views
from retipair.data.manifest import MANIFEST_NAME, to_line
from retipair.data.rejected import REJECTED_NAME
from retipair.diffusion.noise import generator
from retipair.generation.filters import (
    REJECTION_LOG_NAME,
    QualityFilter,
    Rejection,
    RejectionLog,
    descriptors_of,
    read_rejection_log,
    rejection_line,
)
from retipair.generation.given_views import GivenView
from retipair.generation.modes import FromImages, FromNoise, FromNoisedView, FromView, Start
from retipair.generation.output import GeneratedFolder, check_folder, scan_output, write_pair
from retipair.generation.pair_generator import GeneratedImages, PairGenerator
from retipair.generation.plan import GenerationPlan, plan_generation, settings_of
from retipair.models.conditioning import Conditioning, encode_prompts
from retipair.models.denoiser import Denoiser
from retipair.models.lora import adapter_sha256, load_adapter, merge_adapter
from retipair.models.memory_strategies import next_smaller_preset
from retipair.models.vae import encode_mean
from retipair.runs.run_dir import environment
from retipair.runtime.atomic_io import append_line, write_json
from retipair.runtime.console import console, progress
from retipair.runtime.distributed import DistributedState, distributed_state
from retipair.runtime.errors import FileError, Stopped, UserError, printable, unless_out_of_memory
from retipair.runtime.jsonl import shard_path
from retipair.runtime.lock import directory_lock
from retipair.runtime.profiling import memory_kind, peak_memory
from retipair.runtime.signals import graceful_shutdown
from retipair.vision.modality import CF_FA


def generate(config: GenerateConfig) -> Path:
    """Generate the missing pairs, up to --amount or those of --shard among them, and return the output folder.

    Each process generates a part of the pairs; then the main process merges the manifests of all processes.
    """
    plan = plan_generation(config)
    dist = distributed_state(plan.device)
    with directory_lock(plan.out, dist.is_main_process), peak_memory(plan.device) as peak:
        out = unless_out_of_memory(lambda: generate_pairs(plan, dist))
    if out is None:
        raise UserError(f"out of memory ({plan.memory_summary}); finished pairs are intact: try {smaller_flags(plan)}")
    if config.memory != "auto":
        console.print(
            f"{plan.memory_summary}, {peak.gib - peak.baseline:.1f} GiB used at most ({memory_kind(plan.device)})"
        )
    return out


def generate_pairs(plan: GenerationPlan, dist: DistributedState) -> Path:
    """Generate the missing pairs as one of the processes in `dist`, and return the output folder."""
    # Check
    max_tries, settings = plan.config.max_tries, settings_of(plan)
    with dist.main_process_first():
        check_folder(plan.out, settings)
        done, log = scan_output(plan.out, plan.amount), read_rejection_log(plan.out)
    existing, tries = set(done.indices), log.tries
    missing = [i for i in plan.indices if i not in existing and tries[i] < max_tries]
    if not missing:
        print_end(plan, done, log)
        return plan.out

    # Set up
    loop = load(plan, settings, missing, tries, dist.process_index)
    if plan.adapter and adapter_sha256(plan.adapter) != settings["adapter_sha256"]:
        raise FileError(plan.adapter, "was overwritten by its training while it was loaded; run the command again")
    print_start(plan)
    if dist.is_main_process:
        start_folder(plan, settings)
    dist.wait_for_everyone()

    # Generate
    unfinished = loop.run(dist.split_between_processes(missing))

    # Merge
    dist.wait_for_everyone()
    if dist.is_main_process:
        done, log = scan_output(plan.out, plan.amount), read_rejection_log(plan.out)
    if unfinished:  # only the main process knows the count, because it has read the merged manifest
        count = (
            f" with {len(set(plan.indices) & set(done.indices))} of {len(plan.indices)} pairs generated"
            if dist.is_main_process
            else ""
        )
        raise Stopped(f"stopped{count}; run the same command to continue", loop.stopped_by)
    if dist.is_main_process:
        print_end(plan, done, log)
    return plan.out


def start_folder(plan: GenerationPlan, settings: dict[str, Any]) -> None:
    """Write the settings and the empty manifest of an output folder."""
    write_json(plan.out / "settings.json", {"base": plan.base.name, **settings, "environment": environment()})
    # The manifest is created last, because a folder with a manifest but without settings.json is refused.
    (plan.out / MANIFEST_NAME).touch()


@dataclass
class GenerationLoop:
    """Generate pairs, write each pair that passes the filter, and make another attempt at each rejected pair.

    texts: the different prompts.
    conditioning: one row of embeddings for each prompt in `texts`, in that order, then one unconditional row.
    tries: the number of rejected rounds at each pair so far, by the index of the pair. A round is `best_of` attempts.
    manifest: the file to which this process appends the manifest lines of its pairs.
    rejections: the file to which this process appends its rejected rounds.
    stopped_by: the number of the signal that stopped `run`, or 0.
    """

    plan: GenerationPlan
    settings: dict[str, Any]
    pair_generator: PairGenerator
    texts: Sequence[str]
    conditioning: Conditioning
    quality_filter: QualityFilter
    tries: Counter[int]
    manifest: Path
    rejections: Path
    stopped_by: int = 0

    def run(self, indices: Sequence[int]) -> list[int]:
        """Generate the pairs with these indices. Return the indices that are left if a signal stops the loop."""
        queue = deque(indices)
        with (
            progress("Generating pairs", len(queue)) as advance,
            graceful_shutdown("the current pairs are finished") as stop,
        ):
            while queue and not stop.requested:
                batch = [queue.popleft() for _ in range(min(self.plan.batch_size, len(queue)))]
                retries = []
                for index, images in zip(batch, self.sample(batch), strict=True):
                    if self.keep(index, images) or self.tries[index] >= self.plan.config.max_tries:
                        advance()
                    else:
                        retries.append(index)
                queue.extendleft(reversed(retries))
            self.stopped_by = stop.number
        return list(queue)

    def sample(self, batch: Sequence[int]) -> list[GeneratedImages]:
        """Make the next attempts at each pair, and return the most consistent attempt at each. Do not filter or write.

        batch: the indices of the pairs.
        """
        number = self.plan.config.best_of
        first = [self.tries[index] * number for index in batch]
        given = [self.plan.given(index) for index in batch] if self.plan.mode.given else []
        attempts = [self._attempt(batch, [attempt + k for attempt in first], given) for k in range(number)]
        if number == 1:
            return attempts[0]
        return [max(several, key=lambda images: images.consistency) for several in zip(*attempts, strict=True)]

    def _attempt(
        self, batch: Sequence[int], attempts: Sequence[int], given: Sequence[GivenView]
    ) -> list[GeneratedImages]:
        """Make one attempt at each pair.

        attempts: the number of this attempt at each pair, from 0.
        given: the given view of each pair, or nothing if the mode needs none.
        """
        plan = self.plan
        rows = [self.texts.index(plan.prompt(index)) for index in batch]
        if plan.guidance.has_unconditional:
            rows = [len(self.texts)] * len(rows) + rows
        generators = [generator(plan.config.seed, *key) for key in zip(batch, attempts, strict=True)]
        start = self._start(batch, given, generators)
        images = self.pair_generator.sample(self.conditioning.rows(rows), generators, start)
        images = [replace(one, attempt=attempt) for one, attempt in zip(images, attempts, strict=True)]
        return [one.with_given(view) for one, view in zip(images, given, strict=True)] if given else images

    def _start(self, batch: Sequence[int], given: Sequence[GivenView], generators: Sequence[torch.Generator]) -> Start:
        """Return the object that chooses the initial latents of a batch, by the mode of the plan."""
        plan, vae = self.plan, self.pair_generator.vae
        if given:
            halves = np.stack([plan.layout.half(view.model_input) for view in given])
            latents, view = encode_mean(vae, halves), given[0].view
            if plan.noises_given_view:
                return FromNoisedView(latents, view, plan.base.schedule, generators)
            return FromView(latents, view)
        if plan.strength is not None:
            sources = [source for index in batch if isinstance(source := plan.source(index), PairRecord)]
            joints = np.stack([plan.layout.join(*load_views(source, plan.layout.view_size)) for source in sources])
            return FromImages(vae, joints, plan.strength)
        return FromNoise()

    def keep(self, index: int, images: GeneratedImages) -> bool:
        """Write the pair and its manifest line if it passes the filter, else log the rejection.

        Returns True if it passes.
        """
        if rejection := self.reject(index, images):
            append_line(self.rejections, rejection_line(rejection))
            return False
        record = write_pair(self.plan, self.pair_generator, self.settings, index, images)
        append_line(self.manifest, to_line(record))
        return True

    def reject(self, index: int, images: GeneratedImages) -> Rejection | None:
        """Apply the filter to a pair. If it rejects the pair, count the round and return the rejection, else None."""
        rejection = self.quality_filter.reject(index, self.tries[index], images.pair, images.consistency)
        if rejection:
            self.tries[index] += 1
        return rejection


def load(
    plan: GenerationPlan,
    settings: dict[str, Any],
    indices: Sequence[int],
    tries: Counter[int] | None = None,
    process_index: int = 0,
) -> GenerationLoop:
    """Load everything that is needed to generate the pairs with these indices, and return the loop.

    tries: the number of rejected rounds at each pair in earlier calls, by the index of the pair.
    process_index: the index of this process, which writes to files of its own.
    """
    texts = prompts_of(plan, indices)
    return make_loop(plan, settings, texts, *load_generator(plan, texts), tries, process_index)


def prompts_of(plan: GenerationPlan, indices: Sequence[int]) -> list[str]:
    """Return the different prompts of the pairs with these indices, sorted."""
    return sorted({plan.prompt(index) for index in indices})


def make_loop(
    plan: GenerationPlan,
    settings: dict[str, Any],
    texts: Sequence[str],
    pair_generator: PairGenerator,
    conditioning: Conditioning,
    tries: Counter[int] | None = None,
    process_index: int = 0,
) -> GenerationLoop:
    """Return the loop of a loaded generator; the arguments are those of `load` and the results of `load_generator`."""
    tries = Counter() if tries is None else tries
    manifest, rejections = (shard_path(plan.out / name, process_index) for name in (MANIFEST_NAME, REJECTION_LOG_NAME))
    quality_filter = make_filter(plan)
    return GenerationLoop(
        plan, settings, pair_generator, texts, conditioning, quality_filter, tries, manifest, rejections
    )


def load_generator(plan: GenerationPlan, texts: Sequence[str]) -> tuple[PairGenerator, Conditioning]:
    """Load the pair generator, and encode the prompts.

    texts: the different prompts.
    Returns (generator, conditioning), with one row of embeddings for each prompt in order, then one unconditional row.
    """
    config = plan.config
    conditioning = encode_prompts(plan.base, texts, plan.layout.joint_size, plan.device)
    unet = plan.base.unet(plan.dtype, plan.device, plan.strategy.stored)
    if plan.adapter:
        load_adapter(plan.adapter, unet, plan.base)
        if plan.dtype == torch.float32 and not plan.strategy.stored:  # merging into bf16 or fp8 would round the adapter
            merge_adapter(unet)
    denoise = Denoiser(unet.eval(), plan.dtype, plan.device)
    vae = plan.base.vae(device=plan.device)
    generator = PairGenerator(
        plan.base, plan.layout, denoise, vae, config.sampler, config.steps, plan.guidance, plan.modalities
    )
    return generator, conditioning


def print_start(plan: GenerationPlan) -> None:
    """Print the prediction type that the base declares, the warnings, and with --memory also the estimated memory."""
    if plan.base.declared.declarations:
        console.print(f"the base predicts {plan.base.prediction}")
    for warning in plan.warnings:
        console.print(f"warning: {printable(warning)}")
    if plan.config.memory != "auto":  # only on request, because the estimate takes a second or more
        console.print(f"{plan.memory_summary} (--memory {plan.config.memory})")


_REMEDIES = {
    "consistency": "lower --min_consistency (with another output folder), or train longer",
    "copy": "raise --max_copy (with another output folder), or train on more eyes",
}
"""What the user can do if the filter rejects every pair, by a word in `Rejection.why`."""


def print_end(plan: GenerationPlan, done: GeneratedFolder, log: RejectionLog) -> None:
    """Print the folder of the pairs, the number of rejected rounds and the median consistency.

    Raises UserError if no pair passed the filter, or if the user rejected every pair.
    """
    pairs, best_of = len(done.consistencies), plan.config.best_of
    number = log.reasons.total()
    rejected = f"{number} {'attempt' if best_of == 1 else 'round'}{'' if number == 1 else 's'}"
    rejected += f" of {best_of} attempts" if best_of > 1 else ""
    if not done.indices:
        advice = "; ".join(text for word, text in _REMEDIES.items() if any(word in why for why in log.reasons))
        raise FileError(plan.out, f"no pair passed the filter, {rejected} rejected ({log.tally}); {advice}")
    if log.reasons:
        given_up = len(set(plan.indices) - set(done.indices))
        pairs_given_up = f"{given_up} {'pair' if given_up == 1 else 'pairs'} given up"
        rest = f"; {pairs_given_up} (--max_tries {plan.config.max_tries})" if given_up > 0 else ""
        console.print(f"The filter rejected {rejected} ({log.tally}){rest}")
    if done.rejected:
        count = "1 pair is" if done.rejected == 1 else f"{done.rejected} pairs are"
        console.print(f"{count} rejected (in {REJECTED_NAME}, or deleted by hand) and not generated again")
    if not pairs:
        raise FileError(plan.out, "every pair is rejected; raise --amount to generate more")
    console.print(
        f"{pairs} synthetic {'pair' if pairs == 1 else 'pairs'}: {plan.out}\n"
        f"Consistency (vesselness correlation) of the two views: {median(done.consistencies):.2f} (median); "
        f"{'real pairs reach 0.4 to 0.7, ' if plan.modalities == CF_FA else ''}views of different eyes about 0\n"
        f"Next: retipair evaluate --real PREPARED --generated {plan.out} (measures detail, diversity and copies)"
    )


def smaller_flags(plan: GenerationPlan) -> str:
    """Return advice after an out-of-memory error, as text: the flags or the adapter that would need less memory."""
    if plan.batch_size > 1:
        return "--batch_size 1"
    smaller = next_smaller_preset(plan.strategy, plan.strategies, plan.memory_of)
    return f"--memory {smaller}, with another output folder" if smaller else "an adapter trained at a smaller --size"


def make_filter(plan: GenerationPlan) -> QualityFilter:
    """Build the filter that applies --min_consistency and --max_copy."""
    known = descriptors_of(plan.known) if plan.known else None
    return QualityFilter(plan.config.min_consistency, plan.config.max_copy, known)
