"""The training loop, with Lightning: settings, averages of the weights, checkpoints, fine-tuning."""
