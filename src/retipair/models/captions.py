"""Check captions against the base's tokenizers: warn of what is cut off, refuse captions that become one."""

from collections.abc import Sequence
from itertools import takewhile

from retipair.models.base import Base
from retipair.models.conditioning import Truncated, truncate_prompts
from retipair.runtime.errors import UserError

_SHOWN = 100
"""Characters of a caption in a message."""


def caption_warnings(base: Base, captions: Sequence[tuple[str, str]]) -> list[str]:
    """Count the captions, given as (pair's id, caption), that are too long, and show what is cut off the first.

    Raises UserError, naming two pairs, where captions that differ become one.
    """
    truncated = truncate_prompts(base, sorted({caption for _, caption in captions}))
    _check_distinct(captions, truncated)
    long = [(name, caption) for name, caption in captions if truncated[caption].cut]
    if not long:
        return []
    name, caption = long[0]
    return [
        f"captions longer than the {truncated[caption].limit} tokens that {base.name} takes: {len(long)} of "
        f"{len(captions)}; of the first, that of {name}, this is cut off: {_shown(truncated[caption].cut)}"
    ]


def prompt_warnings(base: Base, prompt: str) -> list[str]:
    """Show what is cut off a prompt that is too long."""
    truncated = truncate_prompts(base, [prompt])[prompt]
    if not truncated.cut:
        return []
    return [
        f"--prompt is longer than the {truncated.limit} tokens that {base.name} takes; "
        f"this is cut off: {_shown(truncated.cut)}"
    ]


def _check_distinct(captions: Sequence[tuple[str, str]], truncated: dict[str, Truncated]) -> None:
    first: dict[object, tuple[str, str]] = {}
    for name, caption in captions:
        other, before = first.setdefault(truncated[caption].kept, (name, caption))
        if truncated[caption].tokens != truncated[before].tokens:
            ends = " and ".join(_shown(text) for text in _different_ends(before, caption))
            raise UserError(
                f"the captions of {other} and {name} differ only after the {truncated[caption].limit} tokens that "
                f"the base takes ({ends}); shorten them, or put first what tells them apart"
            )


def _different_ends(one: str, other: str) -> tuple[str, str]:
    """Cut off what both texts begin with."""
    same = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(one, other, strict=False)))
    return one[same:], other[same:]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...")
