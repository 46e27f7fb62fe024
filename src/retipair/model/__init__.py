"""The only room that knows diffusers, transformers and peft."""

import os

# Both libraries warn, while they load, about parts that we leave out on purpose.
for _library in ("TRANSFORMERS", "DIFFUSERS"):
    os.environ.setdefault(f"{_library}_VERBOSITY", "error")
