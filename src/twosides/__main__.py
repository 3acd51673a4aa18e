"""`python -m twosides`, and so `torchrun -m twosides`: the command line."""

from twosides.cli import main

main()
