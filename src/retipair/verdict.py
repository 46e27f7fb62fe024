"""What the scores mean, in plain words: what is fine, what is not, and what to try next."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["good", "look", "bad"]
Scores = Mapping[str, Any]

_GRAVITY: tuple[Level, ...] = ("bad", "look", "good")
_FEW = 20
"""Pairs of a kind, below which intervals are wide and distances between sets say little."""
_MOST_OF = 0.8
"""A figure that reaches this share of the real pairs' is as good as theirs for most uses."""
_HALF = 0.5
_TINT = 3.0
"""Grey levels of colour in an FA."""
_MORE_ALIKE = 0.1
"""MS-SSIM above that of real pairs of different eyes."""


@dataclass(frozen=True)
class Finding:
    """One judgement: about what, in a sentence with its figures, and what to try ("" where nothing need be)."""

    level: Level
    about: str
    text: str
    advice: str


def verdict(scores: Scores) -> list[Finding]:
    """What there is to say of these scores: the gravest first, else as it matters to a registration network."""
    found: list[Finding] = []
    if _judges_generated(scores):
        for part in (_agreement, _copies, _detail, _tint, _distance, _diversity, _amount):
            found += part(scores)
    found += [*_real(scores), *_cost(scores)]
    return sorted(found, key=lambda finding: _GRAVITY.index(finding.level))


def headline(scores: Scores, found: Sequence[Finding]) -> str:
    """The whole verdict in a sentence."""
    worst = min((finding.level for finding in found), key=_GRAVITY.index)
    if not _judges_generated(scores):
        return "Nothing speaks against these pairs." if worst == "good" else "Look at some of these pairs first."
    amount = sum(finding.level == "look" for finding in found)
    return {
        "bad": "Do not train on these pairs as they are.",
        "look": f"Usable, after a look at {_count(amount, 'point')}.",
        "good": "As good as the real pairs in all that is measured here.",
    }[worst]


def _judges_generated(scores: Scores) -> bool:
    return "generated" in scores["sizes"]


def _mean(row: Scores, column: str) -> float | None:
    found = row.get(column)
    return found["mean"] if found else None


def _agreement(scores: Scores) -> Iterator[Finding]:
    """Whether the halves match: the one thing that everything else hangs on."""
    row = scores["consistency"]["correlation"]
    made, real, chance = (_mean(row, name) for name in ("generated", "train", "mispaired"))
    if made is None:
        return
    if real is None:
        text = (
            f"The vessels of CF and FA correlate by {made:.2f} in generated pairs; there are no training pairs beside."
        )
        yield Finding("look", "agreement", text, "Give --real the folder that was trained on.")
        return
    least = chance or 0.0  # where all real pairs are of one eye none can be mispaired
    share = (made - least) / (real - least) if real > least else 0.0
    text = f"The vessels of CF and FA correlate by {made:.2f} in generated pairs, by {real:.2f} in the training pairs"
    text += "." if chance is None else f" and by {round(chance, 2) + 0:.2f} in mispaired ones."
    if share >= _MOST_OF:
        yield Finding("good", "agreement", f"{text} The halves match.", "")
    elif share >= _HALF:
        advice = "Keep the better pairs: generate with --min_consistency; or train longer, or with --lora_targets all."
        yield Finding("look", "agreement", f"{text} Most vessels match, not all.", advice)
    else:
        advice = "Do not train on these. Train longer, with --lora_targets all, and look at the samples of each step."
        yield Finding("bad", "agreement", f"{text} The halves do not match.", advice)


def _copies(scores: Scores) -> Iterator[Finding]:
    found = scores["memorisation"]
    if found is None:
        text = "Generated pairs were not compared with training pairs: there are fewer than two of these."
        yield Finding("look", "copies", text, "Give --real the folder that was trained on.")
        return
    copies, amount = len(found["copies"]), found["likeness"]["generated"]["n"]
    if copies:
        advice = "Leave them out (--withhold_copies lists them); fewer steps, a lower --unet_lora_rank, more eyes."
        limit = found["threshold"]
        text = f"{copies} of {amount} generated pairs are copies of training pairs (likeness {limit} or more)."
        yield Finding("bad", "copies", text, advice)
    else:
        most = found["closest"][0]["likeness"]
        yield Finding(
            "good",
            "copies",
            f"None of {amount} generated pairs copies a training pair (likeness {most:.2f} at most).",
            "",
        )


