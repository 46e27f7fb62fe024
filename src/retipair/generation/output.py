"""Scan a folder of generated pairs, and write pairs into it."""

import json
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retipair.data.dataset import PairRecord, load_views
from retipair.data.folders import has_files
from retipair.data.manifest import MANIFEST_NAME, GeneratedPair, parse_line
from retipair.data.pair import chessboard, save_image, synthetic_mark_of
from retipair.data.rejected import read_rejected
from retipair.data.views import SingleView
from retipair.generation.pair_generator import GeneratedImages, PairGenerator, synthetic_mark, with_parameters
from retipair.generation.plan import GenerationPlan
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import OccupiedError, UserError
from retipair.runtime.jsonl import merge_shards
from retipair.runtime.schema import json_sha256
from retipair.vision.modality import CF_FA

PAIRS_PER_FOLDER = 10_000
"""The number of pairs per subfolder of the output folder.

The first 10,000 pairs are in the output folder itself, as in the original scripts.
"""

_SHORT_HASH = 12
"""The number of hexadecimal digits of the adapter's SHA-256 that the metadata of a PNG contains."""

_HASHED = {
    "adapter_sha256": "another adapter",
    "base_sha256": "another base",
    "sources_sha256": "other source pairs or views",
    "known_sha256": "other training pairs for --max_copy",
}
"""Key of a hash in the settings of a folder -> the words after "was made with" in the error if that hash differs."""


@dataclass
class GeneratedFolder:
    """A summary of the manifest of an output folder. It uses at most twelve bytes of memory per pair.

    indices: the indices of all pairs in the manifest.
    consistencies: the consistencies of the pairs that the user did not reject.
    rejected: the number of pairs that the user rejected, in rejected.txt or by deleting both views.
    """

    indices: "array[int]" = field(default_factory=lambda: array("q"))
    consistencies: "array[float]" = field(default_factory=lambda: array("f"))
    rejected: int = 0

    def add(self, record: GeneratedPair, rejected: bool) -> None:
        self.indices.append(record.index)
        if rejected:
            self.rejected += 1
        else:
            self.consistencies.append(record.consistency)


def check_folder(out: Path, settings: dict[str, Any]) -> None:
    """Raise UserError unless the folder is new, is empty, or contains pairs generated with the same settings."""
    if not out.is_dir() or all(path.name.startswith(".") for path in out.iterdir()):
        return
    if not (out / "settings.json").is_file():
        problem = "contains files, but no settings.json of `retipair generate`"
        raise OccupiedError(out, f"{problem}; choose another output folder")
    if difference := settings_difference(out, settings):
        raise OccupiedError(out, f"was made with {difference}; choose another output folder")


