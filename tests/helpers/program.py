"""The program `twosides`, run in this process."""

import sys

from twosides.cli import main


def run(capsys, monkeypatch, *words):
    """The program in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["twosides", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    out, err = capsys.readouterr()
    return code, out, err
