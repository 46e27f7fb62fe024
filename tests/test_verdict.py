"""What the report says first: the level and the advice follow the figures."""

from typing import Any

import pytest

from retipair.verdict import Finding, headline, verdict


def columns(**means: float) -> dict[str, dict[str, float]]:
    return {name: {"mean": value, "n": 50} for name, value in means.items()}


def scores(**changes: Any) -> dict[str, Any]:
    """Of generated pairs as good as the real ones; `changes` are keys of it."""
    fine = columns(generated=0.2, train=0.2, autoencoder=0.15)
    good = {
        "sizes": {"generated": 50, "train": 50},
        "consistency": {"correlation": columns(generated=0.55, train=0.6, mispaired=0.0)},
        "memorisation": {
            "copies": [],
            "threshold": 0.6,
            "likeness": columns(generated=0.3),
            "closest": [{"likeness": 0.4}],
        },
        "texture": {view: {"fine_share": fine} for view in ("cf", "fa")},
        "colour": {"fa": columns(generated=0.5)},
        "distribution": {"mmd2": 0.2, "floor": 0.3, "furthest": [{"feature": "cf.colour.red.mean"}]},
        "diversity": {view: columns(generated=0.4, real=0.4) for view in ("cf", "fa")},
        "training": None,
        "doubts": [],
    }
    return good | changes


def about(found: list[Finding], what: str) -> Finding:
    [one] = [finding for finding in found if finding.about == what]
    return one


def test_what_is_as_good_as_real_is_fine_and_needs_no_advice() -> None:
    found = verdict(scores())
    assert {finding.level for finding in found} == {"good"}
    assert not any(finding.advice for finding in found)
    assert found[0].about == "agreement"


@pytest.mark.parametrize(("made", "level"), [(0.5, "good"), (0.4, "look"), (0.2, "bad"), (-0.1, "bad")])
def test_agreement_is_judged_between_chance_and_the_training_pairs(made: float, level: str) -> None:
    row = columns(generated=made, train=0.6, mispaired=0.0)
    found = about(verdict(scores(consistency={"correlation": row})), "agreement")
    assert found.level == level
    assert f"{made:.2f}" in found.text
    assert bool(found.advice) == (level != "good")


def test_few_pairs_are_said_to_be_few_and_the_gravest_comes_first() -> None:
    few = scores(sizes={"generated": 8, "train": 8}, colour={"fa": columns(generated=0.1)})
    found = verdict(few)
    assert found[0].about == "number of pairs"
    assert "8 generated and 8 real pairs" in found[0].text
    assert headline(few, found) == "Usable, after a look at 1 point."


def test_the_headline_follows_the_gravest() -> None:
    assert headline(scores(), verdict(scores())).startswith("As good as the real pairs")
    copied = scores(memorisation=scores()["memorisation"] | {"copies": ["7"]})
    assert headline(copied, verdict(copied)).startswith("Do not train")
    real = scores(sizes={"train": 1})
    assert headline(real, verdict(real)).startswith("Nothing speaks against")


def test_a_copy_is_never_fine() -> None:
    memorisation = scores()["memorisation"] | {"copies": ["7"]}
    found = about(verdict(scores(memorisation=memorisation)), "copies")
    assert found.level == "bad"
    assert "--withhold_copies" in found.advice


@pytest.mark.parametrize(
    ("made", "through", "blamed"),
    [
        (0.08, 0.09, "autoencoder"),  # it leaves less than half, and the model that much
        (0.04, 0.09, "Train longer"),  # the model leaves less than half of that
        (0.08, 0.15, "Train longer"),  # it would leave enough
        (0.50, 0.15, "Noisier"),
    ],
)
def test_who_is_to_blame_for_smoothness(made: float, through: float, blamed: str) -> None:
    fine = columns(generated=made, train=0.2, autoencoder=through)
    found = about(verdict(scores(texture={"cf": {"fine_share": fine}, "fa": {"fine_share": fine}})), "detail of the FA")
    assert found.level == "look"
    assert blamed in found.advice


def test_tint_distance_and_sameness_are_named() -> None:
    found = verdict(
        scores(
            colour={"fa": columns(generated=9.0)},
            distribution={"mmd2": 3.0, "floor": 0.3, "furthest": [{"feature": "cf.colour.red.mean"}]},
            diversity={view: columns(generated=0.7, real=0.4) for view in ("cf", "fa")},
        )
    )
    assert about(found, "colour in FA").level == "look"
    assert "cf.colour.red.mean" in about(found, "the look").text
    assert about(found, "diversity of the CF").level == "bad"


def test_only_settings_that_were_not_used_are_advised() -> None:
    cost = {"seconds_per_step": 1.5, "memory_gib": 12.0}
    frugal = {"batch_size": 1, "gradient_accumulation_steps": 4, "precision": "fp32"}
    frugal["memory"] = "gradient checkpointing and weights in fp8"
    found = verdict(scores(training={"cost": cost, "settings": frugal}))
    assert about(found, "memory of training").advice == ""
    speed = about(found, "speed of training")
    assert "4 pairs" in speed.text
    assert "--memory 24" in speed.advice
    assert "--precision bf16" in speed.advice
    found = verdict(scores(training={"cost": cost, "settings": frugal | {"memory": "no memory savings"}}))
    assert about(found, "memory of training").advice == "For less: --memory 8."


def test_real_pairs_alone_are_judged_by_their_doubts() -> None:
    doubts = [{"id": "12", "text": "the CF has no colour"}, {"id": "12", "text": "..."}, {"id": "3", "text": "..."}]
    [found] = verdict(scores(sizes={"train": 1}, doubts=doubts))
    assert found.level == "look"
    assert found.text.startswith("2 real pairs are in doubt, 12 first")
