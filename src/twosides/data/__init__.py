"""Data to train on in minutes: letters drawn from fonts, and a classifier that reads them.

Nothing here is imported by the rest of the library, and importing it draws nothing.
"""

from twosides.data.glyphs import Glyphs, fonts
from twosides.data.reader import Reader, accuracy, train_reader

__all__ = ["Glyphs", "Reader", "accuracy", "fonts", "train_reader"]