def settings_difference(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return how the first differing setting of a generated folder differs from `settings`; None if all are equal.

    The name of the base, and the machine and libraries (`environment`), are not compared.
    """
    saved, now = read_json(folder / "settings.json"), json.loads(json.dumps(settings))
    keys = [key for key in {**now, **saved} if key not in ("base", "environment")]
    key = next((key for key in keys if saved.get(key) != now.get(key)), None)
    return None if key is None else _difference(key, saved.get(key), now.get(key))


def _difference(key: str, before: object, now: object) -> str:
    """Describe how the values of a setting differ; hashes are shortened to 12 digits."""
    if key in _HASHED:
        before, now = ("none" if value is None else f"{str(value)[:12]}..." for value in (before, now))
        return f"{_HASHED[key]} (sha256 {before}, not {now})"
    return f"{key} {before}, not {now}"


def scan_output(out: Path, amount: int) -> GeneratedFolder:
    """Sort the manifest of an output folder, and return a summary of the pairs in it.

    If one view of a pair is missing, the manifest line is removed, and the pair is generated again. If a pair is listed
    in rejected.txt, or both its views are deleted, its line stays, and it is not generated again.

    After a kill, the manifest of a process may repeat lines of the main manifest. Equal lines count as one pair.

    Raises UserError if a manifest line does not describe a generated pair, if two different lines have one index, or if
    rejected.txt lists an id that is neither in the folder nor from 1 to `amount`. If a manifest line is refused, no
    file has been changed.
    """
    folder, rejected, listed = GeneratedFolder(), read_rejected(out), set[str]()
    counted: dict[int, int] = {}  # the hash of the line of each index

    def index_of(line: str, where: str) -> int | None:
        record = parse_line(line, where)
        if not isinstance(record, GeneratedPair):
            raise UserError(
                f"{where}: {record.id!r} is a prepared pair, not a generated one; move the line to the manifest of "
                "another folder, or choose another output folder"
            )
        if record.id in rejected:
            listed.add(record.id)
        is_rejected = record.id in rejected or not has_files(out, (record.cf, record.fa))
        if not is_rejected and not all((out / view).is_file() for view in (record.cf, record.fa)):
            return None
        if record.index not in counted:
            folder.add(record, is_rejected)
        elif counted[record.index] != hash(line):
            raise UserError(f"{where}: another line of this folder has index {record.index} too; remove one line")
        counted[record.index] = hash(line)
        return record.index

    merge_shards(out / MANIFEST_NAME, index_of)
    rejected.check(listed | {id for id in rejected.lines if _is_index(id, amount)})
    return folder


def _is_index(id: str, amount: int) -> bool:
    """Return whether an id is an integer from 1 to `amount`."""
    return re.fullmatch("[1-9][0-9]{0,9}", id) is not None and int(id) <= amount


# Writing


def pair_folder(index: int) -> str:
    """Return the folder of pair `index` (from 1), such as "7" or, above 10,000, "10001-20000/10007"."""
    before = (index - 1) // PAIRS_PER_FOLDER * PAIRS_PER_FOLDER
    return f"{before + 1}-{before + PAIRS_PER_FOLDER}/{index}" if before else str(index)


def write_pair(
    plan: GenerationPlan,
    pair_generator: PairGenerator,
    settings: dict[str, Any],
    index: int,
    generated: GeneratedImages,
) -> GeneratedPair:
    """Write the images of a generated pair, and return its manifest line."""
    folder, config, given = pair_folder(index), plan.config, generated.given
    source = plan.source(index)
    mark = _mark(plan, pair_generator, settings, index, generated.attempt)
    images = {
        "cf": plan.modalities.stored(generated.cf),
        "joint": generated.joint,
        "cf_fa_chessboard": chessboard(generated.cf, generated.fa),
        "fa": generated.fa,
    }
    if given:
        other = "fa" if given.view == "cf" else "cf"
        images[f"{other}_in_source"] = given.in_source(images[other])
    for name, image in images.items():
        is_given = given is not None and name == given.view
        save_image(plan.out / folder / f"{name}.png", image, _given_mark(plan, source) if is_given else mark)
    if isinstance(source, PairRecord):
        _write_original(plan, source, plan.out / folder)
    return GeneratedPair(
        id=str(index),
        index=index,
        seed=config.seed,
        attempt=generated.attempt,
        mode=config.mode,
        source_id=source.id if source else None,
        source_eye=source.group if source else None,
        strength=plan.strength,
        prompt=plan.prompt(index),
        cf=f"{folder}/cf.png",
        fa=f"{folder}/fa.png",
        size=plan.layout.view_size,
        base=plan.base.name,
        adapter_sha256=settings["adapter_sha256"],
        settings_sha256=json_sha256(settings),
        fa_chroma=round(generated.fa_chroma, 3),
        consistency=generated.consistency,
        source_to_pair=given.to_pair.tolist() if given else None,
        source_size=[given.shape[1], given.shape[0]] if given else None,
        **plan.modalities.recorded,
    )


def _mark(
    plan: GenerationPlan, pair_generator: PairGenerator, settings: dict[str, Any], index: int, attempt: int
) -> dict[str, str]:
    """Return the text metadata of a pair's PNGs.

    They contain the id of the source (a training pair or a given view) only with --record_source, because the id may
    identify a patient.
    """
    config, source = plan.config, plan.source(index)
    mark = synthetic_mark(pair_generator, plan.prompt(index), config.seed, index, _how(plan, source))
    if settings["adapter_sha256"]:
        mark["Adapter"] = settings["adapter_sha256"][:_SHORT_HASH]
    mark["Mode"] = config.mode
    if attempt:
        mark["Seed"] += f", attempt {attempt}"
    if plan.strength is not None:
        mark["Strength"] = f"{plan.strength:g}"
    return with_parameters(mark, plan.layout.joint_size) | _source_text(plan, source)


def _how(plan: GenerationPlan, source: PairRecord | SingleView | None) -> str:
    """Return a phrase for how a pair was made."""
    if isinstance(source, SingleView):
        given = "photograph" if plan.mode.given == "cf" else "angiogram"
        if plan.modalities != CF_FA:
            given = (plan.modalities.first if plan.mode.given == "cf" else plan.modalities.second).noun
        return f"from a given {given} (treat this image as data of the person in the {given})"
    return f"a variation of a training pair at strength {plan.strength:g}" if source else "from noise"


def _source_text(plan: GenerationPlan, source: PairRecord | SingleView | None) -> dict[str, str]:
    return {"Source": source.id} if source and plan.config.record_source else {}


def _given_mark(plan: GenerationPlan, source: PairRecord | SingleView | None) -> dict[str, str]:
    """Return the text metadata of the given view: its own mark if it is synthetic, else the note that it is not."""
    assert source is not None
    own = synthetic_mark_of([source.path]) if isinstance(source, SingleView) else {}
    mark = own or {"Synthetic": "no: the view from which the other was drawn; it may show a patient's eye"}
    return mark | _source_text(plan, source)


def _write_original(plan: GenerationPlan, source: PairRecord, folder: Path) -> None:
    """Save the training pair from which a variation was generated, in the folder of the variation.

    The PNG text metadata of the saved files tell whether each view is synthetic: they contain its own mark as synthetic
    or, if it has none, the note that it may show a patient's eye.
    """
    cf, fa = load_views(source, plan.layout.view_size)
    cf = plan.modalities.stored(cf)
    for name, path, view in (("cf", source.cf, cf), ("fa", source.fa, fa)):
        mark = synthetic_mark_of([path]) or {"Synthetic": "no: the pair that was varied; it may show a patient's eye"}
        save_image(folder / f"{name}_original.png", view, mark | _source_text(plan, source))
