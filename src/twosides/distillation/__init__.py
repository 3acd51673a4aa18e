"""Models of few steps from a teacher: runs, flow maps, objectives, reflow, baking."""
