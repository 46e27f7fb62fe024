"""What reads images, points and tables, fed whatever a fuzzer finds (pip install atheris).

    python tests/fuzz/readers.py image|points|table [atheris' flags, such as -max_total_time=200]

Each reader may return, or raise UserError: anything else is a find, and so is what takes longer than ten seconds.
Begins with the files in tests/fuzz/corpus/{reader}, which tests/fuzz/seeds.py makes; `make fuzz` runs all three.
"""

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["retipair", "PIL", "csv", "json"]):
    from retipair.data.pair import load_image
    from retipair.data.sources import find_pairs
    from retipair.registration.landmarks import read_landmarks
    from retipair.runtime.errors import UserError

FOLDER = Path(tempfile.mkdtemp())
CORPUS = Path(__file__).parent / "corpus"


def image(content: bytes) -> None:
    path = FOLDER / "view"
    path.write_bytes(content)
    for mode in ("RGB", "L"):
        view = load_image(path, mode, megapixels=4)
        assert view.dtype == "uint8"
        assert view.ndim == (3 if mode == "RGB" else 2)


def points(content: bytes) -> None:
    """Both files of a pair, cut apart at the first NUL."""
    for name, part in zip(("cf", "fa"), (*content.split(b"\0", 1), b"")[:2], strict=True):
        (FOLDER / name).write_bytes(part)
    found = read_landmarks(FOLDER / "cf", FOLDER / "fa", (96, 96), (96, 96))
    assert found.cf.shape == found.fa.shape


def table(content: bytes) -> None:
    """As a CSV, as JSON lines, and as what a folder says of its eyes."""
    for name in ("pairs.csv", "pairs.jsonl", "eyes/eyes.csv"):
        path = FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    for view in ("1_01.png", "1_02.png"):
        (FOLDER / "eyes" / view).touch()
    for place in ("pairs.csv", "pairs.jsonl", "eyes"):
        try:
            find_pairs(FOLDER / place)
        except UserError:
            continue


READERS = {"image": image, "points": points, "table": table}


def main() -> None:
    name, *flags = sys.argv[1:]
    reader = READERS[name]

    def once(content: bytes) -> None:
        with suppress(UserError):
            reader(content)

    found = FOLDER / "found"  # what it adds to the corpus: it writes into the first folder that it is given
    found.mkdir()
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=4096", *flags, str(found), str(CORPUS / name)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
