"""CONTRIBUTING.md's seven patches, applied to a copy: each changes one file, and is seen at once."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATCHES = dict(
    re.findall(r"\*\*An? (\w+)\*\*(?:(?!\*\*An? ).)*?```diff\n(.*?)```", PAGE, flags=re.S)
)

# Run on the copy, by one process for all seven: what commands and explorer say, and a check of each
# new thing against another way to make it.
LOOK = """
import contextlib, dataclasses, io, json, sys
import torch
import twosides as ts
from twosides import cli
from twosides.explorer import names
from twosides.reports import catalogue
from twosides.sampling.grids import GRIDS
from twosides.sampling.noise import STOCHASTICITIES, DDIMEta, Eta, Step, convert
from twosides.sampling.named import sampler_named
from twosides.sampling.solvers import SOLVERS
from twosides.storage import plans
from twosides.storage.networks import MLP

assert ts.__file__.startswith(sys.argv[1]), ts.__file__

def say(*words):
    sys.argv, said = ["twosides", *words], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        with contextlib.suppress(SystemExit):
            cli.main()
    return said.getvalue()

ts.save(ts.Denoiser(MLP()), "model", shape=[2], task="ring8")
flow, solver = ts.FlowMatching(), SOLVERS["midpoint"]()
sampler = ts.Sampler(solver=solver)
plans.save_sampler("mine.json", sampler)
assert sampler_named("mine.json") == sampler
with open("wrong.json", "w") as file:
    file.write(json.dumps({"format": "twosides.sampler", "version": 1, "sampler": {"type": "No"}}))
step = Step.between(flow, 0.6, 0.5)
quadratic, output = ts.schedules.schedule_named("quadratic"), ts.outputs.OUTPUTS["half-u"]
times = torch.linspace(0, 1, 9, dtype=torch.float64)
square = ts.schedules.FromFunctions(lambda t: 1 - t**2, lambda t: t**2)
fresh = STOCHASTICITIES["fresh"](0.2)
shifted = GRIDS["shifted-time"].logsnrs(flow, 6)
print(json.dumps({
    "commands": {
        "sampler": say("samplers", "--markdown"),
        "solver": say("sample", "model", "--sampler", "wrong.json"),
        "grid": say("sample", "model", "--grid", "nope"),
        "noise": say("sample", "model", "--noise", "nope"),
        "schedule": say("compare", "ddim", "ddpm", "--schedule", "nope"),
        "output": say("convert", "model", "out", "--output", "nope"),
        "recipe": say("compare", "sd3", "nope"),
    },
    "table": catalogue.markdown(catalogue.rows(["flow-matching", "u-cosine"])),
    "explorer": {
        "sampler": dict(names.SAMPLERS), "recipe": dict(names.RECIPES),
        "schedule": dict(names.SCHEDULES), "output": dict(names.OUTPUTS),
    },
    "errors": {
        "sampler": float(abs(
            ts.plan("ddpm-half", flow, 5).noise - ts.plan("ddpm(0.5)", flow, 5).noise).max()),
        "solver": float(max(abs(
            dataclasses.replace(sampler, stochasticity=noise).plan(s, 7).matrix()
            - dataclasses.replace(
                sampler, stochasticity=noise, solver=ts.solvers.RungeKutta("midpoint", "u")
            ).plan(s, 7).matrix()).max()
            for s in (flow, ts.Cosine(-9, 9)) for noise in (ts.noise.Deterministic(), Eta(0.7)))),
        "grid": float(abs(shifted[1:-1]
            - ts.grids.ShiftedGrid(ts.grids.UniformTime(), 3).logsnrs(flow, 6)[1:-1]).max()),
        "noise": float(abs(convert(convert(fresh, DDIMEta, step), type(fresh), step).value - 0.2)),
        "schedule": float(max(abs(quadratic.time(quadratic.logsnr(times)) - times).max(),
            abs(quadratic.dalpha(times) + 2 * times).max(),
            abs(quadratic.alpha(times) - square.alpha(times)).max())),
        "output": float(abs(output.kappa(flow.at(0.3)) - ts.outputs.OUTPUTS["u"].kappa(
            flow.at(0.3)) / 4)),
        "recipe": ts.compare(ts.recipes["u-cosine"], ts.recipes["v-cosine"]).difference,
    },
}))
"""
NAMES = {
    "sampler": "ddpm-half",
    "solver": "Midpoint",
    "grid": "shifted-time",
    "noise": "fresh",
    "schedule": "quadratic",
    "output": "half-u",
    "recipe": "u-cosine",
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a copy of the package says once all seven are applied to it, each alone to one file."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    for kind, patch in PATCHES.items():
        (folder / f"{kind}.diff").write_text(patch, encoding="utf-8")
        command = ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", f"{kind}.diff"]
        alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, f"{kind}: {done.stderr}"
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_seven_and_each_changes_one_file():
    assert PATCHES.keys() == NAMES.keys()
    files = [re.findall(r"^\+\+\+ b/(\S+)$", patch, flags=re.M) for patch in PATCHES.values()]
    assert all(len(each) == 1 for each in files)
    assert len({each[0] for each in files}) == 7


@pytest.mark.parametrize("kind", NAMES)
def test_the_command_line_has_it(seen, kind):
    assert re.search(rf"\b{NAMES[kind]}\b", seen["commands"][kind]), seen["commands"][kind]


def test_the_tables_of_the_documentation_have_it(seen):
    """They are what these commands print; other kinds have no table."""
    assert re.search(r"^\| ddpm-half \|.*\| yes \|", seen["commands"]["sampler"], flags=re.M)
    assert re.search(r"^\| u-cosine \|", seen["table"], flags=re.M)


@pytest.mark.parametrize("kind", ["sampler", "recipe", "schedule", "output"])
def test_the_explorer_offers_it(seen, kind):
    assert NAMES[kind] in seen["explorer"][kind]


@pytest.mark.parametrize("kind", NAMES)
def test_it_is_what_it_says(seen, kind):
    """Against another way to the same; a recipe must differ from the one beside it."""
    error = seen["errors"][kind]
    assert error > 1e-3 if kind == "recipe" else error < 1e-9


def test_a_name_is_new():
    for kind, name in NAMES.items():
        for path in (ROOT / "src").rglob("*.py"):
            assert f'"{name}"' not in path.read_text(encoding="utf-8"), (kind, path)
