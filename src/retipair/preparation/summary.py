"""What prepare says and writes of its results: the table, the contact sheet, the manifest."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from retipair.config import PrepareConfig
from retipair.data.contact_sheet import MOST_PAIRS, SHEET_NAME, contact_sheet, titled
from retipair.data.dataset import read_folder
from retipair.data.manifest import SPLITS, PreparedPair, Split, write_manifest
from retipair.data.pair import px_at_512, save_image
from retipair.data.rejected import REJECTED_NAME
from retipair.data.sources import RawPair
from retipair.data.splits import eye_names
from retipair.preparation.state import (
    VIEWS,
    AlignmentResult,
    doubtful,
    view_file,
)
from retipair.runtime.console import console
from retipair.runtime.errors import UserError, printable


def print_table(
    pairs: Sequence[RawPair], outcomes: Sequence[AlignmentResult], sides: dict[str, Split], size: int
) -> None:
    table = Table("id", "eye", "split", "inliers", "residual, px at 512", "consistency", "result")
    eyes = eye_names(pairs)
    for outcome in outcomes:
        residual = "-" if outcome.residual_px is None else f"{px_at_512(outcome.residual_px, size):.2f}"
        table.add_row(
            outcome.id,
            eyes[outcome.id],
            sides.get(outcome.id, "-"),
            "-" if outcome.inliers is None else str(outcome.inliers),
            residual if outcome.residual_px is None else f"{residual} ({_measured_at(outcome)})",
            f"{outcome.consistency_before:.3f} -> {outcome.consistency:.3f}",
            f"refused: {outcome.refused}" if outcome.refused else "kept",
        )
    screen = Console()
    (screen if screen.is_terminal else Console(width=160)).print(table)


def _measured_at(outcome: AlignmentResult) -> str:
    return f"{len(outcome.points)} points" if outcome.points else "vessels"


def _print_rejected(out: Path) -> None:
    try:
        note = read_folder(out).note
    except UserError as error:  # a listed pair that is now refused
        note = f"warning: {error}"
    if note:
        console.print(printable(note))


def write_summary(
    config: PrepareConfig, pairs: Sequence[RawPair], outcomes: Sequence[AlignmentResult], sides: dict[str, Split]
) -> None:
    """The contact sheet, doubtful pairs first, and last of all the manifest."""
    eyes = eye_names(pairs)
    both = [(p, o) for p, o in zip(pairs, outcomes, strict=True) if not o.refused]
    records = [_record(pair, outcome, eyes[pair.id], sides[pair.id], config.size) for pair, outcome in both]
    doubts = doubtful(outcomes, config.size)
    in_order_of_doubt = sorted(records, key=lambda record: record.id not in doubts)
    sheet = contact_sheet(titled(config.out, record, doubts.get(record.id)) for record in in_order_of_doubt)
    save_image(config.out / SHEET_NAME, sheet)
    write_manifest(config.out, records)
    more = f", {MOST_PAIRS} of them" if len(records) > MOST_PAIRS else ""
    counts = Counter(record.split for record in records)
    sides_text = ", ".join(f"{counts[side]} {side}" for side in SPLITS if counts[side])
    print(f"{len(records)} of {len(pairs)} pairs kept in {config.out} ({sides_text})")
    print(
        f"Look at {config.out / SHEET_NAME}{more}: vessels must run on from tile to tile; "
        f"list the ids of pairs to leave out in {config.out / REJECTED_NAME}"
    )
    _print_rejected(config.out)
    if doubts:
        print("Look at these first:")
    for id, why in doubts.items():
        print(f"  {printable(id)}: {why}")


def _record(pair: RawPair, outcome: AlignmentResult, eye: str, side: Split, size: int) -> PreparedPair:
    return PreparedPair(
        id=pair.id,
        eye=eye,
        patient=pair.patient,
        split=side,
        **{view: view_file(view, pair.id) for view in VIEWS},
        size=size,
        caption=pair.caption,
        source_sha256=outcome.source_sha256,
        fa_to_cf=outcome.fa_to_cf,
        points=outcome.points,
        inliers=outcome.inliers,
        residual_px=outcome.residual_px,
        consistency_before=outcome.consistency_before,
        consistency=outcome.consistency,
    )
