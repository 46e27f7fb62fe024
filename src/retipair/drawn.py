"""A folder of generated pairs: what is there already, and how a pair is written into it."""

import json
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retipair.config import json_sha256
from retipair.data.dataset import Entry, load_views
from retipair.data.lines import put_in_order
from retipair.data.manifest import MANIFEST_NAME, GeneratedPair, parse_line
from retipair.data.pair import chessboard, save_image
from retipair.disk import read_json
from retipair.errors import UserError
from retipair.job import Job
from retipair.painter import Painted, synthetic_mark

SHARD = 10_000
"""Pairs in one folder; the original's flat tree up to here, then a folder more."""


@dataclass
class Drawn:
    """The pairs that are there: twelve bytes each, their lines stay in the manifest."""

    indices: "array[int]" = field(default_factory=lambda: array("q"))
    consistencies: "array[float]" = field(default_factory=lambda: array("f"))


def check_folder(out: Path, settings: dict[str, Any]) -> None:
    """Raises UserError if the folder holds something else than pairs of these settings, before any is overwritten."""
    if not out.is_dir() or all(path.name.startswith(".") for path in out.iterdir()):
        return
    if not (out / "settings.json").is_file():
        raise UserError(f"{out}: is not empty and not ours; choose another --savedir or --out")
    saved = read_json(out / "settings.json")
    for key, value in json.loads(json.dumps(settings)).items():
        if saved.get(key) != value:
            raise UserError(f"{out}: was made with {key} {saved.get(key)}, not {value}; choose another --savedir")


def read_drawn(out: Path) -> Drawn:
    """The whole pairs of the folder; its manifest is put in order, without those whose views are gone."""
    found = Drawn()

    def index_of(line: str, where: str) -> int | None:
        record = parse_line(line, where)
        if not isinstance(record, GeneratedPair) or not all((out / view).is_file() for view in (record.cf, record.fa)):
            return None
        found.indices.append(record.index)
        found.consistencies.append(record.consistency)
        return record.index

    put_in_order(out / MANIFEST_NAME, index_of)
    return found


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
    mark = synthetic_mark(config.seed, index, job.base.name, how)
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
        base=job.base.name,
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
