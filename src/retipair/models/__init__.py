"""Load and run neural networks. No other subpackage imports diffusers, transformers or peft."""
