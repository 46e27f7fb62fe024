"""Judge whether drawn views (`generate --mode cf2fa` and `fa2cf`) show the vessels of the true views.

The vesselness correlation is judged on a relative scale: 0 is its mean between drawn views and the true views of other
eyes, 1 is its mean between given and true views.
"""

from collections.abc import Iterator

from retipair.evaluation import advice
from retipair.evaluation.agreement import BAD_FRACTION, GOOD_FRACTION, is_certain
from retipair.evaluation.drawn_scores import DrawnViewScores, TrueViewScores
from retipair.evaluation.findings import Finding, count
from retipair.evaluation.means import Mean
from retipair.evaluation.scores import Scores

SPLIT_NAMES = {"val": "validation", "test": "test", "train": "training"}
"""The splits by which drawn views are judged, preferred first, and their names in the text of a finding."""
_BETTER = (advice.PAIR_GUIDANCE, advice.BEST_OF, advice.CLEAN_HALVES)


def check_drawn_views(scores: Scores) -> Iterator[Finding]:
    """Check whether drawn views show the vessels of the true views; one finding for each mode.

    Pairs of the validation split are judged if there are any: a model may have memorised the true views of its training
    pairs.
    """
    for mode_scores in scores.drawn_views.values():
        split = next((split for split in SPLIT_NAMES if mode_scores.correlation.drawn_view.get(split)), None)
        yield _judge(mode_scores, split) if split else _unknown(mode_scores)


def _unknown(scores: DrawnViewScores) -> Finding:
    view = scores.view.upper()
    text = f"The true {view} are unknown, because no pair in --real contains one of the given views in the same crop."
    return Finding("look", f"drawn {view}", text, (advice.KNOWN_VIEWS,))


def _judge(scores: DrawnViewScores, split: str) -> Finding:
    """Judge the drawn views by the real pairs of one split."""
    reached, given, chance = _means(scores.correlation, split)
    baseline = chance.mean if chance else 0.0
    about, text = f"drawn {scores.view.upper()}", _text(scores, split)
    if given.mean <= baseline:
        text += (
            " No conclusion: the given views match the true views no better than drawn views match those of other eyes."
        )
        return Finding("look", about, text, (advice.FIX_REAL,))
    fraction, upper = ((value - baseline) / (given.mean - baseline) for value in (reached.mean, reached.upper))
    text += f" On the scale from another eye (0 %) to the given view (100 %): {100 * fraction:.0f} %."
    if fraction >= GOOD_FRACTION and split != "train":
        return Finding("good", about, text)
    if fraction >= GOOD_FRACTION:
        text += " These are training pairs; the model may have memorised their true views."
        return Finding("look", about, text, (advice.HELD_OUT_VIEWS,))
    if upper < BAD_FRACTION and is_certain(reached, given, chance):
        return Finding("bad", about, f"{text} The drawn views do not show the true vessels.", _BETTER)
    return Finding("look", about, f"{text} Some true vessels are not drawn, or not in the right place.", _BETTER)


def _means(scores: TrueViewScores, split: str) -> tuple[Mean, Mean, Mean | None]:
    """Return the mean correlations in one split: of drawn views, of given views, and of drawn views with other eyes."""
    reached, given = scores.drawn_view[split], scores.given_view[split]
    assert reached
    assert given
    return reached, given, scores.mispaired[split]


def _text(scores: DrawnViewScores, split: str) -> str:
    reached, given, chance = _means(scores.correlation, split)
    view, other = ("FA", "CF") if scores.view == "fa" else ("CF", "FA")
    text = f"Vesselness correlation with the true {view} of {SPLIT_NAMES[split]} pairs: drawn {view} {reached.mean:.2f}"
    text += f", given {other} {given.mean:.2f}"
    text += f", drawn {view} with the true {view} of another eye {round(chance.mean, 2) + 0:.2f}" if chance else ""
    return f"{text} (means over {count(reached.n, 'view')})."
