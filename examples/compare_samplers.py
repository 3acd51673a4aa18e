"""How far samplers land from the exact end of their trajectory, on a model that is known exactly.

python examples/compare_samplers.py [sampler ...]
"""

import sys

import torch

import twosides as ts

CALLS = (5, 10, 20)


def main(*names: str) -> None:
    """A table of errors: a row for each sampler, a column for each number of network calls."""
    model = ts.oracle.GaussianMixture.ring(8, radius=1.0, std=0.1)
    init = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"init": init, "dtype": torch.float64, "schedule": "cosine(-12, 12)"}
    exact = ts.sample(model, (500, 2), sampler="rk4", steps=100, **options)
    print(f"{'calls':>16}", *(f"{calls:8}" for calls in CALLS))
    for name in names or ("ddim", "flow-heun", "dpmpp-2m", "unipc", "deis", "kab2c"):
        sampler = ts.samplers[name]
        errors = []
        for calls in CALLS:
            steps = calls // sampler.nfe_per_step
            x = ts.sample(model, (500, 2), sampler=sampler, steps=steps, **options)
            errors.append(float((x - exact).norm() / exact.norm()))
        print(f"{name:>16}", *(f"{error:8.3f}" for error in errors))


if __name__ == "__main__":
    main(*sys.argv[1:])
