"""Check the scores of an evaluation: each check yields findings on one subject.

Subjects are copies, diversity, fine detail, colour, distance, number of pairs, errors in real pairs, cost of training;
agreement and drawn views are checked in modules of their own.
"""

from collections.abc import Iterator

from retipair.evaluation import advice
from retipair.evaluation.advice import Advice
from retipair.evaluation.agreement import check_agreement
from retipair.evaluation.drawn_checks import check_drawn_views
from retipair.evaluation.findings import Finding, count, has_enough_pairs
from retipair.evaluation.scores import Memorisation, Scores

_MIN_DETAIL = 0.5
"""Minimum ratio of the mean `Texture.fine_share` of generated pairs to that of training pairs.

Below this ratio, generated pairs are too smooth; above its inverse, they are too noisy.
"""
_MAX_CHROMA = 3.0
"""Maximum mean chroma of the generated FA before conversion to greyscale, in grey levels."""
_SIMILARITY_MARGIN = 0.1
"""Maximum amount by which the mean MS-SSIM of different generated eyes may exceed that of different real eyes."""
LOGGED_MEMORY = (
    "on a CUDA GPU: allocated by torch; on an Apple GPU: allocated by Metal; on a CPU: resident memory of the process"
)
"""Text for the report: the kind of memory that a training log contains."""


def has_few_pairs(scores: Scores) -> bool:
    """Return whether there are too few generated or real pairs for a verdict."""
    return min(scores.amounts) < advice.FEW


# --- Copies, diversity


def _check_copies(scores: Scores) -> Iterator[Finding]:
    search = scores.memorisation
    if search is None:
        text = "Generated pairs were not searched for copies: there are fewer than two training pairs."
        yield Finding("look", "copies", text, (advice.GIVE_REAL,))
        return
    if scores.training and scores.training.trained_on_real is False:
        text = "The adapter was trained on a set of pairs other than --real;"
        text += " copies of pairs that are not in --real are not found."
        yield Finding("look", "copies", text, (advice.GIVE_REAL,))
    yield _copies_found(search) if search.copies else _no_copies(search, len(scores.withheld))


def _copies_found(search: Memorisation) -> Finding:
    copies, amount = len(search.copies), _number_searched(search)
    text = f"Copies of training pairs (similarity {search.threshold} or more): {copies} of {amount} generated pairs."
    if search.variations == amount:
        text += " This is expected, because all generated pairs are variations of training pairs (--mode from_data):"
        return Finding("look", "copies", f"{text} treat them as patient data.", (advice.WITHHOLD,))
    if search.given:
        others = count(search.given, "other pair is", "other pairs are")
        text += f" {others} as similar, which is expected, because the given view belongs to a training pair."
    return Finding("bad", "copies", text, (advice.WITHHOLD, advice.FEWER_STEPS, advice.LOWER_RANK, advice.MORE_EYES))


def _no_copies(search: Memorisation, withheld: int) -> Finding:
    amount, highest = _number_searched(search), search.closest[0].similarity
    if search.given:
        text = f"Similar to a training pair (similarity {search.threshold} or more):"
        text += f" {search.given} of {amount} generated pairs. This is expected, because the given view of such a pair"
        text += " belongs to that training pair: treat such pairs as patient data."
        text += " No other pair is a copy." if search.given < amount else ""
    else:
        text = f"None of {amount} generated pairs is a copy of a training pair (maximum similarity {highest:.2f})."
    if withheld:
        text += f" {count(withheld, 'copy was', 'copies were')} found and rejected before the scores were computed."
    return Finding("look" if search.given else "good", "copies", text)


def _number_searched(search: Memorisation) -> int:
    """Return the number of generated pairs that were searched for copies."""
    similarity = search.similarity["generated"]
    assert similarity is not None
    return similarity.n


def _check_diversity(scores: Scores) -> Iterator[Finding]:
    """Check whether different generated eyes are more similar to each other than different real eyes are.

    The finding is bad only if the 95 % intervals of the two mean MS-SSIM do not overlap.
    """
    for view, row in scores.diversity.items():
        generated, real = row.get("generated"), row.get("real")
        if not generated or not real:
            continue
        about = f"diversity of the {view.upper()}"
        text = f"Mean MS-SSIM between the {view.upper()} of different eyes: {generated.mean:.2f} in generated pairs, "
        text += f"{real.mean:.2f} in real pairs."
        if generated.mean <= real.mean + _SIMILARITY_MARGIN:
            yield Finding("good", about, text)
        elif not has_enough_pairs(generated, real):
            text += " There are too few pairs to conclude that diversity is low."
            text += " Field of view and shading alone make different eyes similar."
            yield Finding("look", about, text)
        elif generated.lower > real.upper:
            text += " Low diversity (possible mode collapse)."
            yield Finding("bad", about, text, (advice.FEWER_STEPS, advice.MORE_EYES))
        else:
            yield Finding("look", about, f"{text} Diversity may be low; the intervals overlap.", (advice.MORE_EYES,))


# --- Detail, colour, distance


