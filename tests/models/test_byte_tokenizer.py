"""The byte tokenizer reads any text without a download, the way CLIP's own does."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from retipair.models.byte_tokenizer import BEGIN, END, byte_tokenizer


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids


def test_the_end_token_has_the_highest_id() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == tokenizer.vocab_size == 514
    assert tokenizer.bos_token_id == 512
    assert tokenizer.eos_token_id == 513 == max(tokenizer.get_vocab().values())


def test_every_byte_has_its_own_token_and_text_comes_back() -> None:
    tokenizer = byte_tokenizer()
    text = "a fundus photograph of the left eye, 45°, n°1: œdème"
    encoded = ids(tokenizer, text)
    assert len(encoded) == 77
    assert encoded[0] == tokenizer.convert_tokens_to_ids(BEGIN)
    words = encoded[1 : encoded.index(tokenizer.eos_token_id)]
    assert len(words) == len(text.replace(" ", "").encode())
    assert tokenizer.decode(words).replace(" ", "") == text.replace(" ", "")
    assert ids(tokenizer, "cat")[1:4] != ids(tokenizer, "cats")[1:4]


def test_long_text_is_cut_and_still_ends() -> None:
    encoded = ids(byte_tokenizer(), "vessel " * 50)
    assert len(encoded) == 77
    assert encoded[-1] == 513


@pytest.mark.parametrize(("pad_token", "pad_id"), [(END, 513), ("!", 0)])
def test_it_survives_a_folder(tmp_path: Path, pad_token: str, pad_id: int) -> None:
    tokenizer = byte_tokenizer(pad_token)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = CLIPTokenizer.from_pretrained(tmp_path, subfolder="tokenizer", local_files_only=True)
    assert (again.pad_token, again.pad_token_id, again.model_max_length) == (pad_token, pad_id, 77)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert ids(again, "an eye!") == ids(tokenizer, "an eye!")
    assert ids(again, "an eye")[-1] == pad_id
