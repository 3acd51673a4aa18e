"""Metrics of how far samples are from data: distances of features, with a choice of extractor.

`distances` and `manifolds` have the metrics as functions of features x (N, D), y (M, D);
`extractors` makes features; `measures` compares samples against data, with standard errors. Nothing
is downloaded, and torchvision is never imported.
"""

from twosides.metrics.distances import (
    frechet,
    frechet_of_gaussians,
    kernel_distance,
    mmd,
    mode_masses,
    sliced_wasserstein,
)
from twosides.metrics.extractors import Extractor, extract, extractor_named
from twosides.metrics.manifolds import Neighbours, neighbours
from twosides.metrics.measures import METRICS, Measured, evaluate, measure

__all__ = [
    "METRICS",
    "Extractor",
    "Measured",
    "Neighbours",
    "evaluate",
    "extract",
    "extractor_named",
    "frechet",
    "frechet_of_gaussians",
    "kernel_distance",
    "measure",
    "mmd",
    "mode_masses",
    "neighbours",
    "sliced_wasserstein",
]
