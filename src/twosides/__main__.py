"""`twosides`, `python -m twosides`, and so `torchrun -m twosides`: the command line.

Python puts the current folder first on the path for `-m`. It is taken off before anything else is
imported, so that a `json.py` in a folder of someone else's is not run.
"""

import os
import sys


def main() -> None:
    """Run the command line, or say how to install it: it is an extra, since libraries need none."""
    try:
        from twosides.cli import main as run
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in ("tyro", "rich"):
            raise
        print("twosides: the command line needs tyro and rich: pip install 'twosides[cli]'",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    run()


if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
        del sys.path[0]
    main()
