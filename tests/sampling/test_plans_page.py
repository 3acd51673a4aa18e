"""docs/plans.md: its NumPy and JAX run plans as twosides does."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.sampling.named import plan
from twosides.sampling.run import run
from twosides.schedules import Cosine, FlowMatching

PAGE = (Path(__file__).parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")
EXPORT, RUNNER, EXAMPLE, *JAX = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
NAMES = ("kab2", "dpmpp-2m", "ddpm", "edm", "dpmpp-2m-sde", "unipc-3", "langevin")
SCHEDULES = {"flow-matching": FlowMatching(), "cosine": Cosine(-12, 12)}
# What the JAX part of the page is put to beyond its own example, in a process without torch.
CHECK = """
for stem in {stems}:
    plan = json.loads(Path(stem + ".json").read_text())
    stored = np.load(stem + ".expected.npz")
    noises, expected = stored["noises"], stored["expected"]
    for function, table in ((run, plan), (run_scan, np.load(stem + ".npz"))):
        made = jax.jit(lambda noises: function(table, denoise, noises))(jnp.asarray(noises))
        assert np.abs(made - expected).max() <= 1e-12 * max(np.abs(expected).max(), 1), stem
assert "torch" not in sys.modules
"""


def network(z, t):
    return torch.tanh(2 * z) - t.reshape(-1, 1) * z


def ours(made):
    """A plan's noises and result, in twosides."""
    noises = np.random.default_rng(1).standard_normal((made.noise.shape[1], 16, 2))
    draws = iter(torch.from_numpy(noises[1:]))
    denoiser = Denoiser(network, "u", FlowMatching())
    state = run(made, denoiser, torch.from_numpy(noises[0]), lambda: next(draws))
    return noises, state.numpy() / made.alpha[-1]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """What is defined after the NumPy part of the page has run, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(EXPORT + RUNNER + EXAMPLE, scope)
    return scope


def test_the_runner_has_at_most_ten_lines():
    body = RUNNER[RUNNER.index("def run") :]
    assert len(body.strip().splitlines()) <= 10


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_the_numpy_runner_is_our_run(name, schedule, page):
    made = plan(name, SCHEDULES[schedule], 9)
    noises, expected = ours(made)
    theirs = page["run"](page["json"].loads(made.to_json()), page["denoise"], noises)
    assert np.abs(theirs - expected).max() <= 1e-12 * max(np.abs(expected).max(), 1)


def test_the_pages_jax_is_our_run(page):
    stems = []
    for name in NAMES:
        made = plan(name, FlowMatching(), 9)
        noises, expected = ours(made)
        stems.append(name)
        Path(f"{name}.json").write_text(made.to_json(), encoding="utf-8")
        made.to_npz(f"{name}.npz")
        np.savez(f"{name}.expected.npz", noises=noises, expected=expected)
    script = "import sys\nfrom pathlib import Path\n" + RUNNER + EXAMPLE + "".join(JAX)
    script += CHECK.format(stems=stems)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
