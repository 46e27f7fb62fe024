"""What the scores mean, in plain words: what is fine, what is not, and what to try next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from retipair.evaluation.advice import (
    _BF16,
    _BY_EYE,
    _FEW,
    _GIVE_REAL,
    _KEEP_BETTER,
    _LONGER,
    _LOOK_AT_SAMPLES,
    _LOWER_RANK,
    _MEND,
    _MORE_EYES,
    _MORE_MEMORY,
    _MORE_PAIRS,
    _MORE_SAMPLING,
    _MORE_TARGETS,
    _OTHER_BASE,
    _SHARPER,
    _SHORTER,
    _WITH_BASE,
    _WITHHOLD,
    Advice,
    _less_memory,
)

Level = Literal["good", "look", "bad"]
Scores = Mapping[str, Any]

_GRAVITY: tuple[Level, ...] = ("bad", "look", "good")
_MOST_OF = 0.8
"""A figure that reaches this share of the real pairs' is as good as theirs for most uses."""
_HALF = 0.5
_TINT = 3.0
"""Grey levels of colour in an FA."""
_MORE_ALIKE = 0.1
"""MS-SSIM above that of real pairs of different eyes."""
LOGGED_MEMORY = "on a GPU allocated by torch, on a CPU resident memory of the process"
"""What the memory in a training log counts."""
_AGREEMENT = {"correlation": "consistency (vesselness correlation)", "dice": "vessel Dice", "cl_dice": "clDice"}
"""The figures of agreement, each by the name that a sentence gives it."""


@dataclass(frozen=True)
class Finding:
    """One judgement: about what, in a sentence with its figures, and what to try (() where nothing need be)."""

    level: Level
    about: str
    text: str
    advice: tuple[Advice, ...] = ()


def verdict(scores: Scores) -> list[Finding]:
    """Judge the scores: the gravest finding first, findings of one gravity in order of weight.

    Agreement weighs most, then copies, diversity, detail, colour and the look. Advice that repeats or contradicts that
    of a finding before it is left out, so that all advice in this order is one list that can be followed.
    """
    found: list[Finding] = []
    if _judges_generated(scores):
        for part in (_agreement, _copies, _diversity, _detail, _tint, _distance, _amount):
            found += part(scores)
    found += [*_real(scores), *_cost(scores)]
    return _consistent(sorted(found, key=lambda finding: _GRAVITY.index(finding.level)))


def _consistent(found: Sequence[Finding]) -> list[Finding]:
    given: list[Advice] = []
    kept = []
    for finding in found:
        new = [one for one in finding.advice if one not in given and not any(map(one.contradicts, given))]
        given += new
        kept.append(replace(finding, advice=tuple(new)))
    return kept


def as_values(finding: Finding) -> dict[str, str]:
    """What scores.json says of a finding."""
    return vars(finding) | {"advice": " ".join(one.text for one in finding.advice)}


def headline(scores: Scores, found: Sequence[Finding]) -> str:
    """Sum the verdict up in a sentence, which follows the gravest finding."""
    worst = min((finding.level for finding in found), key=_GRAVITY.index)
    if not _judges_generated(scores):
        return "Nothing speaks against these pairs." if worst == "good" else "Look at some of these pairs first."
    points = [finding.about for finding in found if finding.level == worst]
    if worst == "look" and _few(scores):
        return f"Too few pairs for a verdict; look at {_count(len(points), 'point')}."
    return {
        "bad": f"Do not train on these pairs as they are, for their {' and '.join(points)}.",
        "look": f"Usable, after a look at {_count(len(points), 'point')}.",
        "good": "As good as the real pairs in all that is measured here.",
    }[worst]


def _judges_generated(scores: Scores) -> bool:
    return "generated" in scores["sizes"]


def _mean(row: Scores, column: str) -> float | None:
    found = row.get(column)
    return found["mean"] if found else None


def _enough(*columns: Scores | None) -> bool:
    """Whether each column is the mean of enough pairs to decide on."""
    return all(column is not None and column["n"] >= _FEW for column in columns)


def _end(column: Scores, name: Literal["low", "high"]) -> float:
    """One end of a mean's 95 % interval; the mean itself where there is no interval."""
    end = column.get(name)
    return float(column["mean"] if end is None else end)


# --- Agreement


@dataclass(frozen=True)
class _Share:
    """How far a figure of agreement is on the way from mispaired pairs (0) to the training pairs (1).

    most: the same at the upper end of the generated pairs' interval. certain: whether enough pairs of each kind were
    measured for a figure below half way to mean that the halves do not match.
    """

    name: str
    text: str
    share: float
    most: float
    certain: bool

    @property
    def level(self) -> Level:
        if self.share >= _MOST_OF:
            return "good"
        return "bad" if self.certain and self.most < _HALF else "look"


