"""Read points that were placed with the multi-point tool of ImageJ or Fiji: saved selections and tables of results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retipair.runtime.errors import DamagedError, FileError, UserError
from retipair.runtime.text_files import csv_rows

ROI_SUFFIX = ".roi"
_COLUMNS = ("x", "y")


def read_roi(path: Path) -> np.ndarray:
    """Read a point selection of ImageJ (.roi). Return the points as (N, 2) float64 px, in the order of placement.

    Raises UserError, naming the file, if it is no selection of points, or if roifile is not installed.
    """
    roifile = _import_roifile(path)
    try:
        roi = roifile.ImagejRoi.frombytes(path.read_bytes())
        is_points, points = roi.roitype == roifile.ROI_TYPE.POINT, np.asarray(roi.coordinates(), dtype=np.float64)
    except OSError as error:
        raise DamagedError(path, f"cannot be read ({error.strerror}); replace or remove it") from None
    except Exception:  # roifile raises many types of exceptions for malformed files
        raise DamagedError(
            path, "is not an ImageJ selection; save the points again (File > Save As > Selection)"
        ) from None
    if not is_points:
        raise FileError(path, "is a selection of another kind; place points with the multi-point tool of ImageJ")
    return points.reshape(-1, 2)


def is_results_table(header: str) -> bool:
    """Return whether the first line of a text file is the header of a table of ImageJ with columns X and Y."""
    for delimiter in (",", "\t", ";"):
        names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
        if all(name in names for name in _COLUMNS):
            return True
    return False


def read_results_table(path: Path) -> np.ndarray:
    """Read the columns X and Y of a table that ImageJ's Measure made of points. Return the points as (N, 2) float64.

    Raises UserError, naming the file and the line, if a value is not a finite number.
    """
    return np.array(list(_rows(path)), dtype=np.float64).reshape(-1, 2)


def _rows(path: Path) -> Iterator[tuple[float, float]]:
    for where, row in csv_rows(path):
        texts = [row.get(name, "") for name in _COLUMNS]
        try:
            x, y = map(float, texts)
        except ValueError:
            x = y = float("nan")
        if not np.isfinite([x, y]).all():
            raise UserError(
                f"{where}: {' '.join(texts)!r} is not a point; X and Y must be numbers with a decimal point"
            )
        yield x, y


def _import_roifile(path: Path) -> Any:
    try:
        import roifile
    except ImportError:
        raise FileError(path, "reading ImageJ selections needs roifile: pip install 'retipair[imagej]'") from None
    return roifile
