"""`matches.jsonl`: what was written is read, and everything else is refused with its file and line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from retipair.matching.samples import SAMPLES_NAME, MatchSample, read_samples, to_line, write_samples
from retipair.runtime.errors import MissingError, UserError

SAMPLE = MatchSample(
    id="eye_1",
    variant="warp_1",
    split="train",
    eye="patient 1",
    size=512,
    seed=3,
    cf="eye_1/cf.png",
    fa="eye_1/warp_1/fa_warped.png",
    valid_cf="eye_1/valid_cf.png",
    valid_fa="eye_1/warp_1/valid_fa.png",
    vessels_cf="eye_1/vessels_cf.png",
    vessels_fa="eye_1/warp_1/vessels_fa.png",
    landmarks="eye_1/warp_1/landmarks.txt",
    h_cf_to_fa=[[1.0, 0.1, 1 / 3], [-0.1, 1.0, -7.25], [1e-05, 0.0, 1.0]],
    synthetic=True,
    source_sha256="0" * 64,
)


def test_samples_are_read_as_written(tmp_path: Path) -> None:
    samples = [SAMPLE, replace(SAMPLE, variant="warp_2", field="eye_1/warp_2/field.npz")]
    write_samples(tmp_path, samples)
    assert list(read_samples(tmp_path)) == samples
    keys = list(json.loads(to_line(SAMPLE)))
    assert keys[:3] == ["schema", "id", "variant"]
    assert "field" not in keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "../eye"}, "id '../eye' is not a safe file name"),
        ({"variant": "warp 1"}, "variant 'warp 1' is not a safe file name"),
        ({"cf": "../cf.png"}, "path '../cf.png' is not in the folder"),
        ({"fa": "/fa.png"}, "path '/fa.png' is not in the folder"),
        ({"landmarks": ""}, "path '' is not in the folder"),
        ({"field": "a\\..\\b.npz"}, "is not in the folder"),
        ({"eye": "a\nb"}, "eye has unprintable characters"),
        ({"split": "training"}, "split cannot be"),
        ({"size": 0}, "size must be at least 1"),
        ({"h_cf_to_fa": [[1, 0, 0], [0, 1, 0]]}, "3 rows of 3 numbers"),
        ({"h_cf_to_fa": [[1, 0], [0, 1], [0, 0]]}, "3 rows of 3 numbers"),
        ({"h_cf_to_fa": "1 0 0"}, "h_cf_to_fa cannot be"),
        ({"schema": "retipair.matches/2"}, "this version reads retipair.matches/1"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_an_invalid_line_is_refused_with_its_number(tmp_path: Path, change: dict[str, object], message: str) -> None:
    lines = [to_line(replace(SAMPLE, variant="aligned")), json.dumps(json.loads(to_line(SAMPLE)) | change) + "\n"]
    (tmp_path / SAMPLES_NAME).write_text("".join(lines))
    with pytest.raises(UserError, match=f"{SAMPLES_NAME}, line 2: .*") as caught:
        list(read_samples(tmp_path))
    assert message in str(caught.value)


def test_missing_and_cut_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="retipair export matches"):
        list(read_samples(tmp_path))
    (tmp_path / SAMPLES_NAME).write_text(to_line(SAMPLE) + to_line(replace(SAMPLE, variant="warp_2"))[:50])
    with pytest.raises(UserError, match="line 2: not JSON.*repeat the command"):
        list(read_samples(tmp_path))
    write_samples(tmp_path, [SAMPLE, SAMPLE])
    with pytest.raises(UserError, match="line 2: duplicate sample 'eye_1-warp_1'"):
        list(read_samples(tmp_path))
