"""Derive a verdict from the scores: a list of findings, a headline, and a list of consistent advice."""

from collections.abc import Sequence
from dataclasses import replace

from retipair.evaluation.advice import Advice
from retipair.evaluation.checks import CHECKS, CHECKS_WITHOUT_GENERATED, Finding, count, has_few_pairs
from retipair.evaluation.scores import Conclusion, Level, Scores

_SEVERITY: tuple[Level, ...] = ("bad", "look", "good")


def add_verdict(scores: Scores) -> Scores:
    """Return a copy of the scores with headline, verdict and advice filled in."""
    findings = verdict(scores)
    return replace(
        scores,
        headline=headline(scores, findings),
        verdict=tuple(conclusion(finding) for finding in findings),
        advice=tuple(advice.text for finding in findings for advice in finding.advice),
    )


def verdict(scores: Scores) -> list[Finding]:
    """Return the findings of all checks, sorted by severity; findings of equal severity are in the order of the checks.

    Advice that repeats or contradicts the advice of an earlier finding is dropped.
    """
    checks = CHECKS if "generated" in scores.sizes else CHECKS_WITHOUT_GENERATED
    findings = [finding for check in checks for finding in check(scores)]
    return _consistent(sorted(findings, key=lambda finding: _SEVERITY.index(finding.level)))


def conclusion(finding: Finding) -> Conclusion:
    """Convert a finding to its form in scores.json."""
    advice = " ".join(advice.text for advice in finding.advice)
    return Conclusion(finding.level, finding.about, finding.text, advice)


def headline(scores: Scores, findings: Sequence[Finding]) -> str:
    """Summarise the verdict in one sentence, based on the most severe finding."""
    worst = min((finding.level for finding in findings), key=_SEVERITY.index)
    if "generated" not in scores.sizes:
        return (
            "No problems found in these pairs." if worst == "good" else "Possible problems in these pairs: check them."
        )
    points = [finding.about for finding in findings if finding.level == worst]
    if worst == "look" and has_few_pairs(scores):
        return f"Too few pairs for a verdict; check {count(len(points), 'point')}."
    return {
        "bad": f"Do not train on these pairs as they are; problems: {', '.join(points)}.",
        "look": f"Usable after checking {count(len(points), 'point')}.",
        "good": "No problems found: every metric is within its limits.",
    }[worst]


def _consistent(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings without advice that repeats or contradicts the advice of an earlier finding."""
    given: list[Advice] = []
    consistent = []
    for finding in findings:
        new = [advice for advice in finding.advice if advice not in given and not any(map(advice.contradicts, given))]
        given += new
        consistent.append(replace(finding, advice=tuple(new)))
    return consistent
