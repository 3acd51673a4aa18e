"""Samplers as plans: grids, solvers, stochasticity, tracing and running."""
