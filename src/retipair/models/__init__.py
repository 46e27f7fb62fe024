"""The only subpackage that imports diffusers models, transformers and peft."""

import os

# Both libraries warn about parts that are omitted on purpose; diffusers also logs errors before it raises them.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "critical")
