"""Training: weightings, densities, objectives, recipes, averages, and the Lightning loop."""
