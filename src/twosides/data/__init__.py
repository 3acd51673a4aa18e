"""Data to train on: images of folders, tars and Hugging Face, latents, and letters of fonts.

The names here are the letters, which take minutes to learn, and a classifier that reads them.
Importing this draws nothing.
"""

from twosides.data.glyphs import Glyphs, fonts
from twosides.data.reader import Reader, accuracy, train_reader

__all__ = ["Glyphs", "Reader", "accuracy", "fonts", "train_reader"]
