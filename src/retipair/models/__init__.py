"""The only room that knows diffusers, transformers and peft."""

import os

# Both libraries warn, while they load, about parts that we leave out on purpose; diffusers logs what it then raises.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
