"""Write the scores of `retipair utility` as utility.json, and as utility.md with what the intervals allow to say."""

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
"""With fewer eyes, a difference of the same sign in all of them has a probability above 5 % by chance (sign test)."""
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
    """Return, by measure, a sentence for each comparison: what its intervals allow to say, and what they do not."""

    def compare(arm: ArmName, other: ArmName, measure: str) -> str:
        differences = {level.name: _compare(summaries, arm, other, level.name, measure) for level in LEVELS}
        return sentence(arm, other, measure, differences, len(plan.eyes))

    return {measure: [compare(arm, other, measure) for arm, other in _made(summaries)] for measure in _HEADINGS}


def sentence(arm: ArmName, other: ArmName, measure: str, differences: Mapping[str, Interval], eyes: int) -> str:
    """Say what the differences of a measure between two arms, by level, allow to say, and what they do not."""
    first, second = ARMS[arm].text, ARMS[other].text
    parts = (f"{signed(one.mean)} [{signed(one.low)}, {signed(one.high)}] ({at})" for at, one in differences.items())
    figures = f"{measure} {', '.join(parts)}"
    better = [level for level, one in differences.items() if round(one.low, 2) > 0]
    worse = [level for level, one in differences.items() if round(one.high, 2) < 0]
    if not better and not worse:
        return f"No difference between {first} and {second} could be shown with {eyes} eyes: {figures}."
    if better and worse:
        return f"Mixed: {first} better than {second} ({better[0]}), and worse ({worse[0]}): {figures}."
    word, levels = ("better", better) if better else ("worse", worse)
    where = "" if len(levels) == len(differences) else f" under {levels[0]} warps only"
    limit = f" in these {eyes} eyes, which are too few to say it of others" if eyes < ENOUGH_EYES else ""
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
        f"A small descriptor was trained on different pairs ({config.variants} warped pairs, {config.steps} steps, "
        f"seeds: {config.seeds}), and tested on {len(plan.tested)} real pairs of {len(plan.eyes)} eyes, whose FA was "
        f"warped at each level (warps of a pair: {config.warps}). Means over eyes, with 95 % bootstrap intervals over "
        f"eyes.{spread}",
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
    """Return what a reader must know to judge the figures."""
    hard, extreme = (level.ranges for level in LEVELS)
    limits = [
        f"recall@1: the fraction of the landmarks whose nearest descriptor in the warped FA is within {TOLERANCE:g} px "
        "(at 512) of the true partner. AUC@20 and success: the mean error at the landmarks of the homography that "
        f"RANSAC ({RANSAC_PX:g} px) finds from mutual nearest neighbours of other keypoints, up to {SUCCESS_PX:g} px.",
        f"hard: rotation up to {hard.rotation[-1]:g} degrees, scale {hard.scale[0]:g} to {hard.scale[-1]:g}; extreme: "
        f"up to {extreme.rotation[-1]:g} degrees, {extreme.scale[0]:g} to {extreme.scale[-1]:g}, and the appearance of "
        "both views changed.",
        "recall@1 does not see that training pairs are a few px off, because it tolerates the scatter of landmarks.",
        "A small descriptor is not a registration network: what helps it need not help a larger one, and the reverse.",
    ]
    if len(plan.eyes) < ENOUGH_EYES:
        chance = 2 / 2 ** len(plan.eyes)
        limits.append(
            f"{len(plan.eyes)} eyes are few: that all of them differ in the same direction has a probability of "
            f"{chance:.3g} by chance, and bootstrap intervals over so few eyes are too narrow."
        )
    if plan.seen:
        limits.append(
            f"The adapter that made the pairs may have been trained on the tested eyes {', '.join(plan.seen)}: the "
            "arms with generated pairs may be too good on them. Test held-out eyes to avoid this."
        )
    elif plan.held_out:
        limits.append("Only the splits val and test were tested, which an adapter trained on this folder has not seen.")
    elif plan.config.generated:
        limits.append(
            "No adapter made the generated pairs according to their manifest. That their base has not seen the tested "
            "eyes is not checked."
        )
    return limits
