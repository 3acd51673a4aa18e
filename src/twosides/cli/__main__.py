"""`python -m twosides.cli`: the command line."""

from twosides.cli import main

main()
