"""Create a byte-level CLIP tokenizer that needs no download, for bases with random weights."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77


def byte_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Create a CLIP tokenizer that maps each byte of a text, except spaces, to one token.

    The vocabulary has 514 tokens: one for each of the 256 byte values, one for each byte value at the end of a word, a
    begin token and an end token. The end token has the highest id, because CLIP text encoders whose config has the old
    `eos_token_id` of 2 take the position of the highest id as the end of the text. Truncation keeps the
    first 75 tokens of a text.

    pad_token: the end token or, for the second tokenizer of SDXL, "!".
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), BEGIN, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        pad_token=pad_token,
        model_max_length=CONTEXT_LENGTH,
    )
