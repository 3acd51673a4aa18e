"""`python -m twosides`, and so `torchrun -m twosides`: the command line.

Python puts the current folder first on the path for `-m`. It is taken off before anything else is
imported, so that a `json.py` in a folder of someone else's is not run.
"""

import os
import sys

if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
    del sys.path[0]

from twosides.cli import main

main()
