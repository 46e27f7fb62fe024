"""The HTML of the page's parts that gradio has no component for. All texts from files and messages are escaped."""

from collections.abc import Mapping
from html import escape

from retipair.data.dataset import PairRecord
from retipair.interfaces.app.comparing import BOTH, CF_ONLY, FA_ONLY, ComparedPair, file_uri
from retipair.interfaces.app.reviewing import ReviewedFolder
from retipair.interfaces.app.scoring import Nearest, References
from retipair.interfaces.app.words import Words
from retipair.metrics import memorisation
from retipair.runtime.atomic_io import last_parts
from retipair.vision.modality import CF_FA, Modalities

COMPARISONS = ("side", "swipe", "flicker", "checkerboard", "vessels")
"""The comparisons, by their names in `Words` and in the attribute data-comparison, from which page.css selects one."""
_LOW, _HIGH = -0.2, 1.0
"""Ends of the scale of consistency."""


def comparison_buttons(words: Words) -> str:
    """Return the buttons that choose the comparison for all pairs of the page; page.js handles them."""
    buttons = (
        f'<button type="button" data-choose="{name}">{escape(getattr(words, name))}</button>' for name in COMPARISONS
    )
    return f'<div class="comparisons" role="group" aria-label="{escape(words.compare)}">{"".join(buttons)}</div>'


def pair_figure(
    words: Words,
    pair: ComparedPair,
    name: str,
    modalities: Modalities = CF_FA,
    downloads: Mapping[str, str] | None = None,
) -> str:
    """Return the figure of a pair, in all comparisons.

    name: the beginning of the names of downloaded files.
    downloads: further images to download, by the end of the file name, as data URIs.
    """
    cf, fa = (words.cf, words.fa) if modalities == CF_FA else (modalities.first.noun, modalities.second.noun)
    short = ("CF", "FA") if modalities == CF_FA else (cf, fa)
    images = {"cf": (pair.cf, cf), "fa": (pair.fa, fa)}
    images |= {"checkerboard": (pair.checkerboard, f"{cf}, {fa}"), "vessels": (pair.vessels, "")}
    frames = "".join(_frame(kind, uri, caption) for kind, (uri, caption) in images.items())
    cf_only, fa_only = (words.only_in.format(view=view) for view in short)
    colours = ((CF_ONLY, cf_only), (FA_ONLY, fa_only), (BOTH, words.both))
    legend = " ".join(f'<span><i style="background:rgb{colour}"></i>{escape(text)}</span>' for colour, text in colours)
    links = [_link(name, kind, f'data-frame="{kind}" href="#"') for kind in ("cf", "fa", "checkerboard")]
    links += [_link(name, kind, f'href="{uri}"') for kind, uri in (downloads or {}).items()]
    return (
        f'<figure class="pair"><div class="frames">{frames}</div>'
        f'<input class="swipe-at" type="range" min="0" max="100" value="50" aria-label="{escape(words.swipe_at)}">'
        f'<p class="legend">{legend}</p><p class="downloads">{escape(words.download)} {" ".join(links)}</p></figure>'
    )


def _link(name: str, kind: str, attributes: str) -> str:
    """Return a link that downloads an image. With `data-frame`, page.js takes the image from that frame."""
    return f'<a download="{escape(name)}_{kind}.png" {attributes}>{kind}.png</a>'


def _frame(kind: str, uri: str, caption: str) -> str:
    text = f"<span>{escape(caption)}</span>" if caption else ""
    return f'<div class="frame {kind}"><img src="{uri}" alt="{escape(caption or kind)}" draggable="false">{text}</div>'


def review_status(words: Words, reviewed: ReviewedFolder, position: int) -> str:
    """Return which pair of how many is shown, the decision about it, and how many pairs are reviewed."""
    decision = reviewed.decision_at(position)
    named = {"keep": words.kept, "reject": words.rejected, None: words.undecided}[decision]
    total, (done, rejected) = len(reviewed.pairs), reviewed.counts()
    finished = f" {escape(words.all_reviewed)}" if done == total else ""
    return (
        f'<p class="status">{escape(words.position.format(number=position + 1, total=total))}: '
        f"{escape(reviewed.pairs[position].record.id)} "
        f'<span class="{decision or ""}">({escape(named)})</span></p>'
        f'<p class="note">{escape(words.reviewed.format(done=done, total=total, rejected=rejected))}{finished}</p>'
    )


