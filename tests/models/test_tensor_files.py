"""Files of tensors have the same bytes each time, and NaN is found in tensors of any dtype."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from retipair.models.tensor_files import all_finite, write_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3).half(), "empty": torch.zeros(0)}
METADATA = {
    **{f"key {number}": str(number) for number in range(20)},
    "text": 'é眼 "quoted" \\ \n\t\x00\x1f\x7f\u2028 😀',
}


def test_the_order_of_the_metadata_does_not_change_the_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        write_tensors(file, TENSORS, METADATA)
    write_tensors(files[1], dict(reversed(TENSORS.items())), dict(reversed(METADATA.items())))
    assert len({file.read_bytes() for file in files}) == 1
    read = load_file(files[0])
    assert set(read) == set(TENSORS)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in read.items())
    with safe_open(files[0], framework="pt") as opened:
        assert opened.metadata() == METADATA


def test_a_file_without_metadata_is_readable(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", TENSORS, {})
    assert set(load_file(tmp_path / "a")) == set(TENSORS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64])
def test_nan_is_found_in_any_dtype(dtype: torch.dtype) -> None:
    numbers = torch.ones(3).to(dtype)
    assert all_finite([numbers])
    if dtype.is_floating_point:
        assert not all_finite([numbers, torch.tensor([1.0, float("nan")]).to(dtype)])
