"""The scripts of examples/ run, in seconds, and stay short enough to read."""

import re
import runpy
import warnings

import pytest
import torch

import pages

SCRIPTS = sorted((pages.ROOT / "examples").glob("*.py"))
SAYS = {
    "two_moons.py": r"dpmpp-2m-sde, 10 steps: 0\.\d+",
    "compare_samplers.py": r"kab2c +0\.\d+ +0\.\d+ +0\.0\d+",
    "pipeline_sampler.py": r"picture\.png: \(16, 16\), kab2c, 8 steps",
    "likelihood.py": r"leapfrog, there and back: \de-1\d",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_an_example_runs_and_says_what_it_found(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script)])
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of diffusers, about its own future
        runpy.run_path(str(script), run_name="__main__")
    assert re.search(SAYS[script.name], capsys.readouterr().out)


def test_there_are_four_and_each_is_short():
    assert [script.name for script in SCRIPTS] == sorted(SAYS)
    for script in SCRIPTS:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 70
