"""The command line: `twosides train | finetune | sample | tune | samplers | recipes | ...`.

A command is a function of this package: its signature is the options and its docstring the
help. Nothing heavy is imported before one runs, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tyro

from twosides.cli.data import data, encode_latents
from twosides.cli.distillation import distill, objectives
from twosides.cli.extras import missing
from twosides.cli.knowledge import compare, demo, explore, recipes, samplers, verify
from twosides.cli.models import convert, explain, export
from twosides.cli.samples import evaluate, report, restore, sample
from twosides.cli.training import ema, finetune, train
from twosides.cli.tuning import tune
from twosides.display.terminal import complaint

GROUPS: dict[str, tuple[Callable[..., Any], ...]] = {
    "begin": (demo, explore),
    "make a model": (data, encode_latents, train, finetune, distill, ema),
    "use it": (sample, restore, tune, evaluate, report),
    "take it elsewhere": (convert, export, explain),
    "look things up": (samplers, recipes, objectives, compare, verify),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)


def _about() -> str:
    """The first lines of the help: what there is, by what it is for."""
    lines = ["Train, sample, convert and compare diffusion and flow-matching models.", ""]
    for purpose, commands in GROUPS.items():
        names = (command.__name__.replace("_", "-") for command in commands)
        lines.append(f"- {purpose}: {', '.join(names)}")  # one line each: the help joins others
    return "\n".join(lines)


def main() -> None:
    """The `twosides` program; errors of use are one clear line and exit status 2."""
    if sys.argv[1:] == ["--version"]:
        from twosides import __version__

        return print(f"twosides {__version__}")
    # Processes that are started from here, by Lightning or multiprocessing say, do not look for
    # modules in the current folder, which may be a stranger's.
    os.environ["PYTHONSAFEPATH"] = "1"
    # A line for those who use the program, not for those who write it.
    warnings.formatwarning = lambda message, *_, **__: complaint(message) + "\n"
    app = tyro.extras.SubcommandApp()
    for command in COMMANDS:
        app.command(command)
    try:
        app.cli(prog="twosides", description=_about(), config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, TypeError, OSError, ImportError) as error:
        said = missing(error) if isinstance(error, ImportError) else str(error)
        print(complaint(in_options(said, sys.argv[1:])), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(complaint("interrupted"), file=sys.stderr)
        sys.exit(130)


def in_options(message: str, words: Sequence[str]) -> str:
    """An error of the library in the words of the command line.

    The library speaks of arguments: "pass trust_code=True", "count must be at least 1", "leave
    labels out". Where the command has an option of that name, this says "--trust-code",
    "--count must be at least 1", "leave --labels out".

    message: what the error says.
    words: what the user typed after `twosides`; the first word is the command.
    """
    commands = {command.__name__.replace("_", "-"): command for command in COMMANDS}
    if not words or words[0] not in commands:
        return message
    options = "|".join(_options(commands[words[0]]))

    def option(found: re.Match[str]) -> str:
        name, value = found["name"].replace("_", "-"), found["value"]
        given = "" if value in (None, "True") else f" {value}"
        return f"{found['leave'] or ''}--{name}{given}"

    value = r"""=(?P<value>'[^']*'|"[^"]*"|[^\s,;:)]+)"""
    after = rf"(?:{value}|(?= must\b)|(?(leave)(?= out\b)|(?!)))"
    return re.sub(rf"(?<![\w.(-])(?P<leave>leave )?(?P<name>{options})\b{after}", option, message)


def _options(command: Callable[..., Any]) -> Iterator[str]:
    """The names of a command's options; a dataclass among them is the options of its fields."""
    for parameter in inspect.signature(command).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if dataclasses.is_dataclass(parameter.default):
                yield from (field.name for field in dataclasses.fields(parameter.default))
            else:
                yield parameter.name