def _check_detail(scores: Scores) -> Iterator[Finding]:
    """Check whether generated views are too smooth or too noisy, by their mean fraction of fine detail.

    If they are too smooth, they are compared with real views that the autoencoder has encoded and decoded. This shows
    whether the autoencoder is the cause.
    """
    for view, texture in scores.texture.items():
        means = (texture.fine_share.get(name) for name in ("generated", "train", "autoencoder"))
        generated, real, decoded = (mean.mean if mean else None for mean in means)
        if generated is None or not real:
            continue
        about = f"detail of the {view.upper()}"
        text = f"Fraction of fine detail in the {view.upper()}: {100 * generated:.1f} % in generated pairs, "
        text += f"{100 * real:.1f} % in training pairs"
        text += f", {100 * decoded:.1f} % in training pairs after the autoencoder" if decoded else ""
        if generated > real / _MIN_DETAIL:
            text += ". Noisier than the real views."
            yield Finding("look", about, text, (advice.MORE_SAMPLING, advice.FEWER_STEPS))
        elif generated >= _MIN_DETAIL * real:
            yield Finding("good", about, f"{text}.")
        elif decoded and decoded < _MIN_DETAIL * real and generated >= _MIN_DETAIL * decoded:
            yield Finding("look", about, f"{text}. Too smooth, because of the autoencoder.", (advice.OTHER_BASE,))
        else:
            sharper = (advice.MORE_STEPS, advice.HIGHER_HF_LAMBDA)
            yield Finding("look", about, f"{text}. Too smooth.", sharper if decoded else (*sharper, advice.WITH_BASE))


def _check_colour(scores: Scores) -> Iterator[Finding]:
    chroma = scores.colour["fa"]["generated"]
    assert chroma is not None
    text = f"Generated FA had a chroma of {chroma.mean:.1f} grey levels before conversion to greyscale."
    if chroma.mean > _MAX_CHROMA:
        yield Finding("look", "colour in FA", f"{text} This suggests too little training.", (advice.MORE_STEPS,))
    else:
        yield Finding("good", "colour in FA", text)


def _check_distance(scores: Scores) -> Iterator[Finding]:
    distance = scores.distribution
    if distance is None:
        return
    text = (
        "Squared MMD between generated and real pairs (field of view, colours, spectrum, vessels): "
        f"{distance.mmd2:.2f}; between random halves of the real pairs: {distance.floor:.2f} (95th percentile)."
    )
    names = "; ".join(feature.name for feature in distance.furthest[:3])
    if distance.mmd2 <= 2 * distance.floor:
        yield Finding("good", "appearance", text)
    else:
        text += f" Largest differences: {names}."
        yield Finding("look", "appearance", text, (advice.MORE_STEPS, advice.INSPECT_PAIRS))


# --- Numbers of pairs, real pairs, cost


def _check_amounts(scores: Scores) -> Iterator[Finding]:
    if has_few_pairs(scores):
        generated, real = scores.amounts
        pairs = f"{generated} generated and {count(real, 'real pair')}"
        text = f"{pairs}: with fewer than {advice.FEW} of either, intervals are wide and distances unreliable."
        yield Finding("look", "number of pairs", text, (advice.MORE_PAIRS,))


def _check_real_pairs(scores: Scores) -> Iterator[Finding]:
    if not scores.issues:
        yield Finding("good", "real pairs", "No problems found in the real pairs.")
        return
    pairs, first = len({issue.id for issue in scores.issues}), scores.issues[0]
    text = f"{count(pairs, 'real pair')} with possible problems; the first is {first.id}: {first.text}."
    yield Finding("look", "real pairs", text, (advice.FIX_REAL,))


def _check_cost(scores: Scores) -> Iterator[Finding]:
    """Report the time and memory of a training step, and advise settings that reduce them."""
    if scores.training is None:
        return
    cost, settings = scores.training.cost, scores.training.settings
    strategy, pairs = settings.memory or "", settings.batch_size * settings.gradient_accumulation_steps
    if cost.seconds_per_step is not None:
        faster: tuple[Advice, ...] = (advice.MORE_MEMORY,) if "gradient checkpointing" in strategy else ()
        faster += (advice.BF16,) if settings.precision == "fp32" else ()
        text = f"A step of {count(pairs, 'pair')} took {cost.seconds_per_step:.2f} s."
        yield Finding("good", "speed of training", text, faster)
    if cost.memory_gib is not None:
        preset = next((f"--memory {gib}" for gib in (16, 12, 8) if gib < cost.memory_gib), None)
        smaller: tuple[Advice, ...] = ()
        if preset and "weights in" not in strategy:
            smaller += (advice.less_memory(preset),)
        if settings.batch_size > 1:
            smaller += (advice.less_memory(f"--batch_size 1 with --gradient_accumulation_steps {pairs}"),)
        text = f"Peak memory in the training log: {cost.memory_gib:.1f} GiB ({LOGGED_MEMORY})."
        yield Finding("good", "memory of training", text, smaller)


CHECKS = (
    check_agreement,
    check_drawn_views,
    _check_copies,
    _check_diversity,
    _check_detail,
    _check_colour,
    _check_distance,
    _check_amounts,
    _check_real_pairs,
    _check_cost,
)
"""All checks, most important first."""
CHECKS_WITHOUT_GENERATED = (check_drawn_views, _check_real_pairs, _check_cost)
"""The checks to make if there are no generated pairs."""
