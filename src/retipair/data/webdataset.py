"""Write tar files for the library `webdataset`: files with the same name up to the first dot are one sample."""

import io
import json
import tarfile
from collections.abc import Iterable
from typing import BinaryIO

from retipair.data.dataset_row import DatasetRow


def write_tar(stream: BinaryIO, rows: Iterable[DatasetRow]) -> None:
    """Write rows as an uncompressed tar file: KEY.cf.png, KEY.fa.png, KEY.mask.png and KEY.json for each pair.

    KEY is the id, with "%2E" for each dot, because the key of a sample ends at the first dot. The JSON object has the
    values of `DatasetRow.values`, with the id itself. Owner and time of the files are 0, so that equal rows give equal
    bytes.
    """
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for row in rows:
            key = row.record.id.replace(".", "%2E")
            for view, png in row.images.items():
                _add(archive, f"{key}.{view}.png", png)
            text = json.dumps(row.values(), ensure_ascii=False, allow_nan=False)
            _add(archive, f"{key}.json", text.encode())
            archive.getmembers().clear()  # tarfile remembers every file


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
