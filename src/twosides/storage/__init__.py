"""What lies on disk: files that are complete or absent, tensors, trees, checkpoints, models."""
