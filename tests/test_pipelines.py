"""The tiny pipelines that samplers are tried on: they run, and twice the same."""

import pytest
import torch

from pipelines import CASES

# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.mark.parametrize("name", CASES)
def test_native_pipelines_run_and_repeat(name):
    case = CASES[name]
    runs = [case.run(case.build(), 4) for _ in range(2)]
    assert runs[0].is_floating_point() and runs[0].isfinite().all()
    assert torch.equal(*runs)
