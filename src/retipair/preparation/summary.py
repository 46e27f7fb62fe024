"""Print the results of `prepare` as a table, and write the contact sheet and the manifest."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from retipair.config import PrepareConfig
from retipair.data.contact_sheet import MAX_PAIRS, SHEET_NAME, contact_sheet, load_titled, sheet_mark
from retipair.data.dataset import read_folder
from retipair.data.manifest import SPLITS, PreparedPair, Split, write_manifest
from retipair.data.pair import px_at_512, save_image
from retipair.data.raw_pair import RawPair
from retipair.data.rejected import REJECTED_NAME
from retipair.data.splits import eye_names
from retipair.preparation.reading import modalities_of
from retipair.preparation.state import AlignmentResult, doubtful, view_file
from retipair.runtime.console import console, show_table
from retipair.runtime.errors import UserError, printable
from retipair.vision.modality import Modalities


def print_table(
    pairs: Sequence[RawPair], results: Sequence[AlignmentResult], splits: dict[str, Split], size: int
) -> None:
    table = Table("id", "eye", "split", "inliers", "residual, px at 512", "consistency", "result")
    eyes = eye_names(pairs)
    for result in results:
        residual = "-" if result.residual_px is None else f"{px_at_512(result.residual_px, size):.2f}"
        table.add_row(
            result.id,
            eyes[result.id],
            splits.get(result.id, "-"),
            "-" if result.inliers is None else str(result.inliers),
            residual if result.residual_px is None else f"{residual} ({_measured_at(result)})",
            f"{result.consistency_before:.3f} -> {result.consistency:.3f}",
            f"refused: {result.refused}" if result.refused else "kept",
        )
    show_table(table)
    for result in results:
        if result.chosen:
            print(f"{printable(result.id)}: {result.chosen}")


def _measured_at(result: AlignmentResult) -> str:
    return f"{len(result.points)} points" if result.points else "vessels"


def _print_rejected(out: Path) -> None:
    try:
        note = read_folder(out).note
    except UserError as error:  # the list of rejected pairs names a pair that is now refused
        note = f"warning: {error}"
    if note:
        console.print(printable(note))


def write_summary(
    config: PrepareConfig, pairs: Sequence[RawPair], results: Sequence[AlignmentResult], splits: dict[str, Split]
) -> None:
    """Write the contact sheet, which begins with the pairs to inspect; write the manifest; and print a summary."""
    eyes = eye_names(pairs)
    kept = [(pair, result) for pair, result in zip(pairs, results, strict=True) if not result.refused]
    modalities = modalities_of(config)
    records = [_record(pair, result, eyes[pair.id], splits[pair.id], config.size, modalities) for pair, result in kept]
    issues = doubtful(results, config.size)
    doubtful_first = sorted(records, key=lambda record: record.id not in issues)
    sheet = contact_sheet(load_titled(config.out, record, issues.get(record.id)) for record in doubtful_first)
    save_image(config.out / SHEET_NAME, sheet, sheet_mark(config.out, doubtful_first))
    write_manifest(config.out, records)
    more = f" ({MAX_PAIRS} of the pairs)" if len(records) > MAX_PAIRS else ""
    counts = Counter(record.split for record in records)
    split_counts = ", ".join(f"{counts[split]} {split}" for split in SPLITS if counts[split])
    print(f"{len(records)} of {len(pairs)} pairs kept in {config.out} ({split_counts})")
    if modalities.legend:
        print(modalities.legend)
    print(
        f"Check {config.out / SHEET_NAME}{more}: vessels must continue across tile borders; "
        f"list the ids of pairs to exclude in {config.out / REJECTED_NAME}"
    )
    _print_rejected(config.out)
    if issues:
        print("Check these first:")
    for id, reason in issues.items():
        print(f"  {printable(id)}: {reason}")


def _record(
    pair: RawPair, result: AlignmentResult, eye: str, split: Split, size: int, modalities: Modalities
) -> PreparedPair:
    return PreparedPair(
        id=pair.id,
        eye=eye,
        patient=pair.patient,
        split=split,
        cf=view_file("cf", pair.id),
        fa=view_file("fa", pair.id),
        mask=view_file("mask", pair.id),
        **modalities.recorded,
        size=size,
        native_size=result.native_size,
        raw_sizes=result.raw_sizes,
        raw_cf_to_cf=result.raw_cf_to_cf,
        caption=pair.caption,
        source_sha256=result.source_sha256,
        fa_to_cf=result.fa_to_cf,
        points=result.points,
        inliers=result.inliers,
        residual_px=result.residual_px,
        consistency_before=result.consistency_before,
        consistency=result.consistency,
    )
