"""What a finding advises."""

from dataclasses import dataclass

_FEW = 20
"""Pairs of a kind, below which intervals are wide and distances between sets say little."""


@dataclass(frozen=True)
class Advice:
    """Something to try. `axis` is what it changes and `direction` (+1, -1) which way; "" and 0: nothing else can
    contradict it.
    """

    text: str
    axis: str = ""
    direction: int = 0

    def contradicts(self, other: "Advice") -> bool:
        return bool(self.axis) and self.axis == other.axis and self.direction != other.direction


_LONGER = Advice("Train for more steps (--max_steps).", "training steps", +1)


_SHORTER = Advice("Train for fewer steps (--max_steps).", "training steps", -1)


_MORE_TARGETS = Advice("Train with --lora_targets all.", "capacity of the adapter", +1)


_LOWER_RANK = Advice("Train with a lower --unet_lora_rank.", "capacity of the adapter", -1)


_SHARPER = Advice("Train with a higher --hf_lambda.")


_MORE_EYES = Advice("Train on more eyes.")


_MORE_SAMPLING = Advice("Generate with more --steps.")


_KEEP_BETTER = Advice("Generate with --min_consistency, which keeps the better pairs.")


_WITHHOLD = Advice("Leave the copies out: evaluate with --withhold_copies.")


_LOOK_AT_SAMPLES = Advice("Look at the samples of each step of the training.")


_OTHER_BASE = Advice("Try another base or a larger --size: it is the base's autoencoder that smooths.")


_WITH_BASE = Advice("Evaluate with --base, to see how much detail its autoencoder can keep.")


_BY_EYE = Advice("Compare the pairs on the report by eye.")


_GIVE_REAL = Advice("Give --real the folder that was trained on.")


_MORE_PAIRS = Advice(f"Judge {_FEW} pairs of each kind at least; 100 are better.")


_MEND = Advice("Look at the real pairs listed; mend them, or list them in rejected.txt.")


_MORE_MEMORY = Advice("For faster training steps: save less memory, if there is enough (--memory 24).", "memory", +1)


_BF16 = Advice("For faster training steps: --precision bf16, on a GPU that has it.")


def _less_memory(how: str) -> Advice:
    return Advice(f"For less memory in training: {how}.", "memory", -1)
