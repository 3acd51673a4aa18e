"""The command line: `twosides train | finetune | sample | samplers | recipes | convert | ...`.

A command is a function of `twosides.commands`: its signature is the options and its docstring the
help. Nothing heavy is imported before one runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings

import tyro

from twosides.cli.data import data, encode_latents
from twosides.cli.knowledge import compare, demo, explore, recipes, samplers, verify
from twosides.cli.models import convert, explain, export
from twosides.cli.samples import evaluate, report, sample
from twosides.cli.training import ema, finetune, train

ABOUT = "Train, sample, convert and compare diffusion and flow-matching models."

COMMANDS = (
    train,
    finetune,
    sample,
    ema,
    evaluate,
    report,
    data,
    encode_latents,
    explore,
    samplers,
    recipes,
    convert,
    export,
    explain,
    compare,
    verify,
    demo,
)


def main() -> None:
    """The `twosides` program; errors of use are one clear line and exit status 2."""
    # Processes that are started from here, by Lightning or multiprocessing say, do not look for
    # modules in the current folder, which may be a stranger's.
    os.environ["PYTHONSAFEPATH"] = "1"
    # A line for those who use the program, not for those who write it.
    warnings.formatwarning = lambda message, *_, **__: f"twosides: {message}\n"
    app = tyro.extras.SubcommandApp()
    for command in COMMANDS:
        app.command(command)
    try:
        app.cli(prog="twosides", description=ABOUT, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"twosides: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("twosides: interrupted", file=sys.stderr)
        sys.exit(130)
