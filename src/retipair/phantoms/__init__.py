"""Synthetic pairs with ground truth: anatomy (slow, once per eye) -> maps -> any number of images (fast, in torch)."""