def scores(words: Words, consistency: float, references: References, nearest: Nearest | None, searched: bool) -> str:
    """Return the consistency of a pair on a scale with its ranges, and its nearest training pair.

    searched: whether the pair is compared with the training pairs; False for real pairs, and for pairs that show a
        given eye on purpose.
    """
    verdict = references.verdict(consistency)
    named = {"real": words.verdict_real, "below": words.verdict_below, "mispaired": words.verdict_mispaired}
    source = (
        words.from_documents
        if references.source is None
        else words.from_folder.format(folder=last_parts(str(references.source)))
    )
    ranges = (
        ("mispaired", words.mispaired_pairs, references.mispaired),
        ("real", words.real_pairs, references.real),
    )
    texts = "".join(
        f'<span><i class="{name}"></i>{escape(text.format(low=low, high=high))}</span>'
        for name, text, (low, high) in ranges
    )
    return (
        f'<div class="scores"><p><b>{escape(words.consistency)}:</b> '
        f'<span class="verdict {verdict}">{consistency:.2f}, {escape(named[verdict])}</span></p>'
        f"{_scale(consistency, references)}"
        f'<p class="small ranges">{texts} {escape(source)}</p>'
        f"{copies(words, references, nearest) if searched else ''}</div>"
    )


def copies(words: Words, references: References, nearest: Nearest | None) -> str:
    """Return the sentence about the nearest training pair; if it is a copy, a warning that shows the training pair."""
    if nearest is None:
        return "" if references.known else f'<p class="small">{escape(words.no_copy_search)}</p>'
    text = words.copy if nearest.is_copy else words.nearest
    id, similarity = nearest.record.id, nearest.similarity
    sentence = escape(text.format(id=id, similarity=similarity, copy=memorisation.COPY))
    if not nearest.is_copy:
        return f"<p>{sentence}</p>"
    caption = escape(words.copy_shown.format(id=id))
    images = "".join(
        f'<img src="{uri}" alt="{caption}">' for uri in map(file_uri, (nearest.record.cf, nearest.record.fa))
    )
    return f'<div class="warning copied" role="alert"><p>{sentence}</p><p>{caption}</p>{images}</div>'


def _scale(consistency: float, references: References) -> str:
    bands = (("mispaired", references.mispaired), ("real", references.real))
    shown = "".join(
        f'<span class="band {name}" style="left:{_percent(low):.1f}%;right:{100 - _percent(high):.1f}%"></span>'
        for name, (low, high) in bands
    )
    return f'<div class="scale">{shown}<span class="mark" style="left:{_percent(consistency):.1f}%"></span></div>'


def _percent(value: float) -> float:
    return 100 * (min(max(value, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW)


def command(words: Words, *lines: str, title: str | None = None) -> str:
    """Return command lines, with a button that copies each; page.js handles it."""
    button = f'<button type="button" data-copied="{escape(words.copied)}">{escape(words.copy_command)}</button>'
    shown = "".join(f'<div class="command"><code>{_unbroken(line)}</code>{button}</div>' for line in lines)
    return f'<div class="commands"><p>{escape(title or words.command)}</p>{shown}</div>'


def _unbroken(line: str) -> str:
    return " ".join(f"<span>{escape(word)}</span>" for word in line.split(" "))


def note(text: str, kind: str = "note") -> str:
    """Return a paragraph. kind: "note", or "warning" for text that must not be overlooked."""
    role = ' role="alert"' if kind == "warning" else ""
    return f'<p class="{kind}"{role}>{escape(text)}</p>'


def can_be_copy(record: PairRecord) -> bool:
    """Return whether the pair should show an eye of its own, which no training pair shows."""
    return record.mode == "noise"
