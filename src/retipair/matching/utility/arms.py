"""Define the arms of `retipair utility`. An arm is a set of pairs on which the descriptor is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retipair.config.matching import ArmName
from retipair.data.dataset import PairRecord, load_pair
from retipair.data.pair import Pair
from retipair.phantoms.draw import draw_phantom
from retipair.registration.warp import resample
from retipair.vision.ridges import MEASURED_AT

SHIFT_PX = 4.0
"""px at 512: the shift of the FA in the arm "shifted"."""

_PHANTOM_SEED = 20_000
"""The seed of the rendered eyes is this plus the seed of the training.

It is far from the seeds that users choose for `retipair phantom`, because the tested pairs may be phantoms too: they
should not be among those rendered for training.
"""


@dataclass(frozen=True)
class Source:
    """A pair to train on, at a width of 512 px, which is loaded or rendered when it is needed.

    id: a name on which the random numbers of its variants depend.
    index: its number among the sources of the same kind (real, generated or phantom).
    """

    id: str
    index: int
    load: Callable[[], Pair]


@dataclass(frozen=True)
class Material:
    """All pairs on which an arm may train.

    real: the real pairs; an arm may only use those of eyes that are not tested with it.
    generated: the generated pairs, without those that were made from tested eyes.
    phantoms: the number of rendered eyes.
    size: the side of all views on disk, px.
    """

    real: tuple[PairRecord, ...]
    generated: tuple[PairRecord, ...]
    phantoms: int
    size: int


Groups = tuple[list[Source], ...]
"""The pairs of an arm; each group gets the same number of variants."""


@dataclass(frozen=True)
class Arm:
    """What the descriptor is trained on.

    text: the arm as part of a sentence, and in the table of the report.
    sources: a function that returns the pairs; its arguments are the material, the real pairs that may be used, and the
    seed.
    needs: the kinds of pairs that the arm requires, "generated" and "real".
    """

    text: str
    sources: Callable[[Material, Sequence[PairRecord], int], Groups]
    needs: frozenset[str] = frozenset()


def read_pair(record: PairRecord) -> Pair:
    """Load a pair at a width of 512 px."""
    return load_pair(record).at_reference_size()


def invert_green(pair: Pair) -> Pair:
    """Replace the FA by the inverted green channel of the CF, which is exactly aligned but not of another modality."""
    return Pair(pair.cf, (255 - pair.cf[..., 1]) * pair.mask, pair.mask)


def exchange_fa(pair: Pair, other: Pair) -> Pair:
    """Replace the FA by that of another eye."""
    mask = pair.mask & other.mask
    return Pair(pair.cf * mask[..., None], other.fa * mask, mask)


def shift_fa(pair: Pair) -> Pair:
    """Shift the FA to the right by SHIFT_PX."""
    move = np.array([[1.0, 0, SHIFT_PX], [0, 1, 0], [0, 0, 1]])
    mask = pair.mask & resample(pair.mask, move, MEASURED_AT)
    return Pair(pair.cf * mask[..., None], resample(pair.fa, move, MEASURED_AT) * mask, mask)


def _on_disk(
    records: Sequence[PairRecord], kind: str, change: Callable[[Pair, PairRecord], Pair] = lambda pair, record: pair
) -> list[Source]:
    """Return a source for each pair on disk. `change` is applied to each pair after it is loaded."""

    def source(index: int, record: PairRecord) -> Source:
        return Source(f"{kind}/{record.id}", index, lambda: change(read_pair(record), record))

    return [source(index, record) for index, record in enumerate(records)]


def _generated(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    return (_on_disk(material.generated, "generated"),)


def _real(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    allowed = {record.id for record in real}
    return ([source for source in _on_disk(material.real, "real") if source.id.removeprefix("real/") in allowed],)


def _generated_and_real(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    return (*_generated(material, real, seed), *_real(material, real, seed))


def _inverted(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    return (_on_disk(material.generated, "generated", lambda pair, record: invert_green(pair)),)


def _mispaired(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    others = dict(zip([one.id for one in material.generated], other_eyes(material.generated), strict=True))
    return (
        _on_disk(material.generated, "generated", lambda pair, record: exchange_fa(pair, read_pair(others[record.id]))),
    )


def other_eyes(records: Sequence[PairRecord]) -> list[PairRecord]:
    """Return, for each pair, the next pair of another eye in the list; the first pair follows the last."""
    count = len(records)
    later = ([records[(index + step) % count] for step in range(1, count)] for index in range(count))
    return [
        next(other for other in others if other.group != record.group)
        for record, others in zip(records, later, strict=True)
    ]


def _shifted(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    return (_on_disk(material.generated, "generated", lambda pair, record: shift_fa(pair)),)


def _phantoms(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    def render(number: int) -> Pair:
        eye = draw_phantom(_PHANTOM_SEED + seed, number, material.size, None, None, None)
        return Pair(eye.cf, eye.fa, eye.field).at_reference_size()

    def source(number: int) -> Source:
        return Source(f"phantom/{number}", number, lambda: render(number))

    return ([source(number) for number in range(material.phantoms)],)


def _nothing(material: Material, real: Sequence[PairRecord], seed: int) -> Groups:
    return ()


_GENERATED, _REAL = frozenset({"generated"}), frozenset({"real"})
ARMS: dict[ArmName, Arm] = {
    "generated": Arm("generated pairs", _generated, _GENERATED),
    "real": Arm("real pairs of other eyes", _real, _REAL),
    "phantoms": Arm("rendered eyes", _phantoms),
    "generated_and_real": Arm("generated pairs and real pairs of other eyes", _generated_and_real, _GENERATED | _REAL),
    "inverted": Arm("the same CF paired with its inverted green channel", _inverted, _GENERATED),
    "mispaired": Arm("generated pairs with the FA of another eye", _mispaired, _GENERATED),
    "shifted": Arm("generated pairs with the FA shifted by 4 px", _shifted, _GENERATED),
    "untrained": Arm("no training", _nothing),
}
