"""Interpret the scores: what is good, what needs checking, what is bad, and what to try next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from retipair.evaluation.advice import (
    _BF16,
    _FEW,
    _FEWER_STEPS,
    _FILTER,
    _FIX_REAL,
    _GIVE_REAL,
    _HIGHER_HF_LAMBDA,
    _INSPECT_PAIRS,
    _INSPECT_SAMPLES,
    _LOWER_RANK,
    _MORE_EYES,
    _MORE_MEMORY,
    _MORE_PAIRS,
    _MORE_SAMPLING,
    _MORE_STEPS,
    _MORE_TARGETS,
    _OTHER_BASE,
    _WITH_BASE,
    _WITHHOLD,
    Advice,
    _less_memory,
)

Level = Literal["good", "look", "bad"]
Scores = Mapping[str, Any]

_SEVERITY: tuple[Level, ...] = ("bad", "look", "good")
_GOOD_FRACTION = 0.8
"""Fraction of the way from mispaired to training pairs from which agreement counts as good."""
_HALF = 0.5
_TINT = 3.0
"""Maximum chroma of a generated FA, grey levels."""
_SIMILARITY_MARGIN = 0.1
"""Excess over the MS-SSIM between real eyes that suggests low diversity."""
LOGGED_MEMORY = "on a GPU allocated by torch, on a CPU resident memory of the process"
"""Definition of the memory in a training log."""
_AGREEMENT = {"correlation": "consistency (vesselness correlation)", "dice": "vessel Dice", "cl_dice": "clDice"}
"""Agreement metrics and their names in the text."""


@dataclass(frozen=True)
class Finding:
    """One conclusion: its level, its subject, a sentence with the numbers, and advice (may be empty)."""

    level: Level
    about: str
    text: str
    advice: tuple[Advice, ...] = ()


def verdict(scores: Scores) -> list[Finding]:
    """Return the findings, sorted by severity and then by importance.

    The order of importance is agreement, copies, diversity, detail, colour, appearance. Advice that repeats or
    contradicts the advice of an earlier finding is dropped, so the advice forms one consistent list.
    """
    findings: list[Finding] = []
    if _has_generated(scores):
        for check in (_agreement, _copies, _diversity, _detail, _tint, _distance, _amount):
            findings += check(scores)
    findings += [*_real(scores), *_cost(scores)]
    return _consistent(sorted(findings, key=lambda finding: _SEVERITY.index(finding.level)))


def _consistent(findings: Sequence[Finding]) -> list[Finding]:
    """Drop advice that repeats or contradicts the advice of an earlier finding."""
    given: list[Advice] = []
    consistent = []
    for finding in findings:
        new = [advice for advice in finding.advice if advice not in given and not any(map(advice.contradicts, given))]
        given += new
        consistent.append(replace(finding, advice=tuple(new)))
    return consistent


def as_values(finding: Finding) -> dict[str, str]:
    """Return the finding as stored in scores.json."""
    return vars(finding) | {"advice": " ".join(advice.text for advice in finding.advice)}


def headline(scores: Scores, findings: Sequence[Finding]) -> str:
    """Summarise the verdict in one sentence, based on the most severe finding."""
    worst = min((finding.level for finding in findings), key=_SEVERITY.index)
    if not _has_generated(scores):
        return "No problems found in these pairs." if worst == "good" else "Check some of these pairs first."
    points = [finding.about for finding in findings if finding.level == worst]
    if worst == "look" and _few(scores):
        return f"Too few pairs for a verdict; check {_count(len(points), 'point')}."
    return {
        "bad": f"Do not train on these pairs as they are; problems: {', '.join(points)}.",
        "look": f"Usable after checking {_count(len(points), 'point')}.",
        "good": "As good as the real pairs in every metric.",
    }[worst]


def _has_generated(scores: Scores) -> bool:
    return "generated" in scores["sizes"]


def _mean(row: Scores, column: str) -> float | None:
    interval = row.get(column)
    return interval["mean"] if interval else None


def _enough(*columns: Scores | None) -> bool:
    """Return whether each column has enough pairs for a decision."""
    return all(column is not None and column["n"] >= _FEW for column in columns)


def _end(column: Scores, name: Literal["low", "high"]) -> float:
    """Return one end of a mean's 95 % interval, or the mean if there is no interval."""
    end = column.get(name)
    return float(column["mean"] if end is None else end)


