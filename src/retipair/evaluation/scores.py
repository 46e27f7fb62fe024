"""The scores of an evaluation as dataclasses, and their form in scores.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retipair.evaluation.drawn_scores import DrawnViewScores
from retipair.evaluation.means import Mean
from retipair.evaluation.provenance import Provenance
from retipair.metrics.data_issues import DataIssue
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import UserError
from retipair.runtime.schema import from_values, json_sha256, to_values

SCHEMA = "retipair.scores/2"
SCORES_NAME = "scores.json"
Level = Literal["good", "look", "bad"]
View = str
"""Name of a view: "cf" or "fa"."""
SetName = str
"""generated, train, val or test; also mispaired, real, and autoencoder (real pairs after the base's autoencoder)."""


Means = dict[SetName, Mean | None]
"""Set -> mean of a metric over the set; None if the metric is not defined for any pair of the set."""


@dataclass(frozen=True)
class ConsistencyScores:
    """Means of the metrics of `Consistency` over the pairs of each set, and over mispaired pairs."""

    correlation: Means
    dice: Means
    cl_dice: Means
    shift_px: Means
    field: Means


@dataclass(frozen=True)
class TextureScores:
    """Means of the metrics of `Texture` of one view over each set; with a base, also over autoencoded real views."""

    slope: Means
    fine_share: Means
    laplacian_variance: Means
    noise: Means


@dataclass(frozen=True)
class VesselScores:
    """The mean of each vessel metric of one view, for each set of pairs (see `VesselTree`)."""

    density_thin: Means
    density_medium: Means
    density_wide: Means
    fractal_dimension: Means
    tortuosity: Means


@dataclass(frozen=True)
class AnatomyScores:
    """For one view: the fraction of images in each set in which a disc, or a macula, is found (see `Anatomy`)."""

    disc: Means
    macula: Means


@dataclass(frozen=True)
class FeatureDifference:
    """Mean difference of one feature between generated and real pairs.

    feature: the key of the feature, one of `distribution.feature_names`.
    name: the name of the feature in plain words.
    deviations: the mean difference after `distribution.robust_standardize`. A value between -1 and 1 is approximately
        the difference divided by the standard deviation of the real pairs; other values are compressed.
    """

    feature: str
    name: str
    deviations: float


@dataclass(frozen=True)
class Distribution:
    """Distance between generated and real pairs on hand-crafted features.

    mmd2: the squared MMD.
    floor: the 95th percentile of the squared MMD between two random subsets, each half of the real pairs.
    precision, recall, density, coverage: see `Manifolds`.
    furthest: the features that differ most, largest difference first.
    """

    mmd2: float
    floor: float
    precision: float
    recall: float
    density: float
    coverage: float
    furthest: tuple[FeatureDifference, ...]


@dataclass(frozen=True)
class DeepDistance:
    """Distance between generated and real views on the features of an image model; see `Distribution`. fid: the FID."""

    mmd2: float
    floor: float
    fid: float


@dataclass(frozen=True)
class DeepDistances:
    """`DeepDistance` of each view. n: the number of pairs in the smaller set. features: the number of features."""

    n: int
    features: int
    cf: DeepDistance
    fa: DeepDistance


@dataclass(frozen=True)
class ClosestPair:
    """A generated pair, its most similar training pair, and their similarity, in [-1, 1]."""

    id: str
    train_id: str
    similarity: float = field(metadata={"json": "likeness"})


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Search for generated pairs that copy training pairs.

    A generated pair is compared with all training pairs, a training pair with at most 1,000 training
    pairs of other eyes.

    similarity: "generated" or "train" -> the mean similarity of a pair of this set to its most similar training pair.
    similarities: the same similarity of each pair, for at most 500 pairs of each set.
    ratio: the mean over generated pairs divided by that over training pairs; None if all training pairs show one eye.
    authenticity: see `memorisation.authenticity`; None if all training pairs show one eye.
    threshold: the minimum similarity of a copy.
    copies: the ids of the generated pairs that are copies, most similar first.
    variations: the number of generated pairs that were made from a training pair (`--mode from_data`).
    given: the number of generated pairs that are as similar as copies because their given view belongs to the training
    pair (`--mode cf2fa` and `fa2cf`); they are not in `copies`.
    closest: the generated pairs with the highest similarity.
    """

    similarity: Means = field(metadata={"json": "likeness"})
    similarities: dict[SetName, tuple[float, ...]] = field(metadata={"json": "likenesses"})
    ratio: float | None
    authenticity: float | None
    threshold: float
    copies: tuple[str, ...]
    variations: int = 0
    given: int = 0
    closest: tuple[ClosestPair, ...]


@dataclass(frozen=True)
class Spectra:
    """Mean power of each set in 16 frequency rings. cycles: the centre of each ring, in cycles over 256 px."""

    cycles: tuple[float, ...]
    cf: dict[SetName, tuple[float, ...]]
    fa: dict[SetName, tuple[float, ...]]


@dataclass(frozen=True)
class ExamplePair:
    """A pair shown in the report, with all its metrics. set: "generated", or the split of a real pair."""

    set: SetName
    id: str
    metrics: dict[str, float] = field(metadata={"prefix": ""})


@dataclass(frozen=True)
class Reconstruction:
    """Mean metrics of one view of n real pairs that were joined in a layout and split again.

    between: what was applied to the joint image before the split: "nothing", or the "autoencoder" of the base.
    psnr, vessels, thin, fine_left: see `Fidelity`; psnr is None if the views are unchanged or the masks are empty.
    texture: the metrics of `Texture` after the round trip.
    """

    layout: str
    between: str
    view: View
    n: int
    psnr: float | None
    vessels: float | None
    thin: float | None
    fine_left: float | None
    texture: dict[str, float | None] = field(metadata={"prefix": "texture."})


@dataclass(frozen=True)
class LayoutScores:
    """Reconstruction of real pairs from each layout. size: the size of a view within the joint image, px."""

    size: int
    rows: tuple[Reconstruction, ...]


@dataclass(frozen=True)
class StepCost:
    """Median time of a training step in seconds, and peak memory in GiB. None if the log does not contain them."""

    seconds_per_step: float | None
    memory_gib: float | None


@dataclass(frozen=True)
class StepSettings:
    """Settings of a training run that affect the time or memory of a step. memory: the memory strategy."""

    batch_size: int
    gradient_accumulation_steps: int
    precision: str
    memory: str | None


@dataclass(frozen=True)
class LogLine:
    """A line of metrics.jsonl of a training run. kind: "training" or "validation". values: name -> loss, time etc."""

    kind: str
    step: int
    values: dict[str, float] = field(metadata={"prefix": ""})


@dataclass(frozen=True)
class TrainingScores:
    """The training run of `--adapter`.

    training, validation: the lines of the log of the run.
    trained_on_real: whether the run was trained on the real pairs; None if the run does not record it.
    """

    training: tuple[LogLine, ...]
    validation: tuple[LogLine, ...]
    cost: StepCost
    settings: StepSettings
    trained_on_real: bool | None = None


@dataclass(frozen=True)
class Conclusion:
    """A `Finding` as stored in scores.json. advice: all its advice in one text, possibly empty."""

    level: Level
    about: str
    text: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores of an evaluation.

    sizes: the number of pairs of each set.
    colour: the mean chroma of each view in each set, in grey levels.
    diversity: the mean MS-SSIM between different eyes, for each view and for the sets "generated" and "real".
    distribution: the distance on hand-crafted features; None if there are too few pairs (see `feature_distances`).
    memorisation: the search for copies; None without generated pairs or with fewer than two training pairs.
    issues: likely errors in the real pairs.
    plotted: metric -> set -> the value of each pair, for at most 500 pairs.
    examples: generated pairs with "best", "middle" and "worst" vesselness correlation, or "all" pairs if there are few.
    suspect_pairs: the real pairs that have issues, at most the first six.
    withheld: the ids of generated pairs that were rejected as copies before the scores were computed.
    drawn_views: the scores of views that were drawn from given views, by mode ("cf2fa", "fa2cf").
    deep: the distances on the features of an image model; None without a model or with too few pairs (below four).
    training: the training run of the adapter; None if no adapter is given.
    headline: the verdict in one sentence.
    advice: the recommendations, most important first.
    """

    provenance: Provenance
    sizes: dict[SetName, int]
    consistency: ConsistencyScores
    texture: dict[View, TextureScores]
    colour: dict[View, Means]
    vessels: dict[View, VesselScores]
    anatomy: dict[View, AnatomyScores]
    diversity: dict[View, Means]
    distribution: Distribution | None
    memorisation: Memorisation | None
    spectra: Spectra
    issues: tuple[DataIssue, ...] = field(metadata={"json": "doubts"})
    plotted: dict[str, dict[SetName, tuple[float, ...]]] = field(metadata={"json": "dots"})
    examples: dict[str, tuple[ExamplePair, ...]] = field(metadata={"json": "shown"})
    suspect_pairs: tuple[ExamplePair, ...] = field(metadata={"json": "doubtful"})
    withheld: tuple[str, ...] = ()
    drawn_views: dict[str, DrawnViewScores] = field(default_factory=dict)
    deep: DeepDistances | None
    layouts: LayoutScores
    training: TrainingScores | None
    headline: str = ""
    verdict: tuple[Conclusion, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def copies(self) -> tuple[str, ...]:
        """The ids of the generated pairs that copy training pairs, most similar first."""
        return self.memorisation.copies if self.memorisation else ()

    @property
    def amounts(self) -> tuple[int, int]:
        """The number of generated pairs and the number of real pairs."""
        generated = self.sizes.get("generated", 0)
        return generated, sum(self.sizes.values()) - generated

    @property
    def closest(self) -> tuple[ClosestPair, ...]:
        """The generated pairs that are most similar to a training pair, most similar first."""
        return self.memorisation.closest if self.memorisation else ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of scores.json: the scores as JSON values, with the SHA-256 of their canonical JSON."""
        values = {"schema": SCHEMA, **to_values(self)}
        return {**values, "sha256": json_sha256(values)}

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str = SCORES_NAME) -> "Scores":
        """Convert JSON values to Scores. Raises UserError, naming `where`, if edited or of another schema."""
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object; evaluate again")
        content = {key: value for key, value in values.items() if key != "sha256"}
        if content.pop("schema", None) != SCHEMA:
            raise UserError(f"{where}: written by another version of retipair; evaluate again, with another --out")
        if json_sha256({"schema": SCHEMA, **content}) != values.get("sha256"):
            raise UserError(f"{where}: edited or damaged; delete it and evaluate again")
        return from_values(cls, content, where)


def read_scores(folder: Path) -> Scores:
    """Read scores.json in a folder. Raises UserError if it cannot be read, was edited or has another schema."""
    path = folder / SCORES_NAME
    return Scores.from_json(read_json(path), str(path))
