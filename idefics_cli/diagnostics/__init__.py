"""What a machine has and does: measurements, checks of a model, environments."""