# --- Agreement


@dataclass(frozen=True)
class _RelativeAgreement:
    """An agreement metric, scaled from mispaired pairs (0) to training pairs (1).

    upper: the same at the upper end of the generated pairs' interval. certain: whether enough pairs of each kind were
    measured to conclude from a fraction below one half that the halves do not match.
    """

    name: str
    text: str
    fraction: float
    upper: float
    certain: bool

    @property
    def level(self) -> Level:
        if self.fraction >= _GOOD_FRACTION:
            return "good"
        return "bad" if self.certain and self.upper < _HALF else "look"


def _relative_agreement(name: str, row: Scores) -> _RelativeAgreement | None:
    """Return None if the training pairs do not exceed mispaired ones, so that the metric is uninformative."""
    made, real, chance = (row.get(column) for column in ("generated", "train", "mispaired"))
    baseline = chance["mean"] if chance else 0.0  # no mispaired pairs exist if all real pairs show one eye
    assert made is not None
    assert real is not None
    if real["mean"] <= baseline:
        return None
    fraction, upper = ((value - baseline) / (real["mean"] - baseline) for value in (made["mean"], _end(made, "high")))
    text = f"{_AGREEMENT[name]} {made['mean']:.2f} in generated, {real['mean']:.2f} in training"
    if chance:
        text += f", {baseline + 0:.2f} in mispaired pairs ({fraction:.0%} of the range)"
    else:
        text += f" pairs ({fraction:.0%})"
    columns = (made, real, chance) if chance else (made, real)
    certain = _enough(*columns) and _end(real, "low") > (_end(chance, "high") if chance else 0.0)
    return _RelativeAgreement(_AGREEMENT[name], text, fraction, upper, certain)


def _agreement(scores: Scores) -> Iterator[Finding]:
    """Check whether the halves match, by the lowest agreement metric."""
    rows = {name: row for name, row in scores["consistency"].items() if name in _AGREEMENT and row.get("generated")}
    if not rows:
        return
    if not all(row.get("train") for row in rows.values()):
        made = ", ".join(f"{_AGREEMENT[name]} {row['generated']['mean']:.2f}" for name, row in rows.items())
        text = f"Vessel agreement of CF and FA in generated pairs: {made}. There are no training pairs to compare with."
        yield Finding("look", "agreement", text, (_GIVE_REAL,))
        return
    metrics = (metric for name, row in rows.items() if (metric := _relative_agreement(name, row)))
    ranked = sorted(metrics, key=lambda metric: metric.fraction)
    text = f"Vessel agreement of CF and FA: {'; '.join(metric.text for metric in ranked)}."
    failed = next((metric for metric in ranked if metric.level == "bad"), None)  # the lowest that is certain
    if failed:
        text += f" The halves do not match, according to {failed.name}."
        yield Finding("bad", "agreement", text, (_MORE_STEPS, _MORE_TARGETS, _INSPECT_SAMPLES))
    elif len(ranked) < len(rows):
        text = "At least one agreement metric is no higher in training pairs than in mispaired ones: no conclusion."
        yield Finding("look", "agreement", text, (_FIX_REAL,))
    else:
        yield _by_worst(ranked[0], text)


