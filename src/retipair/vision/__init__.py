"""Segmentation of the field of view and of vessels, for registration, quality filters and metrics."""
