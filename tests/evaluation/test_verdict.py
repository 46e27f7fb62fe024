"""The verdict: levels and advice follow from the scores."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retipair.evaluation.drawn_scores import DrawnViewScores, TrueViewScores
from retipair.evaluation.findings import Finding
from retipair.evaluation.means import Mean
from retipair.evaluation.provenance import Provenance
from retipair.evaluation.scores import (
    ClosestPair,
    ConsistencyScores,
    Distribution,
    FeatureDifference,
    LayoutScores,
    Means,
    Memorisation,
    Scores,
    Spectra,
    StepCost,
    StepSettings,
    TextureScores,
    TrainingScores,
)
from retipair.evaluation.verdict import conclusion, headline, verdict
from retipair.metrics.data_issues import DataIssue

ENOUGH = 50
FIGURES = ("correlation", "dice", "cl_dice")
NO_SPECTRA = Spectra((), {}, {})
NO_LAYOUTS = LayoutScores(512, ())
PROVENANCE = Provenance("0", 0, 0, "real", "", *[None] * 10)


def column(mean: float, n: int = ENOUGH, wide: float = 0.02) -> Mean:
    return Mean(mean, mean - wide, mean + wide, n)


def columns(**means: float) -> Means:
    return {name: column(value) for name, value in means.items()}


def consistency(**rows: Means) -> ConsistencyScores:
    shift = columns(generated=9.0, train=0.1, mispaired=9.0)
    return ConsistencyScores(**rows, shift_px=shift, field={})


def agreement_rows(made: float, figure: str | None = None, n: int = ENOUGH) -> dict[str, Means]:
    """Return all three metrics at .55 of .6 (chance 0), with `made` for all of them or for one."""
    rows = {name: columns(generated=0.55, train=0.6, mispaired=0.0) for name in FIGURES}
    for name in (figure,) if figure else FIGURES:
        rows[name]["generated"] = column(made, n)
    return rows


def agreement(made: float, figure: str | None = None, n: int = ENOUGH) -> ConsistencyScores:
    return consistency(**agreement_rows(made, figure, n))


def detail(**views: Means) -> dict[str, TextureScores]:
    return {view: TextureScores({}, fine_share, {}, {}) for view, fine_share in views.items()}


def distance(mmd2: float, floor: float) -> Distribution:
    red = FeatureDifference("cf.colour.red.mean", "CF red", 1.0)
    return Distribution(mmd2, floor, 1.0, 1.0, 1.0, 1.0, (red,))


def search(*copies: str, variations: int = 0, given: int = 0, similarity: Mean | None = None) -> Memorisation:
    return Memorisation(
        similarity={"generated": similarity or column(0.3)},
        similarities={},
        ratio=None,
        authenticity=None,
        threshold=0.6,
        copies=copies,
        variations=variations,
        given=given,
        closest=(ClosestPair("1", "eye1", 0.4),),
    )


def drawn(drawn: float, split: str = "val", n: int = ENOUGH, given: float = 0.6) -> dict[str, DrawnViewScores]:
    """Return scores of FA drawn from CF that reach `given`, where another eye reaches 0."""
    correlation = TrueViewScores(*({split: column(value, n)} for value in (drawn, given, 0.0)))
    return {"cf2fa": DrawnViewScores("fa", n, n, 0, correlation, None, ())}


def training(seconds: float | None, gib: float | None, settings: StepSettings) -> TrainingScores:
    return TrainingScores((), (), StepCost(seconds, gib), settings)


def issues(*named: tuple[str, str]) -> tuple[DataIssue, ...]:
    return tuple(DataIssue(id, "kind", text) for id, text in named)


def scores(**changes: Any) -> Scores:
    """Return scores of generated pairs as good as the real ones, with some fields replaced."""
    fine = columns(generated=0.2, train=0.2, autoencoder=0.15)
    good: dict[str, Any] = {
        "sizes": {"generated": 50, "train": 50},
        "consistency": agreement(0.55),
        "memorisation": search(),
        "texture": detail(cf=fine, fa=fine),
        "colour": {"fa": columns(generated=0.5)},
        "distribution": distance(0.2, 0.3),
        "diversity": {view: columns(generated=0.4, real=0.4) for view in ("cf", "fa")},
        "training": None,
        "issues": (),
    }
    unread = {"provenance": PROVENANCE, "spectra": NO_SPECTRA, "layouts": NO_LAYOUTS, "deep": None}
    unread |= {key: {} for key in ("vessels", "anatomy", "plotted", "examples")} | {"suspect_pairs": ()}
    return Scores(**{**unread, **good, **changes})


def about(found: list[Finding], what: str) -> Finding:
    [one] = [finding for finding in found if finding.about == what]
    return one


def advice(finding: Finding) -> str:
    return conclusion(finding).advice


def all_advice(found: list[Finding]) -> str:
    return " ".join(map(advice, found))


def test_what_is_as_good_as_real_is_fine_and_needs_no_advice() -> None:
    found = verdict(scores())
    assert {finding.level for finding in found} == {"good"}
    assert not any(finding.advice for finding in found)
    assert found[0].about == "agreement"


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(("made", "level"), [(0.5, "good"), (0.4, "look"), (0.2, "bad"), (-0.1, "bad")])
def test_agreement_is_judged_by_its_worst_figure_whichever_that_is(made: float, level: str, figure: str) -> None:
    found = about(verdict(scores(consistency=agreement(made, figure))), "agreement")
    assert found.level == level
    assert f"{made:.2f} in generated" in found.text
    assert bool(found.advice) == (level != "good")
    named = {"correlation": "correlation", "dice": "vessel Dice", "cl_dice": "clDice"}[figure]
    assert named in found.text.rsplit(". ", 1)[1]


def test_a_high_correlation_does_not_hide_a_low_dice() -> None:
    """As measured on an adapter after a short training: 89, 58 and 35 %."""
    rows = {
        "correlation": columns(generated=0.57, train=0.64, mispaired=0.01),
        "dice": columns(generated=0.39, train=0.62, mispaired=0.08),
        "cl_dice": columns(generated=0.27, train=0.55, mispaired=0.12),
    }
    found = about(verdict(scores(consistency=consistency(**rows))), "agreement")
    assert found.level == "bad"
    assert "according to clDice" in found.text
    assert "0.12 in mispaired pairs (35 %)" in found.text


def test_a_figure_that_training_pairs_do_not_pass_either_judges_nothing() -> None:
    rows = agreement_rows(0.55)
    rows["dice"] = columns(generated=0.2, train=0.05, mispaired=0.08)
    found = about(verdict(scores(consistency=consistency(**rows))), "agreement")
    assert found.level == "look"
    rows["cl_dice"] = columns(generated=0.1, train=0.6, mispaired=0.0)
    assert about(verdict(scores(consistency=consistency(**rows))), "agreement").level == "bad"


def test_few_pairs_are_said_to_be_few_and_decide_nothing() -> None:
    few = scores(sizes={"generated": 8, "train": 8}, colour={"fa": columns(generated=0.1)})
    found = verdict(few)
    assert found[0].about == "number of pairs"
    assert "8 generated and 8 real pairs" in found[0].text
    assert headline(few, found) == "Too few pairs for a verdict; check 1 point."


@pytest.mark.parametrize("column_name", ["generated", "train", "mispaired"])
def test_agreement_of_few_pairs_of_any_kind_is_at_most_to_be_looked_at(column_name: str) -> None:
    rows = agreement_rows(0.1)
    for figure in FIGURES:
        mean = rows[figure][column_name]
        assert mean
        rows[figure][column_name] = replace(mean, n=19)
    found = about(verdict(scores(consistency=consistency(**rows))), "agreement")
    assert found.level == "look"
    assert "too few pairs" in found.text


def test_an_interval_that_reaches_half_way_is_at_most_to_be_looked_at() -> None:
    rows = agreement_rows(0.25)
    for figure in FIGURES:
        rows[figure]["generated"] = column(0.25, wide=0.1)
    assert about(verdict(scores(consistency=consistency(**rows))), "agreement").level == "look"
    rows["dice"]["generated"] = column(0.25, wide=0.01)
    assert about(verdict(scores(consistency=consistency(**rows))), "agreement").level == "bad"


@pytest.mark.parametrize(("n", "wide", "level"), [(6, 0.01, "look"), (50, 0.2, "look"), (50, 0.01, "bad")])
def test_diversity_is_denied_on_enough_pairs_with_intervals_apart_alone(n: int, wide: float, level: str) -> None:
    row = {"generated": column(0.6, n, wide), "real": column(0.4, n, wide)}
    found = about(verdict(scores(diversity={"cf": row, "fa": row})), "diversity of the FA")
    assert found.level == level
    assert ("too few pairs" in found.text) == (n == 6)


def test_the_headline_follows_the_gravest_and_names_it() -> None:
    assert headline(scores(), verdict(scores())).startswith("No problems found")
    copied = scores(memorisation=search("7"))
    assert headline(copied, verdict(copied)) == "Do not train on these pairs as they are; problems: copies."
    real = scores(sizes={"train": 1})
    assert headline(real, verdict(real)).startswith("No problems found")


def test_a_copy_is_never_fine() -> None:
    found = about(verdict(scores(memorisation=search("7"))), "copies")
    assert found.level == "bad"
    assert "--withhold_copies" in advice(found)


def test_variations_of_training_pairs_are_copies_by_intent() -> None:
    varied = about(verdict(scores(memorisation=search("7", variations=ENOUGH))), "copies")
    assert varied.level == "look"
    assert "treat them as patient data" in varied.text
    assert "--max_steps" not in advice(varied)
    mixed = about(verdict(scores(memorisation=search("7", variations=ENOUGH - 1))), "copies")
    assert mixed.level == "bad"


def test_pairs_that_are_similar_because_of_their_given_view_are_no_problem() -> None:
    found = about(verdict(scores(memorisation=search(given=ENOUGH))), "copies")
    assert found.level == "look"
    assert "expected, because the given view of such a pair belongs to that training pair" in found.text
    mixed = about(verdict(scores(memorisation=search("7", given=3))), "copies")
    assert mixed.level == "bad"
    assert "1 of 50 generated pairs. 3 other pairs are as similar" in mixed.text


def test_copies_that_were_withheld_are_still_reported() -> None:
    found = about(verdict(scores(withheld=("7", "9"))), "copies")
    assert found.level == "good"
    assert "2 copies were found and rejected before the scores were computed." in found.text


@pytest.mark.parametrize(
    ("reached", "n", "level"),
    [(0.7, ENOUGH, "good"), (0.5, ENOUGH, "good"), (0.4, ENOUGH, "look"), (0.2, ENOUGH, "bad"), (0.2, 6, "look")],
)
def test_drawn_views_are_judged_between_another_eye_and_the_given_view(reached: float, n: int, level: str) -> None:
    found = about(verdict(scores(drawn_views=drawn(reached, n=n))), "drawn FA")
    assert found.level == level
    assert f"drawn FA {reached:.2f}, given CF 0.60" in found.text
    assert f"{100 * reached / 0.6:.0f} %" in found.text
    for flag in ("--pair_guidance", "--best_of", "--half_clean_fraction 0.5"):
        assert (flag in advice(found)) == (level != "good")


def test_drawn_views_are_judged_without_generated_pairs_too() -> None:
    alone = scores(sizes={"val": 50}, drawn_views=drawn(0.1))
    found = verdict(alone)
    assert about(found, "drawn FA").level == "bad"
    assert headline(alone, found) == "Possible problems in these pairs: check them."


def test_drawn_views_are_judged_by_validation_pairs() -> None:
    both = drawn(0.1)["cf2fa"]
    columns_of_train = {name: {"train": column(0.6)} for name in ("drawn_view", "given_view", "mispaired")}
    merged = {name: {**columns_of_train[name], **getattr(both.correlation, name)} for name in columns_of_train}
    found = about(
        verdict(scores(drawn_views={"cf2fa": replace(both, correlation=TrueViewScores(**merged))})), "drawn FA"
    )
    assert found.level == "bad"
    assert "true FA of validation pairs" in found.text
    memorised = about(verdict(scores(drawn_views=drawn(0.6, "train"))), "drawn FA")
    assert memorised.level == "look"
    assert "may have memorised" in memorised.text
    assert about(verdict(scores(drawn_views=drawn(0.1, "train"))), "drawn FA").level == "bad"


def test_where_no_true_view_is_known_or_the_given_ones_do_not_match_nothing_is_concluded() -> None:
    nothing = DrawnViewScores("cf", 9, 0, 9, TrueViewScores({}, {}, {}), None, ())
    found = about(verdict(scores(drawn_views={"fa2cf": nothing})), "drawn CF")
    assert found.level == "look"
    assert "unknown" in found.text
    unlike = about(verdict(scores(drawn_views=drawn(0.5, given=-0.1))), "drawn FA")
    assert unlike.level == "look"
    assert "No conclusion" in unlike.text


@pytest.mark.parametrize(
    ("made", "through", "blamed"),
    [
        (0.08, 0.09, "autoencoder"),  # it leaves less than half, and the model that much
        (0.04, 0.09, "Train for more steps"),  # the model leaves less than half of that
        (0.08, 0.15, "Train for more steps"),  # it would leave enough
        (0.50, 0.15, "Generate with more --steps"),
    ],
)
def test_who_is_to_blame_for_smoothness(made: float, through: float, blamed: str) -> None:
    fine, good = columns(generated=made, train=0.2, autoencoder=through), columns(generated=0.2, train=0.2)
    found = about(verdict(scores(texture=detail(cf=good, fa=fine))), "detail of the FA")
    assert found.level == "look"
    assert blamed in advice(found)


def test_tint_distance_and_sameness_are_named() -> None:
    found = verdict(
        scores(
            colour={"fa": columns(generated=9.0)},
            distribution=distance(3.0, 0.3),
            diversity={view: columns(generated=0.7, real=0.4) for view in ("cf", "fa")},
        )
    )
    assert about(found, "colour in FA").level == "look"
    text = about(found, "appearance").text
    assert "CF red" in text
    assert "cf.colour" not in text, "keys are for programs"
    assert about(found, "diversity of the CF").level == "bad"


def test_only_settings_that_were_not_used_are_advised() -> None:
    frugal = StepSettings(1, 4, "fp32", "gradient checkpointing and weights in fp8")
    found = verdict(scores(training=training(1.5, 12.0, frugal)))
    assert about(found, "memory of training").advice == ()
    speed = about(found, "speed of training")
    assert "4 pairs" in speed.text
    assert "--memory 24" in advice(speed)
    assert "--precision bf16" in advice(speed)
    found = verdict(scores(training=training(1.5, 12.0, replace(frugal, memory="no memory savings"))))
    assert advice(about(found, "memory of training")) == "For less memory in training: --memory 8."


def test_real_pairs_alone_are_judged_by_their_doubts() -> None:
    found_in = issues(("12", "the CF has no colour"), ("12", "..."), ("3", "..."))
    [found] = verdict(scores(sizes={"train": 1}, issues=found_in))
    assert found.level == "look"
    assert found.text.startswith("2 real pairs with possible problems; the first is 12")


def test_one_direction_wins_by_gravity_and_weight() -> None:
    smooth = detail(**{view: columns(generated=0.02, train=0.2) for view in ("cf", "fa")})
    alike = {view: columns(generated=0.7, real=0.4) for view in ("cf", "fa")}
    found = verdict(scores(texture=smooth, diversity=alike, colour={"fa": columns(generated=9.0)}))
    assert "fewer steps" in all_advice(found), "few eyes outrank smoothness and tint"
    assert "more steps" not in all_advice(found)
    found = verdict(scores(consistency=agreement(0.1), diversity=alike))
    assert "more steps" in all_advice(found), "if the views do not match, nothing else counts"
    assert "fewer steps" not in all_advice(found)


# --- Over many scores

unit = st.floats(0, 1)
signed = st.floats(-1, 1)
counts = st.integers(1, 200)


@st.composite
def any_mean(draw: st.DrawFn, values: st.SearchStrategy[float] = unit) -> Mean:
    """Return a mean with an interval around it; no interval for fewer than three pairs."""
    mean, n, wide = draw(values), draw(counts), draw(st.floats(0, 0.3))
    return Mean(mean, mean - wide, mean + wide, n) if n > 2 else Mean(mean, None, None, n)


@st.composite
def any_row(draw: st.DrawFn, *names: str, optional: tuple[str, ...] = ()) -> Means:
    row: Means = {name: draw(any_mean()) for name in names}
    return row | {name: draw(st.none() | any_mean()) for name in optional}


@st.composite
def any_scores(draw: st.DrawFn) -> Scores:
    agree = {name: draw(any_row("generated", optional=("train", "mispaired"))) for name in FIGURES}
    copies = draw(st.lists(st.text("0123456789", min_size=1), max_size=2, unique=True))
    strategy = draw(st.sampled_from(["no memory savings", "gradient checkpointing", "weights in fp8", None]))
    settings = StepSettings(draw(st.integers(1, 4)), 1, draw(st.sampled_from(["fp32", "bf16"])), strategy)
    cost = draw(st.none() | unit), draw(st.none() | st.floats(0, 90))
    fine = {view: draw(any_row("generated", "train", optional=("autoencoder",))) for view in ("cf", "fa")}
    return scores(
        sizes={"generated": draw(counts), "train": draw(counts)},
        consistency=consistency(**agree),
        memorisation=draw(st.sampled_from([search(*copies, similarity=draw(any_mean())), None])),
        withheld=draw(st.sampled_from([(), ("3",)])),
        drawn_views=draw(st.sampled_from([drawn(draw(unit), n=draw(counts)), {}])),
        texture=detail(**fine),
        colour={"fa": {"generated": draw(any_mean(st.floats(0, 20)))}},
        distribution=draw(st.sampled_from([distance(draw(st.floats(-1, 9)), draw(st.floats(0.01, 1))), None])),
        diversity={view: draw(any_row(optional=("generated", "real"))) for view in ("cf", "fa")},
        training=draw(st.sampled_from([training(*cost, settings), None])),
        issues=draw(st.sampled_from([(), issues(("12", "blurred"))])),
    )


def fraction(row: Means) -> float:
    """Return NaN if training pairs are no better than mispaired ones: it neither passes nor fails a limit."""
    generated, train, mispaired = (row[name] for name in ("generated", "train", "mispaired"))
    assert generated
    assert train
    least = mispaired.mean if mispaired else 0.0
    return (generated.mean - least) / (train.mean - least) if train.mean > least else math.nan


OPPOSITES = [("more steps (--max", "fewer steps (--max"), ("targets all", "lower --unet_lora_rank")]
OPPOSITES += [("For faster training steps: use more memory", "For less memory")]


@settings(deadline=None, max_examples=200)
@given(any_scores())
def test_no_verdict_contradicts_its_figures_or_itself(given_scores: Scores) -> None:
    found = verdict(given_scores)
    said, levels = headline(given_scores, found), [finding.level for finding in found]

    # The headline and the findings
    assert said.startswith("Do not train") == ("bad" in levels)
    assert said.startswith("As good as") == (set(levels) == {"good"})
    assert levels == sorted(levels, key=["bad", "look", "good"].index)
    if min(given_scores.sizes.values()) < 20:
        assert said.startswith(("Too few pairs", "Do not train"))

    # Agreement and its three figures
    rows = {figure: getattr(given_scores.consistency, figure) for figure in FIGURES}
    agree = about(found, "agreement")
    if agree.level == "good":
        assert all(fraction(row) >= 0.8 for row in rows.values())
    if agree.level == "bad":
        low = [row for row in rows.values() if row["train"] and fraction(row) < 0.5]
        assert any(min(one.n for one in row.values() if one) >= 20 for row in low)

    # Drawn views
    for one in given_scores.drawn_views.values():
        reached = one.correlation.drawn_view["val"]
        assert reached
        if about(found, "drawn FA").level == "good":
            assert reached.mean >= 0.8 * 0.6 - 1e-9
        if about(found, "drawn FA").level == "bad":
            assert reached.mean < 0.5 * 0.6
            assert reached.n >= 20

    # Few pairs
    for view, row in given_scores.diversity.items():
        generated, real = row["generated"], row["real"]
        if generated and real:
            few = min(generated.n, real.n) < 20
            assert not (few and about(found, f"diversity of the {view.upper()}").level == "bad")
    if given_scores.memorisation and not given_scores.copies:
        assert about(found, "copies").level == "good"

    # Advice
    texts = [one.text for finding in found for one in finding.advice]
    assert len(texts) == len(set(texts))
    for one, other in OPPOSITES:
        assert not (one in " ".join(texts) and other in " ".join(texts))
    given = [one for finding in found for one in finding.advice]
    assert not any(one.contradicts(other) for one, other in combinations(given, 2))