def _by_worst(worst: _RelativeAgreement, text: str) -> Finding:
    """Return the finding for the lowest metric, if no metric certainly fails."""
    if worst.level == "good":
        return Finding("good", "agreement", f"{text} The halves match; the lowest metric is {worst.name}.")
    if worst.fraction >= _HALF:
        text += f" Most vessels match, but not all; the lowest metric is {worst.name}."
        return Finding("look", "agreement", text, (_FILTER, _MORE_STEPS, _MORE_TARGETS))
    reason = (
        "the upper end of its interval is 50 % or more" if worst.certain else "there are too few pairs to be certain"
    )
    text += f" According to {worst.name} the halves do not match, but {reason}."
    return Finding("look", "agreement", text, (_INSPECT_SAMPLES, _MORE_STEPS, _MORE_TARGETS))


# --- Copies, diversity


def _copies(scores: Scores) -> Iterator[Finding]:
    search = scores["memorisation"]
    if search is None:
        text = "Generated pairs were not searched for copies: there are fewer than two training pairs."
        yield Finding("look", "copies", text, (_GIVE_REAL,))
        return
    copies, amount = len(search["copies"]), search["likeness"]["generated"]["n"]
    if (scores["training"] or {}).get("trained_on_real") is False:
        text = "--adapter was trained on other pairs than those in --real; copies of those were not searched for."
        yield Finding("look", "copies", text, (_GIVE_REAL,))
    if copies:
        limit = search["threshold"]
        text = f"{copies} of {amount} generated pairs are copies of training pairs (similarity {limit} or more)."
        if search.get("variations", 0) == amount:
            text += " This is expected, as all are variations of training pairs (--mode from_data): treat them as"
            yield Finding("look", "copies", f"{text} patient data.", (_WITHHOLD,))
        else:
            yield Finding("bad", "copies", text, (_WITHHOLD, _FEWER_STEPS, _LOWER_RANK, _MORE_EYES))
    else:
        highest, withheld = search["closest"][0]["likeness"], scores.get("withheld")
        text = f"None of {amount} generated pairs is a copy of a training pair (maximum similarity {highest:.2f})."
        if withheld:
            text += f" {_count(len(withheld), 'copy', 'copies')} had been generated too, and are now rejected."
        yield Finding("good", "copies", text)


def _diversity(scores: Scores) -> Iterator[Finding]:
    """Check the diversity of the generated eyes. It is bad only if the intervals of both means do not overlap."""
    for view, row in scores["diversity"].items():
        made, real = row.get("generated"), row.get("real")
        if not made or not real:
            continue
        about = f"diversity of the {view.upper()}"
        text = f"Mean similarity (MS-SSIM) of two {view.upper()}: {made['mean']:.2f} between generated pairs, "
        text += f"{real['mean']:.2f} between real eyes."
        if made["mean"] <= real["mean"] + _SIMILARITY_MARGIN:
            yield Finding("good", about, text)
        elif not _enough(made, real):
            few = "There are too few pairs to conclude low diversity: field of view and shading alone are similar."
            yield Finding("look", about, f"{text} {few}")
        elif _end(made, "low") > _end(real, "high"):
            yield Finding("bad", about, f"{text} Low diversity (possible mode collapse).", (_FEWER_STEPS, _MORE_EYES))
        else:
            yield Finding("look", about, f"{text} Diversity may be low; the intervals overlap.", (_MORE_EYES,))


# --- Detail, colour, appearance


def _detail(scores: Scores) -> Iterator[Finding]:
    """Check smoothness by the fraction of power in fine detail, and compare it with what the autoencoder preserves."""
    for view in ("cf", "fa"):
        row = scores["texture"][view]["fine_share"]
        made, real, decoded = (_mean(row, name) for name in ("generated", "train", "autoencoder"))
        if made is None or not real:
            continue
        about = f"detail of the {view.upper()}"
        text = f"Power of the {view.upper()} in fine detail: {made:.1%}; in training pairs {real:.1%}"
        text += f", and {decoded:.1%} after the autoencoder" if decoded else ""
        if made > real / _HALF:
            yield Finding("look", about, f"{text}. Noisier than the real views.", (_MORE_SAMPLING, _FEWER_STEPS))
        elif made >= _HALF * real:
            yield Finding("good", about, f"{text}.")
        elif decoded and decoded < _HALF * real and made >= _HALF * decoded:
            yield Finding("look", about, f"{text}. Too smooth, because of the autoencoder.", (_OTHER_BASE,))
        else:
            advice = (_MORE_STEPS, _HIGHER_HF_LAMBDA) if decoded else (_MORE_STEPS, _HIGHER_HF_LAMBDA, _WITH_BASE)
            yield Finding("look", about, f"{text}. Too smooth.", advice)