def _share(name: str, row: Scores) -> _Share | None:
    """None where the training pairs do not reach more than mispaired ones: nothing can be judged by that figure."""
    made, real, chance = (row.get(column) for column in ("generated", "train", "mispaired"))
    least = chance["mean"] if chance else 0.0  # where all real pairs are of one eye none can be mispaired
    assert made is not None
    assert real is not None
    if real["mean"] <= least:
        return None
    share, most = ((value - least) / (real["mean"] - least) for value in (made["mean"], _end(made, "high")))
    text = f"{_AGREEMENT[name]} {made['mean']:.2f} in generated, {real['mean']:.2f} in training"
    text += f", {least + 0:.2f} in mispaired pairs ({share:.0%} of the way)" if chance else f" pairs ({share:.0%})"
    parts = (made, real, chance) if chance else (made, real)
    certain = _enough(*parts) and _end(real, "low") > (_end(chance, "high") if chance else 0.0)
    return _Share(_AGREEMENT[name], text, share, most, certain)


def _agreement(scores: Scores) -> Iterator[Finding]:
    """Whether the halves match, by the worst figure: the one thing that everything else hangs on."""
    rows = {name: row for name, row in scores["consistency"].items() if name in _AGREEMENT and row.get("generated")}
    if not rows:
        return
    if not all(row.get("train") for row in rows.values()):
        made = ", ".join(f"{_AGREEMENT[name]} {row['generated']['mean']:.2f}" for name, row in rows.items())
        text = f"The vessels of CF and FA agree by {made} in generated pairs; there are no training pairs beside."
        yield Finding("look", "agreement", text, (_GIVE_REAL,))
        return
    shares = sorted((share for name, row in rows.items() if (share := _share(name, row))), key=lambda one: one.share)
    text = f"The vessels of CF and FA: {'; '.join(one.text for one in shares)}."
    failed = next((one for one in shares if one.level == "bad"), None)  # the lowest of which that is certain
    if failed:
        text += f" The halves do not match, by {failed.name}."
        yield Finding("bad", "agreement", text, (_LONGER, _MORE_TARGETS, _LOOK_AT_SAMPLES))
    elif len(shares) < len(rows):
        text = (
            "By a figure of agreement the training pairs are no better than mispaired ones, so nothing can be judged."
        )
        yield Finding("look", "agreement", text, (_MEND,))
    else:
        yield _by_worst(shares[0], text)


def _by_worst(worst: _Share, text: str) -> Finding:
    """The finding of the lowest figure, where none certainly fails."""
    if worst.level == "good":
        return Finding("good", "agreement", f"{text} The halves match; {worst.name} is lowest.")
    if worst.share >= _HALF:
        text += f" Most vessels match, not all: {worst.name} is lowest."
        return Finding("look", "agreement", text, (_KEEP_BETTER, _LONGER, _MORE_TARGETS))
    reason = "its interval reaches further" if worst.certain else "there are too few pairs to be sure"
    text += f" By {worst.name} the halves do not match, but {reason}."
    return Finding("look", "agreement", text, (_LOOK_AT_SAMPLES, _LONGER, _MORE_TARGETS))


# --- Copies, diversity


def _copies(scores: Scores) -> Iterator[Finding]:
    found = scores["memorisation"]
    if found is None:
        text = "Generated pairs were not compared with training pairs: there are fewer than two of these."
        yield Finding("look", "copies", text, (_GIVE_REAL,))
        return
    copies, amount = len(found["copies"]), found["likeness"]["generated"]["n"]
    if (scores["training"] or {}).get("trained_on_real") is False:
        text = "The training of --adapter was on other pairs than --real has: copies of those were not looked for."
        yield Finding("look", "copies", text, (_GIVE_REAL,))
    if copies:
        limit = found["threshold"]
        text = f"{copies} of {amount} generated pairs are copies of training pairs (likeness {limit} or more)."
        if found.get("variations", 0) == amount:
            text += " All were varied from training pairs (--mode from_data), so that this is expected: treat them as"
            yield Finding("look", "copies", f"{text} patient data.", (_WITHHOLD,))
        else:
            yield Finding("bad", "copies", text, (_WITHHOLD, _SHORTER, _LOWER_RANK, _MORE_EYES))
    else:
        most, withheld = found["closest"][0]["likeness"], scores.get("withheld")
        text = f"None of {amount} generated pairs copies a training pair (likeness {most:.2f} at most)."
        if withheld:
            text += f" {_count(len(withheld), 'copy', 'copies')} had been drawn beside them, and are rejected now."
        yield Finding("good", "copies", text)


def _diversity(scores: Scores) -> Iterator[Finding]:
    """Whether the model draws many eyes. The intervals of both means must lie apart for that to be denied."""
    for view, row in scores["diversity"].items():
        made, real = row.get("generated"), row.get("real")
        if not made or not real:
            continue
        about = f"diversity of the {view.upper()}"
        text = f"Two generated {view.upper()} have a similarity of {made['mean']:.2f} (MS-SSIM), two real eyes one of "
        text += f"{real['mean']:.2f}."
        if made["mean"] <= real["mean"] + _MORE_ALIKE:
            yield Finding("good", about, text)
        elif not _enough(made, real):
            few = "These are too few pairs to say that the model draws few eyes: field and shading alone are alike."
            yield Finding("look", about, f"{text} {few}")
        elif _end(made, "low") > _end(real, "high"):
            yield Finding("bad", about, f"{text} The model draws few eyes.", (_SHORTER, _MORE_EYES))
        else:
            yield Finding("look", about, f"{text} The intervals overlap: the model may draw few eyes.", (_MORE_EYES,))


