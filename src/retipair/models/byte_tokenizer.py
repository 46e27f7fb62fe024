"""Create a byte-level CLIP tokenizer that needs no download, for bases with random weights."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77


def byte_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Create a CLIP tokenizer with one token per byte: 256 bytes, 256 bytes at the end of a word, begin and end.

    pad_token: the end token or, for the second tokenizer of SDXL, "!".
    The end token has the highest id of the 514 tokens: CLIP text encoders whose config has the old `eos_token_id` of 2
    take the position of the highest id as the end of the text. Texts longer than 75 bytes (spaces do not count) are
    truncated.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), BEGIN, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        pad_token=pad_token,
        model_max_length=CONTEXT_LENGTH,
    )