def _detail(scores: Scores) -> Iterator[Finding]:
    """Smoothness, by the share of power in fine detail, beside what the autoencoder leaves of it."""
    for view in ("cf", "fa"):
        row = scores["texture"][view]["fine_share"]
        made, real, through = (_mean(row, name) for name in ("generated", "train", "autoencoder"))
        if made is None or not real:
            continue
        text = f"Fine detail has {made:.1%} of the {view.upper()}'s power, {real:.1%} in the training pairs"
        if through:
            text += f", {through:.1%} in these passed through the autoencoder"
        if made >= _HALF * real:
            noisy = made > real / _HALF
            advice = "Noisier than the real views: more --steps when generating, or fewer in training." if noisy else ""
            yield Finding("look" if noisy else "good", f"detail of the {view.upper()}", f"{text}.", advice)
        elif through and through < _HALF * real and made >= _HALF * through:
            advice = "It is the base's autoencoder that smooths: no training changes that, another base or --size may."
            yield Finding("look", f"detail of the {view.upper()}", f"{text}: too smooth.", advice)
        else:
            advice = "Train longer; a higher --hf_lambda"
            advice += "." if through else "; evaluate with --base to see what its autoencoder allows."
            yield Finding("look", f"detail of the {view.upper()}", f"{text}: too smooth.", advice)


def _tint(scores: Scores) -> Iterator[Finding]:
    made = scores["colour"]["fa"]["generated"]["mean"]
    text = f"Generated FA had {made:.1f} grey levels of colour before they were written grey."
    if made > _TINT:
        yield Finding("look", "colour in FA", text, "A sign of too little training: train longer.")
    else:
        yield Finding("good", "colour in FA", text, "")


def _distance(scores: Scores) -> Iterator[Finding]:
    found = scores["distribution"]
    if found is None:
        return
    text = (
        f"Colours, spectrum and vessels lie {found['mmd2']:.2f} from the real pairs' (squared MMD); random halves "
        f"of the real pairs lie up to {found['floor']:.2f} from each other."
    )
    names = ", ".join(one["feature"] for one in found["furthest"][:3])
    if found["mmd2"] <= 2 * found["floor"]:
        yield Finding("good", "the look", text, "")
    else:
        yield Finding("look", "the look", f"{text} Furthest: {names}.", "Train longer; compare the pairs below by eye.")


def _diversity(scores: Scores) -> Iterator[Finding]:
    for view, row in scores["diversity"].items():
        made, real = (_mean(row, name) for name in ("generated", "real"))
        if made is None or real is None:
            continue
        text = (
            f"Two generated {view.upper()} have a similarity of {made:.2f} (MS-SSIM), two real eyes one of {real:.2f}."
        )
        if made > real + _MORE_ALIKE:
            yield Finding(
                "bad", f"diversity of the {view.upper()}", text, "The model draws few eyes: fewer steps, more eyes."
            )
        else:
            yield Finding("good", f"diversity of the {view.upper()}", text, "")


def _cost(scores: Scores) -> Iterator[Finding]:
    """What a step of training took, and which settings of this run would make it faster or smaller."""
    if scores["training"] is None:
        return
    cost, settings = scores["training"]["cost"], scores["training"]["settings"]
    way, batch = settings["memory"] or "", settings["batch_size"]
    if cost["seconds_per_step"] is not None:
        pairs = batch * settings["gradient_accumulation_steps"]
        saved = "gradient checkpointing" in way
        faster = ["save less memory, if there is enough (--memory 24: a third faster)"] if saved else []
        faster += ["--precision bf16 on a GPU that has it"] if settings["precision"] == "fp32" else []
        text = f"A step of {_count(pairs, 'pair')} took {cost['seconds_per_step']:.2f} s."
        yield Finding("good", "speed of training", text, _tips("For faster steps", faster))
    if cost["memory_gib"] is not None:
        preset = next((f"--memory {gib}" for gib in (16, 12, 8) if gib < cost["memory_gib"]), None)
        smaller = [] if "weights in" in way or not preset else [preset]
        smaller += [f"--batch_size 1 with --gradient_accumulation_steps {batch}"] if batch > 1 else []
        text = f"Training used {cost['memory_gib']:.1f} GiB at most."
        yield Finding("good", "memory of training", text, _tips("For less", smaller))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _tips(aim: str, tips: Sequence[str]) -> str:
    return f"{aim}: {'; '.join(tips)}." if tips else ""


def _amount(scores: Scores) -> Iterator[Finding]:
    made = scores["sizes"]["generated"]
    real = sum(scores["sizes"].values()) - made
    if min(made, real) < _FEW:
        text = f"{made} generated and {real} real pairs are few: intervals are wide, and distances say little."
        yield Finding("look", "number of pairs", text, f"Judge {_FEW} of each at least; 100 are better.")


def _real(scores: Scores) -> Iterator[Finding]:
    doubts = scores["doubts"]
    if doubts:
        pairs = len({doubt["id"] for doubt in doubts})
        text = f"{pairs} real pairs are in doubt, {doubts[0]['id']} first: {doubts[0]['text']}."
        yield Finding("look", "real pairs", text, "Look at those listed; mend or remove them and prepare again.")
    else:
        yield Finding("good", "real pairs", "Nothing speaks against the real pairs.", "")
