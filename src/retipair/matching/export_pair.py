"""Write the folder of one pair for `retipair export matches`: its images, masks and landmarks in all variants."""

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from retipair.data.dataset import PairRecord, load_pair, pair_sha256
from retipair.data.pair import image_size, is_plain_png, synthetic_mark_of, write_png
from retipair.matching.samples import ALIGNED, MatchSample
from retipair.matching.warped_pair import SegmentedPair, Variation, WarpedPair, segment_pair, unwarped
from retipair.runtime.atomic_io import atomic_write_dir, read_json, write_json
from retipair.runtime.errors import DamagedError, UserError
from retipair.runtime.schema import from_values, json_sha256
from retipair.vision.modality import drop_unrecorded

PAIRS_NAME = "pairs"
APPEARANCE = "appearance"
_STATE_NAME = "samples.json"
_RECIPE = 1  # increment it after a change of the code that changes the exported files
_MASKS = {"valid_cf": "valid_fa", "vessels_cf": "vessels_fa"}
"""Each mask of the CF, with the mask of the FA that equals it in the variant "aligned"."""


@dataclass(frozen=True)
class PairExporter:
    """Writes the folders of pairs. The files in a folder depend only on the pair and on all fields except `out`.

    out: the folder OUT of the export.
    variation: the distribution of the variants.
    warps: the number of warped variants.
    appearance: whether there is also a variant with a random appearance.
    size: the side of the exported views, px; None for the size of each pair on disk.
    """

    out: Path
    variation: Variation
    warps: int
    appearance: bool
    size: int | None

    def folder(self, id: str) -> Path:
        return self.out / PAIRS_NAME / id

    def check(self, record: PairRecord) -> None:
        """Check a pair. Raises UserError, naming the file, if one is missing or damaged, or if the sizes differ."""
        pair_sha256(record)
        load_pair(record)

    def write(self, record: PairRecord) -> int:
        """Write the folder of a pair atomically, and return its number of landmarks."""
        source = segment_pair(load_pair(record, self.size))
        atomic_write_dir(self.folder(record.id), partial(self._fill, record=record, source=source))
        return len(source.landmarks)

    def samples(self, id: str) -> list[MatchSample]:
        """Return the samples in the folder of a pair. Raises UserError if the list is missing or damaged."""
        path = self.folder(id) / _STATE_NAME
        samples = read_json(path).get("samples")
        if not isinstance(samples, list):
            raise DamagedError(path, "has no list of samples; delete the folder, and export the pairs again")
        return [from_values(MatchSample, values, str(path)) for values in samples]

    def has_written(self, folder: Path) -> bool:
        """Return whether `write` has written a folder."""
        return (folder / _STATE_NAME).is_file()

    def is_complete(self, record: PairRecord) -> bool:
        """Return whether the folder of a pair is complete, and written with these settings from its current files."""
        try:
            state = read_json(self.folder(record.id) / _STATE_NAME)
            samples = self.samples(record.id)
        except UserError:
            return False
        files = (self.out / path for sample in samples for path in sample.files)
        return state.get("key") == self._key(record, pair_sha256(record)) and all(path.is_file() for path in files)

    def _key(self, record: PairRecord, sha256: str) -> str:
        settings = [asdict(self.variation), self.warps, self.appearance, self.size]
        described = [record.id, record.group, record.split, sha256, *record.modalities.hashed]
        return json_sha256([_RECIPE, settings, *described])

    def _fill(self, folder: Path, record: PairRecord, source: SegmentedPair) -> None:
        sha256 = pair_sha256(record)
        writer = _Writer(folder, record, sha256, self.variation.seed)
        samples = [writer.write(ALIGNED, unwarped(source))]
        for number in range(1, self.warps + 1):
            samples.append(writer.write(f"warp_{number}", self.variation.make(source, record.id, number)))
        if self.appearance:
            # Warps are counted from 1, so number 0 is free, and this variant does not depend on --warps.
            samples.append(writer.write(APPEARANCE, self.variation.make(source, record.id, 0, appearance=True)))
        listed = [drop_unrecorded(asdict(sample)) for sample in samples]
        write_json(folder / _STATE_NAME, {"key": self._key(record, sha256), "samples": listed})


class _Writer:
    """Writes the files of the samples of one pair.

    folder: the temporary folder to write to.
    sha256: the `pair_sha256` of the pair.
    seed: the seed that is recorded in the samples.
    """

    def __init__(self, folder: Path, record: PairRecord, sha256: str, seed: int) -> None:
        self._folder, self._record, self._sha256, self._seed = folder, record, sha256, seed
        self._sources = {"cf": record.cf, "fa": record.fa}
        self._marks = {view: synthetic_mark_of([path]) for view, path in self._sources.items()}

    def write(self, variant: str, warped: WarpedPair) -> MatchSample:
        """Write the files of a variant, except those that an earlier variant has written, and return its sample."""
        files = _files(variant, elastic=warped.warp.displacement is not None)
        for name, path in files.items():
            target = self._folder / path
            target.parent.mkdir(exist_ok=True)
            if name == "landmarks":
                target.write_text(_as_text(warped.landmarks), encoding="utf-8")
            elif name == "field":
                _save_field(target, warped)
            elif not target.exists():
                self._save_view(target, getattr(warped, name), name, is_copy=variant == ALIGNED)
        paths = {name: f"{PAIRS_NAME}/{self._record.id}/{path}" for name, path in files.items()}
        return MatchSample(
            id=self._record.id,
            variant=variant,
            split=self._record.split,
            eye=self._record.group,
            size=len(warped.fa),
            seed=self._seed,
            **{**paths, **self._record.modalities.recorded},
            h_cf_to_fa=warped.warp.homography.tolist(),
            synthetic=any(self._marks.values()),
            source_sha256=self._sha256,
        )

    def _save_view(self, path: Path, image: np.ndarray, name: str, is_copy: bool) -> None:
        """Write a view or mask as PNG.

        is_copy: whether the variant is "aligned". The file of the CF or FA is then copied if its size and format allow
        it, which takes less time.
        """
        source = self._sources.get(name)
        stored = self._record.modalities.stored(image) if name == "cf" else image
        mode = "RGB" if stored.ndim == 3 else "L"
        if is_copy and source and is_plain_png(source, mode) and image_size(source)[0] == len(image):
            shutil.copyfile(source, path)
            return
        pixels = stored.astype(np.uint8) * 255 if stored.dtype == bool else stored
        with path.open("wb") as stream:
            write_png(stream, pixels, self._marks.get(name), fast=True)


def _files(variant: str, elastic: bool) -> dict[str, str]:
    """Return the paths of the files of a variant in the folder of the pair, by field of MatchSample.

    All variants but the one with a random appearance share the files of the CF.
    """
    own, cf = ("", "") if variant == ALIGNED else (f"{variant}/", f"{variant}/" if variant == APPEARANCE else "")
    files = {name: f"{cf}{name}.png" for name in ("cf", *_MASKS)}
    files |= {on_fa: f"{own}{on_fa if own else on_cf}.png" for on_cf, on_fa in _MASKS.items()}
    files |= {"fa": f"{own}fa_warped.png" if own else "fa.png", "landmarks": f"{own}landmarks.txt"}
    return files | ({"field": f"{own}field.npz"} if elastic else {})


def _as_text(landmarks: np.ndarray) -> str:
    return "".join(" ".join(f"{value:.7f}" for value in row) + "\n" for row in landmarks)


def _save_field(path: Path, warped: WarpedPair) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, residual=warped.warp.residual(len(warped.fa)).astype(np.float16))
