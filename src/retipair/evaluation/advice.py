"""Advice that a finding can give."""

from dataclasses import dataclass

_FEW = 20
"""Minimum number of pairs per set; with fewer, intervals are wide and distances between sets are unreliable."""


@dataclass(frozen=True)
class Advice:
    """A recommended change.

    axis: the quantity that it changes; direction (+1, -1): increase or decrease. With "" and 0 no other advice
    contradicts it.
    """

    text: str
    axis: str = ""
    direction: int = 0

    def contradicts(self, other: "Advice") -> bool:
        return bool(self.axis) and self.axis == other.axis and self.direction != other.direction


_MORE_STEPS = Advice("Train for more steps (--max_steps).", "training steps", +1)


_FEWER_STEPS = Advice("Train for fewer steps (--max_steps).", "training steps", -1)


_MORE_TARGETS = Advice("Train with --lora_targets all.", "capacity of the adapter", +1)


_LOWER_RANK = Advice("Train with a lower --unet_lora_rank.", "capacity of the adapter", -1)


_HIGHER_HF_LAMBDA = Advice("Train with a higher --hf_lambda.")


_MORE_EYES = Advice("Train on more eyes.")


_MORE_SAMPLING = Advice("Generate with more --steps.")


_FILTER = Advice("Generate with --min_consistency, which discards inconsistent pairs.")


_WITHHOLD = Advice("Exclude the copies: evaluate with --withhold_copies.")


_INSPECT_SAMPLES = Advice("Inspect the sample pairs saved during training.")


_OTHER_BASE = Advice("Try another base or a larger --size: the smoothing comes from the base's autoencoder.")


_WITH_BASE = Advice("Evaluate with --base to see how much detail its autoencoder preserves.")


_INSPECT_PAIRS = Advice("Compare the pairs on the report visually.")


_GIVE_REAL = Advice("Pass the folder used for training as --real.")


_MORE_PAIRS = Advice(f"Evaluate at least {_FEW} pairs of each kind; 100 are better.")


_FIX_REAL = Advice("Check the real pairs listed; correct them, or list them in rejected.txt.")


_MORE_MEMORY = Advice("For faster training steps: use more memory, if available (--memory 24).", "memory", +1)


_BF16 = Advice("For faster training steps: use --precision bf16 on a GPU that supports it.")


def _less_memory(how: str) -> Advice:
    return Advice(f"For less memory in training: {how}.", "memory", -1)
