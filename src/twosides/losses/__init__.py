"""What is trained: objectives, densities and weightings of the log-SNR, recipes."""
