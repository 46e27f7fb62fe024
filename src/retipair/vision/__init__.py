"""Field of view and vessels, used by registration, quality filters and metrics."""
