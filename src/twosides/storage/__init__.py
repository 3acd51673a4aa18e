"""Files on disk that are complete or absent: tensors, trees, checkpoints, models, plans."""