# --- Detail, colour, the look


def _detail(scores: Scores) -> Iterator[Finding]:
    """Smoothness, by the share of power in fine detail, beside what the autoencoder leaves of it."""
    for view in ("cf", "fa"):
        row = scores["texture"][view]["fine_share"]
        made, real, through = (_mean(row, name) for name in ("generated", "train", "autoencoder"))
        if made is None or not real:
            continue
        about = f"detail of the {view.upper()}"
        text = f"Fine detail has {made:.1%} of the {view.upper()}'s power, {real:.1%} in the training pairs"
        text += f", {through:.1%} in these passed through the autoencoder" if through else ""
        if made > real / _HALF:
            yield Finding("look", about, f"{text}: noisier than the real views.", (_MORE_SAMPLING, _SHORTER))
        elif made >= _HALF * real:
            yield Finding("good", about, f"{text}.")
        elif through and through < _HALF * real and made >= _HALF * through:
            yield Finding("look", about, f"{text}: too smooth, as the autoencoder leaves it.", (_OTHER_BASE,))
        else:
            advice = (_LONGER, _SHARPER) if through else (_LONGER, _SHARPER, _WITH_BASE)
            yield Finding("look", about, f"{text}: too smooth.", advice)


def _tint(scores: Scores) -> Iterator[Finding]:
    made = scores["colour"]["fa"]["generated"]["mean"]
    text = f"Generated FA had {made:.1f} grey levels of colour before they were written grey."
    if made > _TINT:
        yield Finding("look", "colour in FA", f"{text} That is a sign of too little training.", (_LONGER,))
    else:
        yield Finding("good", "colour in FA", text)


def _distance(scores: Scores) -> Iterator[Finding]:
    found = scores["distribution"]
    if found is None:
        return
    text = (
        f"Colours, spectrum and vessels lie {found['mmd2']:.2f} from the real pairs' (squared MMD); random halves "
        f"of the real pairs lie up to {found['floor']:.2f} from each other."
    )
    names = "; ".join(one["name"] for one in found["furthest"][:3])
    if found["mmd2"] <= 2 * found["floor"]:
        yield Finding("good", "the look", text)
    else:
        yield Finding("look", "the look", f"{text} Furthest: {names}.", (_LONGER, _BY_EYE))


# --- Numbers of pairs, real pairs, cost


def _amounts(scores: Scores) -> tuple[int, int]:
    """How many pairs are generated, how many real."""
    made = scores["sizes"]["generated"]
    return made, sum(scores["sizes"].values()) - made


def _few(scores: Scores) -> bool:
    return min(_amounts(scores)) < _FEW


def _amount(scores: Scores) -> Iterator[Finding]:
    if _few(scores):
        made, real = _amounts(scores)
        text = f"{made} generated and {real} real pairs are few: intervals are wide, and distances say little."
        yield Finding("look", "number of pairs", text, (_MORE_PAIRS,))


def _real(scores: Scores) -> Iterator[Finding]:
    doubts = scores["doubts"]
    if doubts:
        pairs = len({doubt["id"] for doubt in doubts})
        text = f"{_count(pairs, 'real pair')} in doubt, {doubts[0]['id']} first: {doubts[0]['text']}."
        yield Finding("look", "real pairs", text, (_MEND,))
    else:
        yield Finding("good", "real pairs", "Nothing speaks against the real pairs.")


def _cost(scores: Scores) -> Iterator[Finding]:
    """What a step of training took, and which settings of this run would make it faster or smaller."""
    if scores["training"] is None:
        return
    cost, settings = scores["training"]["cost"], scores["training"]["settings"]
    way, batch = settings["memory"] or "", settings["batch_size"]
    if cost["seconds_per_step"] is not None:
        pairs = batch * settings["gradient_accumulation_steps"]
        faster: tuple[Advice, ...] = (_MORE_MEMORY,) if "gradient checkpointing" in way else ()
        faster += (_BF16,) if settings["precision"] == "fp32" else ()
        text = f"A step of {_count(pairs, 'pair')} took {cost['seconds_per_step']:.2f} s."
        yield Finding("good", "speed of training", text, faster)
    if cost["memory_gib"] is not None:
        preset = next((f"--memory {gib}" for gib in (16, 12, 8) if gib < cost["memory_gib"]), None)
        smaller: tuple[Advice, ...] = () if "weights in" in way or not preset else (_less_memory(preset),)
        smaller += (_less_memory(f"--batch_size 1 with --gradient_accumulation_steps {batch}"),) if batch > 1 else ()
        text = f"The log of the training shows {cost['memory_gib']:.1f} GiB at most ({LOGGED_MEMORY})."
        yield Finding("good", "memory of training", text, smaller)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"
