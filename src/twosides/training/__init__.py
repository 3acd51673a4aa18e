"""The training loop, with Lightning: settings, weight averages, checkpoints, fine-tuning."""
