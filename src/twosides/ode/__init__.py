"""The probability-flow ODE itself: adaptive steps, inversion, likelihood."""
