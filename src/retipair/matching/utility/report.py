"""Write the scores of `retipair utility` to utility.json, and to utility.md with the conclusions that they allow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from retipair.config.matching import ArmName
from retipair.matching.utility.arms import ARMS
from retipair.matching.utility.plan import UtilityPlan
from retipair.matching.utility.scores import LEVELS, RANSAC_PX, SUCCESS_PX, TOLERANCE, ImageScore
from retipair.matching.utility.statistics import MEASURES, ArmScore, Interval, difference, summarise
from retipair.runtime.atomic_io import write_json, write_text

PAGE_NAME, SCORES_NAME = "utility.md", "utility.json"
UTILITY_SCHEMA = "retipair.utility/1"
_HEADINGS = {
    "recall@1": "Is the right place found? (recall@1, the primary measure)",
    "AUC@20": "Is the pair registered? (AUC@20)",
}
"""The measures for which the report has a sentence for each comparison, with their headings."""
ENOUGH_EYES = 6
"""With fewer eyes, a difference has the same sign in all eyes by chance with a probability above 5 % (sign test)."""
_COMPARISONS: tuple[tuple[ArmName, ArmName], ...] = (
    ("generated", "untrained"),
    ("generated", "inverted"),
    ("generated", "mispaired"),
    ("generated", "shifted"),
    ("generated", "phantoms"),
    ("generated", "real"),
    ("generated_and_real", "real"),
    ("real", "untrained"),
    ("phantoms", "untrained"),
)
Summaries = dict[tuple[ArmName, str, str], ArmScore]
"""The summaries by arm, level and measure."""


def write_report(plan: UtilityPlan, scores: Mapping[ArmName, Sequence[Sequence[ImageScore]]], key: str) -> None:
    """Write OUT/utility.md, then OUT/utility.json.

    scores: the scores of each seed, by arm.
    key: a hash of the pairs and the settings.
    """
    summaries: Summaries = {
        (arm, level.name, name): summarise(seeds, level.name, measure)
        for arm, seeds in scores.items()
        for level in LEVELS
        for name, measure in MEASURES.items()
    }
    sentences = _sentences(plan, summaries)
    write_text(plan.config.out / PAGE_NAME, _page(plan, summaries, sentences))
    write_json(plan.config.out / SCORES_NAME, {**_to_json(plan, summaries, sentences), "key": key})


def _to_json(plan: UtilityPlan, summaries: Summaries, sentences: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """Return the content of utility.json."""
    arms: dict[str, dict[str, dict[str, object]]] = {}
    for (arm, level, measure), summary in summaries.items():
        arms.setdefault(arm, {}).setdefault(level, {})[measure] = asdict(summary)
    differences = [
        {"arm": arm, "than": other, "level": level.name, "measure": name, **asdict(_compare(summaries, *key))}
        for arm, other in _made(summaries)
        for level in LEVELS
        for name in MEASURES
        for key in [(arm, other, level.name, name)]
    ]
    names = ("seeds", "variants", "steps", "warps", "phantoms", "seed")
    return {
        "schema": UTILITY_SCHEMA,
        "eyes": plan.eyes,
        "pairs": [record.id for record in plan.tested],
        "held_out": plan.held_out,
        "eyes_that_the_generator_may_have_seen": list(plan.seen),
        "levels": [asdict(level) for level in LEVELS],
        "settings": {name: getattr(plan.config, name) for name in names},
        "arms": arms,
        "differences": differences,
        "sentences": sentences,
    }


def _compare(summaries: Summaries, arm: ArmName, other: ArmName, level: str, measure: str) -> Interval:
    return difference(summaries[arm, level, measure], summaries[other, level, measure])


def _made(summaries: Summaries) -> list[tuple[ArmName, ArmName]]:
    """Return the comparisons both of whose arms were tested."""
    arms = {arm for arm, _, _ in summaries}
    return [(arm, other) for arm, other in _COMPARISONS if arm in arms and other in arms]


def _sentences(plan: UtilityPlan, summaries: Summaries) -> dict[str, list[str]]:
    """Return, by measure, a sentence for each comparison that states what its intervals show."""

    def compare(arm: ArmName, other: ArmName, measure: str) -> str:
        differences = {level.name: _compare(summaries, arm, other, level.name, measure) for level in LEVELS}
        return sentence(arm, other, measure, differences, len(plan.eyes))

    return {measure: [compare(arm, other, measure) for arm, other in _made(summaries)] for measure in _HEADINGS}


def sentence(arm: ArmName, other: ArmName, measure: str, differences: Mapping[str, Interval], eyes: int) -> str:
    """Return a sentence that states which of two arms is better by a measure, if the intervals show it.

    differences: the difference between the arms and its interval, by level.
    eyes: the number of tested eyes.
    """
    first, second = ARMS[arm].text, ARMS[other].text
    parts = (f"{signed(one.mean)} [{signed(one.low)}, {signed(one.high)}] ({at})" for at, one in differences.items())
    figures = f"{measure} {', '.join(parts)}"
    better = [level for level, one in differences.items() if round(one.low, 2) > 0]
    worse = [level for level, one in differences.items() if round(one.high, 2) < 0]
    if not better and not worse:
        return f'No difference between "{first}" and "{second}" could be shown with {eyes} eyes: {figures}.'
    if better and worse:
        return f"Mixed: {first} better than {second} ({better[0]}), and worse ({worse[0]}): {figures}."
    word, levels = ("better", better) if better else ("worse", worse)
    where = "" if len(levels) == len(differences) else f" under {levels[0]} warps only"
    limit = f" in these {eyes} eyes, which are too few to conclude this for other eyes" if eyes < ENOUGH_EYES else ""
    return f"{first[0].upper()}{first[1:]}: {word} than {second}{where}{limit}: {figures}."


def signed(value: float) -> str:
    """Return a value with its sign and two decimals, without the leading zero."""
    return f"{value:+.2f}".replace("+0.", "+.").replace("-0.", "-.")


def _page(plan: UtilityPlan, summaries: Summaries, sentences: Mapping[str, Sequence[str]]) -> str:
    config = plan.config
    spreads = [summary.seed_sd for summary in summaries.values() if summary.seed_sd is not None]
    spread = f" The standard deviation over seeds is at most {max(spreads):.2f}." if spreads else ""
    lines = [
        "# Do the generated pairs help?",
        "",
        'For each row of the table except "no training", a small descriptor was trained on the pairs named in it '
        f"({config.variants} warped pairs, {config.steps} steps, seeds: {config.seeds}). It was tested on "
        f"{len(plan.tested)} real pairs of {len(plan.eyes)} eyes (here and below: patients, if they are known), whose "
        "FAs were warped at two levels, hard and extreme (warps of each pair at each level: "
        f"{config.warps}). The table has means over eyes, with 95 % bootstrap intervals over eyes.{spread}",
        "",
        *_table(summaries),
        "",
        *(line for measure, found in sentences.items() for line in _section(_HEADINGS[measure], found)),
        "## How to read the figures",
        "",
        *(f"{one}\n" for one in _limits(plan)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _section(heading: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {heading}", "", *(f"- {one}" for one in sentences), ""] if sentences else []


def _table(summaries: Summaries) -> list[str]:
    columns = [(level.name, measure) for level in LEVELS for measure in MEASURES]
    lines = [
        "| trained on | " + " | ".join(f"{level}: {measure}" for level, measure in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for arm in dict.fromkeys(arm for arm, _, _ in summaries):
        cells = [_cell(summaries[arm, level, measure].interval) for level, measure in columns]
        lines.append(f"| {ARMS[arm].text} | " + " | ".join(cells) + " |")
    return lines


def _cell(interval: Interval) -> str:
    low, mean, high = (f"{value:.2f}".removeprefix("0") for value in (interval.low, interval.mean, interval.high))
    return f"{mean} [{low}, {high}]"


def _limits(plan: UtilityPlan) -> list[str]:
    """Return the sentences that explain the figures and their limits."""
    hard, extreme = (level.ranges for level in LEVELS)
    limits = [
        f"recall@1: the fraction of the landmarks whose nearest descriptor in the warped FA is within {TOLERANCE:g} px "
        "(at 512 px) of the true partner. AUC@20 and success refer to the mean error, at the landmarks, of the "
        f"homography that RANSAC ({RANSAC_PX:g} px) finds from mutual nearest neighbours of the other keypoints. "
        f"AUC@20 is the mean of max(0, 1 - error / {SUCCESS_PX:g} px), which is lower than the AUC@20 of `register`, "
        "because that interpolates; success is the fraction of the warps "
        f"with an error below {SUCCESS_PX:g} px.",
        f"hard: rotation up to {hard.rotation[-1]:g} degrees, scale {hard.scale[0]:g} to {hard.scale[-1]:g}; extreme: "
        f"rotation up to {extreme.rotation[-1]:g} degrees, scale {extreme.scale[0]:g} to {extreme.scale[-1]:g}, and "
        "the appearance of both views changed.",
        "recall@1 cannot detect that training pairs are misaligned by a few px, because its tolerance covers the "
        "scatter of landmarks.",
        "A small descriptor is not a registration network: pairs that help one of them need not help the other.",
    ]
    if len(plan.eyes) < ENOUGH_EYES:
        chance = 2 / 2 ** len(plan.eyes)
        limits.append(
            f"{len(plan.eyes)} eyes are few: if two arms are equally good, all of these eyes still differ in one "
            f"direction with a probability of {chance:.3g}, and bootstrap intervals over so few eyes are too narrow."
        )
    if plan.seen:
        limits.append(
            f"The adapter that made the pairs may have been trained on the tested eyes {', '.join(plan.seen)}, so the "
            "scores of the arms with generated pairs may be too high on these eyes. Test held-out eyes to avoid this."
        )
    elif all(record.split != "train" for record in plan.tested):
        limits.append(
            "Only pairs of the splits val and test were tested. An adapter that was trained on the same prepared "
            "folder was not trained on them."
        )
    elif plan.config.generated and plan.adapters_known:
        limits.append(
            "According to their manifest, the generated pairs were made without an adapter. It is not checked whether "
            "their base was trained on the tested eyes."
        )
    elif plan.config.generated:
        limits.append(
            "The manifest of the generated pairs does not record for all of them whether they were made with an adapter"
            " (imported pairs). It is not checked whether their base or adapter was trained on the tested eyes."
        )
    return limits
