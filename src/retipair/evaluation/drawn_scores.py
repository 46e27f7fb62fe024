"""Scores of the views that were drawn from given views (`generate --mode cf2fa` and `--mode fa2cf`)."""

from dataclasses import dataclass

from retipair.evaluation.means import Mean


@dataclass(frozen=True)
class TrueViewScores:
    """Vesselness correlation with the true view, in [-1, 1]: split of the real pair -> mean; see `TrueViewCorrelation`.

    The means are over given views; the value of a given view is the mean over all views drawn from it.

    drawn_view: of the drawn views.
    given_view: of the given views.
    mispaired: of the drawn views, each with the true view of another eye.
    """

    drawn_view: dict[str, Mean | None]
    given_view: dict[str, Mean | None]
    mispaired: dict[str, Mean | None]


@dataclass(frozen=True)
class DrawnExample:
    """A generated pair shown in the report with the true view.

    split, true_id: the real pair to which the given view belongs; None if it is unknown.
    drawn_view, given_view: the vesselness correlation of these views with the true view; None if that is unknown.
    """

    id: str
    split: str | None
    true_id: str | None
    drawn_view: float | None
    given_view: float | None


@dataclass(frozen=True)
class DrawnViewScores:
    """Scores of the pairs of one mode.

    The true view is the other view of the real pair to which the given view belongs. At most 200 evenly spaced pairs
    are compared with their true views. At most 200 comparisons are made between two views drawn from one given view.

    view: the drawn view, "cf" or "fa".
    pairs: the number of generated pairs of the mode.
    matched: the number of pairs that were compared with the true view.
    unmatched: the number of pairs that were left out, because their given view is not a view of a real pair, or is not
        in the same frame. If more than 200 pairs have a source with the id of a real pair, only 200 of these pairs are
        examined. The others count neither as matched nor as unmatched.
    draws: the mean MS-SSIM between two views drawn from the same given view; None if no two views
        were drawn from the same given view.
    examples: some pairs, from the highest to the lowest correlation with the true view; in the order of the manifest
        if no true view is known.
    """

    view: str
    pairs: int
    matched: int
    unmatched: int
    correlation: TrueViewScores
    draws: Mean | None
    examples: tuple[DrawnExample, ...]
