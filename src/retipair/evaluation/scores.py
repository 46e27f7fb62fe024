"""The scores of an evaluation as dataclasses, and their form in scores.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from retipair.evaluation.means import Mean
from retipair.metrics.data_issues import DataIssue
from retipair.runtime.atomic_io import read_json
from retipair.runtime.errors import UserError
from retipair.runtime.schema import from_values, json_sha256, to_values

SCHEMA = "retipair.scores/2"
SCORES_NAME = "scores.json"
Level = Literal["good", "look", "bad"]
View = str
"""cf or fa."""
SetName = str
"""generated, train, val or test; also mispaired, real and autoencoder (real pairs after a base's autoencoder)."""


Means = dict[SetName, Mean | None]
"""Mean over each set; None where the metric is not defined for any of its pairs."""


@dataclass(frozen=True)
class ConsistencyScores:
    """Agreement of CF and FA (see `Consistency`) over each set, and over mispaired pairs."""

    correlation: Means
    dice: Means
    cl_dice: Means
    shift_px: Means
    field: Means


@dataclass(frozen=True)
class TextureScores:
    """Fine detail of one view (see `Texture`) over each set; with a base, also over its autoencoder's output."""

    slope: Means
    fine_share: Means
    laplacian_variance: Means
    noise: Means


@dataclass(frozen=True)
class VesselScores:
    """Vessel metrics of one view (see `VesselTree`) over each set."""

    density_thin: Means
    density_medium: Means
    density_wide: Means
    fractal_dimension: Means
    tortuosity: Means


@dataclass(frozen=True)
class AnatomyScores:
    """Fractions of the views in which a disc and a macula are found (see `Anatomy`), over each set."""

    disc: Means
    macula: Means


@dataclass(frozen=True)
class FeatureDifference:
    """Mean difference of one feature between generated and real pairs, in standard deviations of the real pairs.

    feature: its key in `distribution.feature_names`; name: its name in plain words.
    """

    feature: str
    name: str
    deviations: float


@dataclass(frozen=True)
class Distribution:
    """Distance between generated and real pairs on hand-crafted features.

    mmd2: squared MMD; floor: 95th percentile of the squared MMD between random halves of the real pairs. precision,
    recall, density and coverage: see `Manifolds`. furthest: the features that differ most, largest difference first.
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
    """Distance of one view on the features of an image model; mmd2 and floor as in `Distribution`, fid: FID."""

    mmd2: float
    floor: float
    fid: float


@dataclass(frozen=True)
class DeepDistances:
    """Distances of both views. n: pairs in the smaller set; features: number of features of the image model."""

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

    similarity: mean similarity of the "generated" pairs to their nearest training pair, and of the "train" pairs to
    their nearest training pair of another eye. similarities: that of each pair, for at most 500 pairs of each set.
    ratio: mean similarity of generated pairs divided by that of training pairs; authenticity: see
    `memorisation.authenticity`. Both are None if all training pairs show one eye.
    threshold: minimum similarity of a copy; copies: ids of the copies, most similar first.
    variations: number of generated pairs made from a training pair (`--mode from_data`).
    closest: the generated pairs with the highest similarity.
    """

    similarity: Means = field(metadata={"json": "likeness"})
    similarities: dict[SetName, tuple[float, ...]] = field(metadata={"json": "likenesses"})
    ratio: float | None
    authenticity: float | None
    threshold: float
    copies: tuple[str, ...]
    variations: int = 0
    closest: tuple[ClosestPair, ...]


@dataclass(frozen=True)
class Spectra:
    """Mean power spectrum of each set. cycles: centres of the 16 rings, in cycles over 256 px; cf, fa: power."""

    cycles: tuple[float, ...]
    cf: dict[SetName, tuple[float, ...]]
    fa: dict[SetName, tuple[float, ...]]


@dataclass(frozen=True)
class ExamplePair:
    """A pair shown in the report, with all its metrics; set: "generated", or the split of a real pair."""

    set: SetName
    id: str
    metrics: dict[str, float] = field(metadata={"prefix": ""})


@dataclass(frozen=True)
class Reconstruction:
    """Real pairs after a round trip through a layout: means over n pairs of one view.

    between: transform of the joint image before it is split: "nothing", or "autoencoder" (of the base). psnr (dB),
    vessels, thin and fine_left: see `Fidelity`. texture: the metrics of `Texture` after the round trip. A value is None
    if the PSNR is infinite or there is nothing to measure.
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
    """Reconstruction of real pairs through each layout; size: px per view within the joint image."""

    size: int
    rows: tuple[Reconstruction, ...]


@dataclass(frozen=True)
class StepCost:
    """Seconds per training step (median between log lines) and peak memory in GiB; None if not in the log."""

    seconds_per_step: float | None
    memory_gib: float | None


@dataclass(frozen=True)
class StepSettings:
    """Settings of a run that affect the time or memory of a step; memory: the memory strategy."""

    batch_size: int
    gradient_accumulation_steps: int
    precision: str
    memory: str | None


@dataclass(frozen=True)
class LogLine:
    """A line of a run's metrics.jsonl. kind: training or validation; values: losses, seconds and others by name."""

    kind: str
    step: int
    values: dict[str, float] = field(metadata={"prefix": ""})


@dataclass(frozen=True)
class TrainingScores:
    """The training of the adapter that made the generated pairs.

    training, validation: lines of its log. trained_on_real: whether it was trained on the real pairs; None if the run
    does not record it.
    """

    training: tuple[LogLine, ...]
    validation: tuple[LogLine, ...]
    cost: StepCost
    settings: StepSettings
    trained_on_real: bool | None = None


@dataclass(frozen=True)
class Provenance:
    """What the scores depend on: version of retipair and of the metrics, folders, models, hashes of their content.

    step: last training step in the log of the adapter.
    """

    retipair: str
    recipe: int
    copy_search: int
    real: str
    real_sha256: str
    real_rejected_sha256: str | None
    generated: str | None
    generated_sha256: str | None
    generated_rejected_sha256: str | None
    base: str | None
    base_sha256: str | None
    adapter: str | None
    step: int | None
    deep: str | None
    deep_sha256: str | None


@dataclass(frozen=True)
class Conclusion:
    """One conclusion of the verdict, as stored; advice: its advice as one text, possibly empty."""

    level: Level
    about: str
    text: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores of an evaluation.

    provenance: what they depend on. sizes: number of pairs of each set.
    consistency, texture, colour (chroma, grey levels), vessels, anatomy: means over each set, the last four by view.
    diversity: MS-SSIM between different eyes, over "generated" and "real", by view.
    distribution: None without generated pairs or with too few. memorisation: None without generated pairs or with
    fewer than two training pairs.
    spectra: power spectra. issues: likely errors in the real pairs.
    plotted: metric -> set -> its value for at most 500 pairs.
    examples: "best", "middle" and "worst" generated pairs, or "all". suspect_pairs: the first real pairs with issues.
    withheld: ids of copies that were rejected before these scores.
    deep: distances on an image model's features, None without one. layouts: reconstruction through the layouts.
    training: None without an adapter. headline: the verdict in one sentence. advice: most important first.
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
    deep: DeepDistances | None
    layouts: LayoutScores
    training: TrainingScores | None
    headline: str = ""
    verdict: tuple[Conclusion, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def copies(self) -> tuple[str, ...]:
        """Ids of the generated pairs that copy training pairs."""
        return self.memorisation.copies if self.memorisation else ()

    @property
    def closest(self) -> tuple[ClosestPair, ...]:
        """The generated pairs most similar to training pairs."""
        return self.memorisation.closest if self.memorisation else ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of scores.json: JSON values and the SHA-256 of their canonical JSON."""
        values = {"schema": SCHEMA, **to_values(self)}
        return {**values, "sha256": json_sha256(values)}

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str = SCORES_NAME) -> "Scores":
        """Read the content of scores.json. Raises UserError, naming `where`, if it was edited or has another schema."""
        content = {key: value for key, value in values.items() if key != "sha256"}
        if content.pop("schema", None) != SCHEMA:
            raise UserError(f"{where}: written by another version of retipair; evaluate again, with another --out")
        if json_sha256({"schema": SCHEMA, **content}) != values.get("sha256"):
            raise UserError(f"{where}: edited or damaged; delete it and evaluate again")
        return from_values(cls, content, where)


def read_scores(folder: Path) -> Scores:
    """Read scores.json of an evaluation's folder. Raises UserError as `Scores.from_json`, or if it cannot be read."""
    path = folder / SCORES_NAME
    return Scores.from_json(read_json(path), str(path))
