"""Captions over the base's token limit are reported, and refused if truncation makes two equal."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from conftest import FAMILIES, VIEW, train_command, write_prepared
from refusals import Refused
from retipair.config import DEFAULT_PROMPT
from retipair.interfaces.cli import main
from retipair.models.base import Base, bundled_bases, open_base
from retipair.models.byte_tokenizer import BEGIN, END, byte_tokenizer
from retipair.models.captions import caption_warnings, prompt_warnings
from retipair.models.conditioning import encode_prompts
from retipair.runtime.errors import UserError
from single_file import SHAPES, write_empty_file

Folder = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
FITS = "a" * 75
"""The longest text that the byte tokenizer does not truncate."""


@pytest.fixture
def base(system: str, base_folder: Folder) -> Base:
    return open_base(str(base_folder(system)))


def test_a_caption_is_too_long_from_its_76th_token_on(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base, "_load", None)  # no weights
    assert caption_warnings(base, [("one", FITS), ("two", FITS), ("three", "short")]) == []
    assert prompt_warnings(base, FITS) == []
    captions = [("one", "short"), ("two", f"{FITS}, late phase"), ("three", f"{FITS}, late phase"), ("four", FITS[1:])]
    (warning,) = caption_warnings(base, captions)
    assert warning.startswith("captions longer than the 75 tokens that")
    assert ": 2 of 4; from the first, that of pair two," in warning
    assert "cut off: ', late phase'" in warning
    (warning,) = prompt_warnings(base, f"{FITS}, late phase")
    assert warning.startswith("--prompt is longer than the 75 tokens")
    assert warning.endswith("cut off: ', late phase'")


def test_a_long_end_is_shown_in_part_also_without_spaces(base: Base) -> None:
    (warning,) = prompt_warnings(base, FITS + "\u773c" * 200)
    assert warning.endswith(f"cut off: '{chr(0x773C) * 100} ...'")


def test_what_is_said_to_be_cut_off_is_what_the_text_encoders_do_not_read(base: Base) -> None:
    prompt = "a colour fundus photograph and a fluorescein angiogram of one eye, with laser scars in the far periphery"
    (warning,) = prompt_warnings(base, prompt)
    cut = re.search(r"cut off: '(.*)'", warning)
    assert cut is not None
    accepted = prompt.removesuffix(cut[1])
    assert accepted != prompt
    prompts = [prompt, f"{accepted}zzz", f"{accepted[:-1]}z{cut[1]}"]
    read, same, other = encode_prompts(base, prompts, (VIEW, VIEW), "cpu").embeddings[:3]
    assert torch.equal(read, same)
    assert not torch.equal(read, other)


@pytest.mark.parametrize(
    ("other", "ends"), [(", early phase", "'late phase' and 'early phase'"), ("", "', late phase' and ''")]
)
def test_different_captions_that_become_one_are_refused(other: str, ends: str, base: Base) -> None:
    with pytest.raises(UserError) as refusal:
        caption_warnings(base, [("eye1", f"{FITS}, late phase"), ("eye2", "short"), ("eye3", f"{FITS}{other}")])
    assert "eye1 and eye3" in str(refusal.value)
    assert ends in str(refusal.value)


def test_captions_that_differ_before_the_cut_or_not_at_all_are_kept(base: Base) -> None:
    long = f"{FITS}, late phase"
    captions = [("1", long), ("2", long), ("3", f"b{long}"), ("4", long.upper()), ("5", f"  {long}"), ("6", "short")]
    (warning,) = caption_warnings(base, captions)
    assert ": 5 of 6;" in warning


def merging_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Return a tokenizer in which "eye" is one token, as in CLIP's."""
    merges = [("e", "y"), ("ey", "e</w>")]
    bytes_alone = sorted(byte_tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens = [*(token for token, _ in bytes_alone if token not in (BEGIN, END)), "ey", "eye</w>", BEGIN, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)


def test_tokens_count_not_letters_and_the_tokenizer_that_takes_less_decides(base: Base, tmp_path: Path) -> None:
    names = base.family.tokenizers
    for name in names:
        merging_tokenizer("!").save_pretrained(tmp_path / name)
    merging = replace(base, tokenizer=tmp_path)
    eyes = " ".join(["eye"] * 75)
    assert prompt_warnings(base, eyes)
    assert prompt_warnings(merging, eyes) == []
    assert "'oct'" in prompt_warnings(merging, f"{eyes} oct")[0]
    byte_tokenizer("!").save_pretrained(tmp_path / names[-1])  # SDXL's second tokenizer now accepts fewer
    assert prompt_warnings(merging, eyes) == prompt_warnings(base, eyes)


@pytest.mark.parametrize("source", [*bundled_bases(), *(f"random:{system}" for system in FAMILIES)])
def test_the_default_prompt_fits_every_base_that_ships(source: str) -> None:
    assert prompt_warnings(open_base(source), DEFAULT_PROMPT) == []


def test_a_vocabulary_alone_is_cut_and_padded_as_the_published_one(
    system: str, base_folder: Folder, tmp_path: Path
) -> None:
    """As given by `--tokenizer`: without a config, transformers would neither truncate nor pad."""
    write_empty_file(tmp_path / "one.safetensors", SHAPES[system])
    base = open_base(str(tmp_path / "one.safetensors"), tokenizer=tmp_path)
    for name in base.family.tokenizers:
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.json").write_text(json.dumps(byte_tokenizer().get_vocab()))
        (tmp_path / name / "merges.txt").write_text("#version: 0.2\n")
    assert prompt_warnings(base, FITS) == []
    assert prompt_warnings(base, f"{FITS}, late")
    whole = open_base(str(base_folder(system)))
    assert [t.pad_token for t in base.tokenizers()] == [t.pad_token for t in whole.tokenizers()]


# The commands


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Pairs of which one for training and one for validation have a caption that is too long."""
    captions = {0: "short", 1: f"{FITS}, late phase", 3: f"b{FITS}, early phase", 4: f"{FITS}, never read"}
    return write_prepared(tmp_path / "spoken", ["train", "train", "train", "val", "test"], captions)


@pytest.mark.parametrize("more", [("--max_steps", 1, "--num_samples", 0), ("--dry_run",)])
def test_train_warns_at_its_start_and_in_the_dry_run(
    more: tuple[object, ...], spoken: Path, base_folder: Folder, tmp_path: Path, capsys: Capture
) -> None:
    assert main(train_command("exp", base_folder("sd15"), spoken, tmp_path / "results", *more)) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len([line for line in warnings if ": 2 of 4;" in line and "of pair eye1" in line]) == 1


@pytest.mark.parametrize("more", [(), ("--dry_run",)])
def test_train_refuses_captions_that_become_one_before_anything_is_written(
    more: tuple[object, ...],
    base_folder: Folder,
    tmp_path: Path,
    refused: Refused,
) -> None:
    captions = {0: f"{FITS}, late phase", 2: f"{FITS}, early phase"}
    data = write_prepared(tmp_path / "data", ["train", "val", "train"], captions)
    line = refused(*train_command("exp", base_folder("sd15"), data, tmp_path / "results", *more))
    assert "eye0 and eye2" in line
    assert not (tmp_path / "results").exists()


def test_the_dry_run_reads_the_captions_of_a_raw_table(
    base_folder: Folder, prepared: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(prepared / "cf", tmp_path / "cf")
    shutil.copytree(prepared / "fa", tmp_path / "fa")
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = [[f"{view}/eye{number}.png" for view in ("cf", "fa")] for number in range(3)]
        captions = ["short", f"{FITS}, late phase", ""]
        csv.writer(stream).writerows([["cf", "fa", "caption"], *([*r, c] for r, c in zip(rows, captions, strict=True))])
    table, results = tmp_path / "pairs.csv", tmp_path / "results"
    assert main(train_command("exp", base_folder("sd15"), table, results, "--dry_run")) == 0
    assert ": 1 of 3;" in capsys.readouterr().err


@pytest.mark.parametrize(("prompt", "warns"), [("short", False), (f"{FITS}, late phase", True)])
def test_generate_warns_of_a_long_prompt(
    prompt: str, warns: bool, trained: Folder, tmp_path: Path, capsys: Capture
) -> None:
    flags = ["-n", "exp", "--results", trained("sd15"), "--out", tmp_path / "out", "--amount", 1, "--steps", 2]
    assert main([str(part) for part in ("generate", *flags, "--prompt", prompt)]) == 0
    assert ("cut off: ', late phase'" in capsys.readouterr().err) == warns