def _tint(scores: Scores) -> Iterator[Finding]:
    made = scores["colour"]["fa"]["generated"]["mean"]
    text = f"Generated FA had a chroma of {made:.1f} grey levels before conversion to greyscale."
    if made > _TINT:
        yield Finding("look", "colour in FA", f"{text} This suggests too little training.", (_MORE_STEPS,))
    else:
        yield Finding("good", "colour in FA", text)


def _distance(scores: Scores) -> Iterator[Finding]:
    distance = scores["distribution"]
    if distance is None:
        return
    text = (
        f"Squared MMD of colours, spectrum and vessels to the real pairs: {distance['mmd2']:.2f}; between random "
        f"halves of the real pairs (95th percentile): {distance['floor']:.2f}."
    )
    names = "; ".join(feature["name"] for feature in distance["furthest"][:3])
    if distance["mmd2"] <= 2 * distance["floor"]:
        yield Finding("good", "appearance", text)
    else:
        yield Finding("look", "appearance", f"{text} Largest differences: {names}.", (_MORE_STEPS, _INSPECT_PAIRS))


# --- Numbers of pairs, real pairs, cost


def _amounts(scores: Scores) -> tuple[int, int]:
    """Return the numbers of generated and of real pairs."""
    made = scores["sizes"]["generated"]
    return made, sum(scores["sizes"].values()) - made


def _few(scores: Scores) -> bool:
    return min(_amounts(scores)) < _FEW


def _amount(scores: Scores) -> Iterator[Finding]:
    if _few(scores):
        made, real = _amounts(scores)
        text = f"{made} generated and {real} real pairs are few: intervals are wide and distances unreliable."
        yield Finding("look", "number of pairs", text, (_MORE_PAIRS,))


def _real(scores: Scores) -> Iterator[Finding]:
    issues = scores["doubts"]
    if issues:
        pairs = len({issue["id"] for issue in issues})
        text = (
            f"{_count(pairs, 'real pair')} with possible problems; the first is {issues[0]['id']}: {issues[0]['text']}."
        )
        yield Finding("look", "real pairs", text, (_FIX_REAL,))
    else:
        yield Finding("good", "real pairs", "No problems found in the real pairs.")


def _cost(scores: Scores) -> Iterator[Finding]:
    """Report the cost of a training step, and settings that would make it faster or use less memory."""
    if scores["training"] is None:
        return
    cost, settings = scores["training"]["cost"], scores["training"]["settings"]
    strategy, batch = settings["memory"] or "", settings["batch_size"]
    if cost["seconds_per_step"] is not None:
        pairs = batch * settings["gradient_accumulation_steps"]
        faster: tuple[Advice, ...] = (_MORE_MEMORY,) if "gradient checkpointing" in strategy else ()
        faster += (_BF16,) if settings["precision"] == "fp32" else ()
        text = f"A step of {_count(pairs, 'pair')} took {cost['seconds_per_step']:.2f} s."
        yield Finding("good", "speed of training", text, faster)
    if cost["memory_gib"] is not None:
        preset = next((f"--memory {gib}" for gib in (16, 12, 8) if gib < cost["memory_gib"]), None)
        smaller: tuple[Advice, ...] = () if "weights in" in strategy or not preset else (_less_memory(preset),)
        smaller += (_less_memory(f"--batch_size 1 with --gradient_accumulation_steps {batch}"),) if batch > 1 else ()
        text = f"Peak memory in the training log: {cost['memory_gib']:.1f} GiB ({LOGGED_MEMORY})."
        yield Finding("good", "memory of training", text, smaller)


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"
