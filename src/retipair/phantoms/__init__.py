"""Rendered eyes with a known answer: anatomy (slow, once an eye) -> maps -> any number of looks (fast, in torch)."""
