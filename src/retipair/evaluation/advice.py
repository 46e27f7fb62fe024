"""Define the advice that findings can give."""

from dataclasses import dataclass

FEW = 20
"""Minimum number of pairs per set; with fewer, intervals are wide and distances between sets are unreliable."""


@dataclass(frozen=True)
class Advice:
    """A recommended change.

    axis: the quantity that the advice changes; direction: +1 to increase it, -1 to decrease it. Advice without an axis
    ("" and 0) contradicts no other advice.
    """

    text: str
    axis: str = ""
    direction: int = 0

    def contradicts(self, other: "Advice") -> bool:
        return bool(self.axis) and self.axis == other.axis and self.direction != other.direction


MORE_STEPS = Advice("Train for more steps (--max_steps).", "training steps", +1)
FEWER_STEPS = Advice("Train for fewer steps (--max_steps).", "training steps", -1)
MORE_TARGETS = Advice("Train with --lora_targets all.", "capacity of the adapter", +1)
LOWER_RANK = Advice("Train with a lower --unet_lora_rank.", "capacity of the adapter", -1)
HIGHER_HF_LAMBDA = Advice("Train with a higher --hf_lambda.")
MORE_EYES = Advice("Train on more eyes.")
MORE_SAMPLING = Advice("Generate with more --steps.")
FILTER = Advice("Generate with --min_consistency, which discards inconsistent pairs.")
WITHHOLD = Advice("Exclude the copies: evaluate with --withhold_copies.")
INSPECT_SAMPLES = Advice("Inspect the sample pairs saved during training.")
OTHER_BASE = Advice("Try another base or a larger --size: the smoothing comes from the base's autoencoder.")
WITH_BASE = Advice("Evaluate with --base to see how much detail its autoencoder preserves.")
INSPECT_PAIRS = Advice("Compare the pairs in the report by eye.")
GIVE_REAL = Advice("Pass the folder used for training as --real.")
MORE_PAIRS = Advice(f"Evaluate at least {FEW} pairs of each kind; 100 are better.")
FIX_REAL = Advice("Check the real pairs listed in the report: correct them, or add their ids to rejected.txt.")
MORE_MEMORY = Advice("For faster training steps: use more memory, if available (--memory 24).", "memory", +1)


BF16 = Advice("For faster training steps: use --precision bf16 on a GPU that supports it.")


def less_memory(how: str) -> Advice:
    """Return the advice to save memory in training with the flags `how`."""
    return Advice(f"For less memory in training: {how}.", "memory", -1)
