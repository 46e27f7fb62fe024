"""The only subpackage that imports diffusers models, transformers and peft."""
