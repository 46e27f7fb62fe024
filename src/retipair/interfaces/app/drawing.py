"""Draw pairs, and the FA of a photograph, into temporary folders, with weights that stay loaded between the calls."""

import shlex
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from retipair.config import AppConfig, GenerateConfig
from retipair.data.dataset import PairRecord, read_folder
from retipair.generation.generate import load_generator, make_loop, print_start, prompts_of, start_folder
from retipair.generation.pair_generator import PairGenerator
from retipair.generation.plan import GenerationPlan, plan_generation, settings_of
from retipair.models.conditioning import Conditioning

MAX_PAIRS = 12
"""Maximum number of pairs that the page draws at once; it holds their images in the browser."""


@dataclass(frozen=True)
class _Loaded:
    """The results of `load_generator`, for these prompts and this adapter."""

    texts: Sequence[str]
    adapter_sha256: str | None
    generator: PairGenerator
    conditioning: Conditioning


class Drawer:
    """Draws with the adapter or base of the command.

    temporary: the folder in which the temporary folders are made.
    """

    def __init__(self, config: AppConfig, temporary: Path) -> None:
        self._config, self._temporary = config, temporary
        self._loaded: _Loaded | None = None
        self._busy = threading.Lock()
        self._cancelled: set[str | None] = set()
        self._closed = False

    @property
    def is_ready(self) -> bool:
        """Whether the command was given an adapter or a base."""
        return self._config.adapter is not None or self._config.base is not None

    def plan(self) -> GenerationPlan | None:
        """Return the plan of a drawing; None if neither an adapter nor a base was given.

        Raises UserError if one of them cannot be used.
        """
        return plan_generation(self._settings(self._temporary, amount=1)) if self.is_ready else None

    def pairs(
        self, amount: int, seed: int, steps: int, window: str | None = None
    ) -> Iterator[tuple[PairRecord, float]]:
        """Draw new pairs; yield each with its consistency as soon as its files exist.

        All files are deleted when the iterator ends or is closed, so read them before.

        window: the window of the browser that shows the pairs, for `cancel`.
        Raises UserError for settings that cannot be used.
        """
        return self._draw(window, amount=amount, seed=seed, steps=steps)

    def angiograms(
        self, photograph: Path, amount: int, seed: int, steps: int, window: str | None = None
    ) -> Iterator[tuple[PairRecord, float]]:
        """Draw several FA of one photograph, as `pairs` does. Raises UserError, naming the file, if it is unusable."""
        return self._draw(window, mode="cf2fa", data=photograph, per_view=amount, seed=seed, steps=steps)

    def pairs_command(self, amount: int, seed: int, steps: int) -> str:
        """Return the command that draws the same pairs."""
        return self._command(f"--amount {amount}", seed, steps, f"pairs_{seed}")

    def angiograms_command(self, photograph: str, amount: int, seed: int, steps: int) -> str:
        """Return the command that draws the same FA of a photograph in the current folder.

        photograph: the name of its file.
        """
        given = f"--mode cf2fa --data {shlex.quote(photograph)} --per_view {amount}"
        return self._command(given, seed, steps, f"angiograms_{seed}")

    def cancel(self, window: str | None = None) -> None:
        """End the drawing of a window after its current pair."""
        self._cancelled.add(window)

    def close(self) -> None:
        """Draw no further pair, and wait until the current one is finished."""
        self._closed = True
        with self._busy:
            pass

    def _settings(self, out: Path, **settings: object) -> GenerateConfig:
        config = self._config
        checkpoint = {} if config.adapter is None else {"checkpoint": str(config.adapter)}
        given = {"base": config.base, "device": config.device, "out": out, **checkpoint, **settings}
        return GenerateConfig(**given)  # type: ignore[arg-type]

    def _draw(self, window: str | None, **settings: object) -> Iterator[tuple[PairRecord, float]]:
        self._cancelled.discard(window)
        with TemporaryDirectory(prefix="pairs-", dir=self._temporary) as folder:
            plan = plan_generation(self._settings(Path(folder), **settings))
            print_start(plan)
            described = settings_of(plan)
            start_folder(plan, described)
            loaded = self._load(plan, described["adapter_sha256"])
            loop = make_loop(plan, described, loaded.texts, loaded.generator, loaded.conditioning)
            for index in range(1, plan.amount + 1):
                with self._busy:
                    if window in self._cancelled or self._closed:
                        return
                    [images] = loop.sample([index])
                    loop.keep(index, images)
                yield read_folder(plan.out).entries[-1], images.consistency

    def _load(self, plan: GenerationPlan, adapter_sha256: str | None) -> _Loaded:
        """Return the loaded weights with the settings of this plan.

        They are loaded again if the prompts are other ones, or if a training has written the adapter again.
        """
        texts = prompts_of(plan, range(1, plan.amount + 1))
        if self._loaded is None or (self._loaded.texts, self._loaded.adapter_sha256) != (texts, adapter_sha256):
            self._loaded = None  # frees the memory
            self._loaded = _Loaded(texts, adapter_sha256, *load_generator(plan, texts))
        generator = self._loaded.generator
        changed = replace(generator, sampler=plan.config.sampler, steps=plan.config.steps, guidance=plan.guidance)
        return replace(self._loaded, generator=changed)

    def _command(self, kind: str, seed: int, steps: int, out: str) -> str:
        config = self._config
        words = ["retipair", "generate"]
        for flag, value in (("--checkpoint", config.adapter), ("--base", config.base)):
            words += [] if value is None else [flag, str(value)]
        words += [] if config.device == AppConfig.device else ["--device", config.device]
        return f"{shlex.join(words)} {kind} --seed {seed} --steps {steps} --out {out}"
