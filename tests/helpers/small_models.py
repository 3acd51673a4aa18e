"""A model's folder without training."""

import torch

from twosides.denoiser import Denoiser
from twosides.storage import models
from twosides.storage.networks import MLP


def save_points(folder, classes, **notes):
    """A network of random weights for points in the plane, of these classes or none of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(MLP(dim=2, width=8, depth=1, classes=len(classes) + 1))
        for parameter in denoiser.parameters():  # the last layer begins at zero
            torch.nn.init.normal_(parameter, std=0.5)
    notes = {"shape": [2], "classes": classes, "null": {"class_labels": len(classes)}} | notes
    models.save(denoiser, folder, **notes)
    return folder
