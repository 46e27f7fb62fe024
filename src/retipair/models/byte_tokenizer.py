"""A byte-level CLIP tokenizer that needs no download, for bases without a vocabulary."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77


def byte_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """Create a CLIP tokenizer of 514 tokens without merges: 256 bytes, 256 word-final bytes, begin and end.

    The end token has the highest id, because CLIP pools at the argmax of the ids if its `eos_token_id` is the
    historical 2. `pad_token` is the end token, or "!" for the second tokenizer of SDXL. Texts are truncated to 75
    bytes (spaces not counted), as CLIP truncates to 75 tokens.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), BEGIN, END]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        pad_token=pad_token,
        model_max_length=CONTEXT_LENGTH,
    )
