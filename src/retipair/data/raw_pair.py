"""The files of one pair before preparation, and items that cannot be used."""

from dataclasses import dataclass, replace
from pathlib import Path

from retipair.data.manifest import Split


@dataclass(frozen=True, kw_only=True)
class RawPair:
    """The files of one pair before preparation, and what file names, tables and DICOM tags state about the pair.

    cf, fa: the two views, distinguished by file names, folders, table columns or tags, or (DICOM) by their colour.
    cf_points, fa_points: the files with the landmarks of each view.
    more_cf, more_fa: further photographs and angiograms of the same eye and day. `prepare` uses the CF and the FA whose
        vessels agree best.
    warnings: what its tags leave uncertain, in texts that name no file, patient or day. `prepare` prints them.
    modalities: the keys of the modalities of both views, as a table states them; None if it does not.
    cf_frame, fa_frame: the number, from 1, of the frame of a multi-frame file. None: `prepare` chooses the frame.
    """

    id: str
    cf: Path
    fa: Path
    cf_points: Path | None = None
    fa_points: Path | None = None
    eye: str | None = None
    patient: str | None = None
    split: Split | None = None
    caption: str | None = None
    views_named: bool = False
    """Whether a table, folder names or tags state which view is the CF; otherwise, `prepare` decides by colour."""
    more_cf: tuple[Path, ...] = ()
    more_fa: tuple[Path, ...] = ()
    cf_frame: int | None = None
    fa_frame: int | None = None
    warnings: tuple[str, ...] = ()
    modalities: tuple[str, str] | None = None
    dicom: bool = False
    """Whether a view is a DICOM file. Names of such pairs may identify a patient, so they are replaced by hashes."""

    @property
    def files(self) -> list[Path]:
        """Every file of the pair."""
        single = (self.cf, self.fa, self.cf_points, self.fa_points)
        return [*(path for path in single if path is not None), *self.more_cf, *self.more_fa]

    def swapped(self) -> "RawPair":
        """Return the pair with CF and FA exchanged, including their point files."""
        return replace(self, cf=self.fa, fa=self.cf, cf_points=self.fa_points, fa_points=self.cf_points)


@dataclass(frozen=True)
class SkippedPair:
    """A pair, image or folder that cannot be used.

    reason: what is wrong, and what the user can do.
    empty: whether this is only a folder without images, which is not an error.
    """

    id: str
    reason: str
    empty: bool = False
