import os

# One thread per test run keeps two-core machines responsive and sums reproducible.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("quick", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Nothing is read from or left in the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("TWOSIDES_CACHE", str(folder))


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """The program in this process and an empty folder: cli(*words) is (status, stdout, stderr)."""
    from program import run

    monkeypatch.chdir(tmp_path)
    return lambda *words: run(capsys, monkeypatch, *words)


@pytest.fixture(autouse=True)
def _global_rng_untouched():
    """The library never touches the global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state())
