"""Judge the scores: one list of findings, one headline, and one list of advice that does not contradict itself."""

from collections.abc import Sequence
from dataclasses import replace

from retipair.evaluation.advice import Advice
from retipair.evaluation.checks import CHECKS, CHECKS_OF_GENERATED, Finding, count, has_few_pairs
from retipair.evaluation.scores import Conclusion, Level, Scores

_SEVERITY: tuple[Level, ...] = ("bad", "look", "good")


def add_verdict(scores: Scores) -> Scores:
    """Return the scores with headline, verdict and advice."""
    findings = verdict(scores)
    return replace(
        scores,
        headline=headline(scores, findings),
        verdict=tuple(conclusion(finding) for finding in findings),
        advice=tuple(advice.text for finding in findings for advice in finding.advice),
    )


def verdict(scores: Scores) -> list[Finding]:
    """Return the findings, sorted by severity and then by importance.

    The order of importance is agreement, copies, diversity, detail, colour, appearance. Advice that repeats or
    contradicts the advice of an earlier finding is dropped, so the advice forms one consistent list.
    """
    checks = (*CHECKS_OF_GENERATED, *CHECKS) if "generated" in scores.sizes else CHECKS
    findings = [finding for check in checks for finding in check(scores)]
    return _consistent(sorted(findings, key=lambda finding: _SEVERITY.index(finding.level)))


def conclusion(finding: Finding) -> Conclusion:
    """Return the finding as stored in the scores."""
    advice = " ".join(advice.text for advice in finding.advice)
    return Conclusion(finding.level, finding.about, finding.text, advice)


def headline(scores: Scores, findings: Sequence[Finding]) -> str:
    """Summarise the verdict in one sentence, based on the most severe finding."""
    worst = min((finding.level for finding in findings), key=_SEVERITY.index)
    if "generated" not in scores.sizes:
        return "No problems found in these pairs." if worst == "good" else "Check some of these pairs first."
    points = [finding.about for finding in findings if finding.level == worst]
    if worst == "look" and has_few_pairs(scores):
        return f"Too few pairs for a verdict; check {count(len(points), 'point')}."
    return {
        "bad": f"Do not train on these pairs as they are; problems: {', '.join(points)}.",
        "look": f"Usable after checking {count(len(points), 'point')}.",
        "good": "As good as the real pairs in every metric.",
    }[worst]


def _consistent(findings: Sequence[Finding]) -> list[Finding]:
    """Drop advice that repeats or contradicts the advice of an earlier finding."""
    given: list[Advice] = []
    consistent = []
    for finding in findings:
        new = [advice for advice in finding.advice if advice not in given and not any(map(advice.contradicts, given))]
        given += new
        consistent.append(replace(finding, advice=tuple(new)))
    return consistent
