"""`retipair export pairs DIR OUT --to hf|webdataset`: write aligned pairs as a data set of Parquet or tar files.

The pairs are divided into files by their split, in the order of the manifest. A file is written as soon as its pairs
are known, so that memory does not grow with the number of pairs. The state file OUT/.export_pairs.json contains a hash
of the pairs of each complete file, so that an interrupted export continues with the first missing file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from retipair.config import DatasetForm, ExportPairsConfig
from retipair.data.card import CARD_NAME, dataset_card, has_scores, is_replaceable, write_card
from retipair.data.dataset_row import DatasetRow, columns_of, load_row
from retipair.data.manifest import SPLITS, GeneratedPair, PreparedPair, Split
from retipair.data.pair_facts import FactCounter, PairFacts, count_pairs, generation_settings
from retipair.data.pair_stream import open_stream
from retipair.data.parquet import FILE_SPLITS, import_pyarrow, write_parquet
from retipair.data.review import check_reviewed
from retipair.data.shards import Shard, divide
from retipair.data.webdataset import write_tar
from retipair.runtime.atomic_io import atomic_write, check_folder_place, is_leftover, read_json, write_text
from retipair.runtime.console import Advance, console, progress
from retipair.runtime.errors import MissingError, OccupiedError, SettingError
from retipair.runtime.lock import directory_lock
from retipair.runtime.parallel import parallel_map
from retipair.runtime.schema import canonical_json, from_values, json_sha256, to_values
from retipair.vision.modality import CF_FA

STATE_NAME = ".export_pairs.json"
_STATE_SCHEMA = "retipair.export-pairs-state/1"
_VERSION = 1  # increment it if a change of the code changes the files
MAX_BYTES = 400 * 2**20
"""The images of one file have at most this many bytes."""
MAX_PAIRS = 10_000
"""One file has at most this many pairs; their lines of the manifest are in memory until it is written."""


@dataclass(frozen=True)
class WrittenFile:
    """A complete file of the data set: the key of its pairs (see `Shard.key`), and its size in bytes."""

    key: str
    size: int


@dataclass
class ExportState:
    """The content of the state file.

    files: the complete files, by name.
    facts: what the card says of the pairs; None as long as the export is incomplete.
    settings: how the pairs were generated, for the card.
    """

    form: DatasetForm
    files: dict[str, WrittenFile] = field(default_factory=dict)
    facts: PairFacts | None = None
    settings: dict[str, str] = field(default_factory=dict)
    schema: str = _STATE_SCHEMA


def export_pairs(config: ExportPairsConfig) -> Path:
    """Write the files of the data set that are missing or whose pairs have changed, and return OUT.

    Raises UserError if settings are invalid, if a file of a pair is missing, or if OUT contains files of other
    commands; nothing is written then. A damaged image is found when it is exported; the files that are complete are
    kept.
    """
    # Check
    if config.workers < 0:
        raise SettingError("workers", config.workers, "must be 0 (every core) or more")
    if config.to == "hf":
        import_pyarrow()
    _check_out(config)
    if config.reviewed:
        check_reviewed([config.pairs])
    stream = open_stream(config.pairs, config.reviewed)
    counter = count_pairs(config.pairs, stream)
    facts = counter.facts()
    if facts.real or facts.sourced:
        console.print(
            "warning: the data set contains real images, or the names of the pairs or views from which its pairs were "
            "generated; `retipair prepare --anonymise` replaces the ids, eyes and patients"
        )

    # Write the files that are missing
    with directory_lock(config.out):
        state = _read_state(config)
        _write_state(config.out, state)
        with progress("Exporting pairs", facts.pairs) as advance:
            exporter = _Exporter(config, state, counter, advance)
            names = [exporter.export(shard) for shard in divide(config.pairs, stream, MAX_BYTES, MAX_PAIRS)]
        for name in sorted(set(state.files) - set(names)):
            (config.out / name).unlink(missing_ok=True)
        state.files = {name: state.files[name] for name in names}

        # Describe the data set
        state.facts, state.settings = facts, {**counter.views, **generation_settings(config.pairs)}
        _write_state(config.out, state)
        _describe(config.out, state)
    print(f"{facts.pairs} pairs ({facts.splits_text}) in {len(names)} files in {config.out}")
    return config.out


@dataclass(frozen=True)
class _Exporter:
    config: ExportPairsConfig
    state: ExportState
    counter: FactCounter
    advance: Advance

    def export(self, shard: Shard) -> str:
        """Write the file of a shard, unless it is complete already, and return its name."""
        config, name = self.config, _file_name(self.config.to, shard.split, shard.number)
        kinds = [kind for kind in (PreparedPair, GeneratedPair) if kind in self.counter.kinds]
        columns = columns_of(kinds, bool(self.counter.facts().modes), self.counter.modalities or CF_FA)
        key = shard.key(config.pairs, json_sha256([_VERSION, config.to, list(columns)]))
        if self._is_complete(name, key):
            self.advance(len(shard.pairs))
            return name
        if self.state.facts:  # the files of an earlier export change
            self.state.facts = None
            _write_state(config.out, self.state)
        write: Callable[[BinaryIO, Iterable[DatasetRow]], None] = write_tar
        if config.to == "hf":
            write = partial(write_parquet, columns=columns)
        with atomic_write(config.out / name) as stream:
            write(stream, self._rows(shard))
        self.state.files[name] = WrittenFile(key, (config.out / name).stat().st_size)
        _write_state(config.out, self.state)
        return name

    def _is_complete(self, name: str, key: str) -> bool:
        written, path = self.state.files.get(name), self.config.out / name
        return written is not None and path.is_file() and written == WrittenFile(key, path.stat().st_size)

    def _rows(self, shard: Shard) -> Iterable[DatasetRow]:
        for row in parallel_map(partial(load_row, self.config.pairs), shard.pairs, self.config.workers):
            yield row
            self.advance()


def _file_name(form: DatasetForm, split: Split, number: int | None) -> str:
    """Return the name of a file in OUT; without a number, the pattern of all files of the split."""
    if form == "hf":
        return f"data/{FILE_SPLITS[split]}-{'*' if number is None else f'{number:05d}'}.parquet"
    return f"{split}-{'*' if number is None else f'{number:06d}'}.tar"


# --- The card of OUT


def _describe(out: Path, state: ExportState) -> None:
    """Write the card of OUT, unless the user has edited it, or it has scores."""
    card = out / CARD_NAME
    if not is_replaceable(out):
        console.print(f"{card} was edited and is kept; its numbers of pairs may be out of date")
    elif has_scores(out):
        advice = f"if the pairs have changed, write it again: retipair card {out} --evaluation DIR"
        console.print(f"{card} has scores and is kept; {advice}")
    else:
        write_card(out, export_card(state, {}))


def export_card(state: ExportState, scores: dict[str, str]) -> str:
    """Return the card of a complete export.

    scores: the results of an evaluation, by name.
    """
    assert state.facts
    splits: list[Split] = [split for split in SPLITS if split in state.facts.splits]
    files = {FILE_SPLITS[split]: _file_name(state.form, split, None) for split in splits}
    return dataset_card(state.facts, state.settings, scores, files, _reading_code(state.form, splits[0]))


def _reading_code(form: DatasetForm, split: Split) -> str:
    if form == "hf":
        return (
            f'from datasets import load_dataset\n\npairs = load_dataset("FOLDER", split="{FILE_SPLITS[split]}")\n'
            + ('cf, fa, mask = (pairs[0][view] for view in ("cf", "fa", "mask"))  # PIL images')
        )
    first = _file_name(form, split, 0)
    return f'import webdataset\n\nfor pair in webdataset.WebDataset("FOLDER/{first}").decode("pil"):\n' + (
        '    cf, fa, mask = (pair[f"{view}.png"] for view in ("cf", "fa", "mask"))  # PIL images'
    )


# --- The state file, and the checks of OUT


def read_export(out: Path) -> ExportState:
    """Return the state of a complete export. Raises UserError for another folder or an interrupted export."""
    if not (out / STATE_NAME).is_file():
        raise MissingError(out, f"no {STATE_NAME} of `retipair export pairs` here")
    state = from_values(ExportState, read_json(out / STATE_NAME), str(out / STATE_NAME))
    if state.facts is None:
        raise MissingError(out, "the export was interrupted; repeat the `retipair export pairs` command")
    return state


def _read_state(config: ExportPairsConfig) -> ExportState:
    path = config.out / STATE_NAME
    if not path.is_file():
        return ExportState(config.to)
    state = from_values(ExportState, read_json(path), str(path), "delete OUT, and export the pairs again")
    if state.form != config.to:
        raise OccupiedError(config.out, f"contains an export of the form {state.form}; choose another OUT")
    return state


def _write_state(out: Path, state: ExportState) -> None:
    write_text(out / STATE_NAME, canonical_json(to_values(state)))


def _check_out(config: ExportPairsConfig) -> None:
    """Raise UserError unless OUT is new, empty, or from an export of this form, and lies outside DIR."""
    out, pairs = config.out, config.pairs.resolve()
    if out.resolve() == pairs or pairs in out.resolve().parents:
        raise OccupiedError(out, "lies in the folder of the pairs; choose another OUT")
    check_folder_place(out / "data")
    if out.is_dir() and not all(map(is_leftover, out.iterdir())) and not (out / STATE_NAME).is_file():
        problem = f"contains files, but no {STATE_NAME} of `retipair export pairs`"
        raise OccupiedError(out, f"{problem}; choose a new or empty folder for OUT")
    _read_state(config)
