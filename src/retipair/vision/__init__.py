"""Measure views: field of view, vessels and appearance, for registration, generation, quality filters and metrics."""
