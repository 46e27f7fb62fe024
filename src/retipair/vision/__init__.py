"""What registration, the gate and the metrics all look through: the field of view and the vessels."""
