"""Warn about captions and prompts that exceed the token limit of the base's text encoders."""

from collections.abc import Sequence
from itertools import takewhile

from retipair.models.base import Base
from retipair.models.conditioning import Truncated, truncate_prompts
from retipair.runtime.errors import UserError

_MAX_SHOWN = 100
"""Maximum number of characters of a caption that a message quotes."""


def caption_warnings(base: Base, captions: Sequence[tuple[str, str]]) -> list[str]:
    """Return a list of one warning if captions are truncated, else an empty list.

    The warning states the number of truncated captions, and quotes the text that is cut off from the first.
    captions: (pair id, caption) of each pair.
    Raises UserError, naming two pairs, if their captions differ but become equal by truncation.
    """
    truncated = truncate_prompts(base, sorted({caption for _, caption in captions}))
    _check_distinct(captions, truncated)
    long = [(name, caption) for name, caption in captions if truncated[caption].cut]
    if not long:
        return []
    name, caption = long[0]
    return [
        f"captions longer than the {truncated[caption].limit} tokens that {base.name} accepts: {len(long)} of "
        f"{len(captions)}; from the first, that of pair {name}, this text is cut off: {_quoted(truncated[caption].cut)}"
    ]


def prompt_warnings(base: Base, prompt: str) -> list[str]:
    """Return a list of one warning, which quotes the cut-off text, if the prompt is too long, else an empty list."""
    truncated = truncate_prompts(base, [prompt])[prompt]
    if not truncated.cut:
        return []
    return [
        f"--prompt is longer than the {truncated.limit} tokens that {base.name} accepts; "
        f"this text is cut off: {_quoted(truncated.cut)}"
    ]


def _check_distinct(captions: Sequence[tuple[str, str]], truncated: dict[str, Truncated]) -> None:
    first: dict[object, tuple[str, str]] = {}
    for name, caption in captions:
        other, earlier = first.setdefault(truncated[caption].kept, (name, caption))
        if truncated[caption].tokens != truncated[earlier].tokens:
            ends = " and ".join(_quoted(text) for text in _without_common_prefix(earlier, caption))
            raise UserError(
                f"the captions of {other} and {name} differ only after the {truncated[caption].limit} tokens that "
                f"the base accepts ({ends}); shorten them or move the difference to the front"
            )


def _without_common_prefix(first: str, second: str) -> tuple[str, str]:
    """Return both texts without their common prefix."""
    same = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(first, second, strict=False)))
    return first[same:], second[same:]


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ...")
