"""Define the advice that the findings of an evaluation can give (see `Finding`)."""

from dataclasses import dataclass

FEW = 20
"""Minimum number of pairs per set. With fewer, 95 % intervals are wide, and distances between sets are unreliable."""


@dataclass(frozen=True)
class Advice:
    """A recommended change of the training, the generation or the evaluation.

    Two pieces of advice contradict each other if they have the same axis and opposite directions.

    text: the recommendation, one sentence for the user.
    axis: the quantity to change, such as "training steps"; "" if the advice cannot contradict any other.
    direction: +1 to increase the quantity, -1 to decrease it, 0 without an axis.
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
PAIR_GUIDANCE = Advice("Generate with a higher --pair_guidance, which makes the vessels of both views agree better.")
BEST_OF = Advice("Generate with --best_of 4, which keeps the most consistent of several attempts.")
CLEAN_HALVES = Advice("Train with --half_clean_fraction 0.5, so that the model learns to draw one view from the other.")
KNOWN_VIEWS = Advice("To compare drawn views with true views, generate with --data set to the folder given as --real.")
HELD_OUT_VIEWS = Advice("To judge drawn views, draw views from validation pairs too.")
INSPECT_SAMPLES = Advice("Inspect the sample pairs saved during training.")
OTHER_BASE = Advice("Try another base or a larger --size: the smoothing comes from the base's autoencoder.")
WITH_BASE = Advice("Evaluate with --base to see how much detail its autoencoder preserves.")
INSPECT_PAIRS = Advice("Inspect the generated pairs in the report by eye.")
GIVE_REAL = Advice("Pass the folder used for training as --real.")
MORE_PAIRS = Advice(f"Evaluate at least {FEW} generated and {FEW} real pairs; 100 of each are better.")
FIX_REAL = Advice("Check the real pairs listed in the report: correct them, or add their ids to rejected.txt.")
MORE_MEMORY = Advice("For faster training steps: use more memory, if available (--memory 24).", "memory", +1)


BF16 = Advice("For faster training steps: use --precision bf16 on a GPU that supports it.")


def less_memory(flags: str) -> Advice:
    """Return the advice to train with these command-line flags, which reduce the memory needed."""
    return Advice(f"For less memory in training: {flags}.", "memory", -1)
