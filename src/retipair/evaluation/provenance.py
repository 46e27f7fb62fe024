"""The record of what the scores of an evaluation depend on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """What the scores depend on: versions, folders and models, and hashes of the content of folders and models.

    recipe, copy_search: the versions of the metrics and of the search for copies.
    step: the last training step in the log of the run that trained the adapter.
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
    drawn_views: str | None = None
    drawn_views_sha256: str | None = None
    drawn_views_rejected_sha256: str | None = None
