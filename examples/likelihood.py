"""How likely data are, what noise they belong to, and what the numbers are worth.

python examples/likelihood.py
"""

import torch

import twosides as ts


def main() -> None:
    """Likelihood and inversion of an exact model, so that each can be compared with the truth."""
    model = ts.oracle.GaussianMixture.ring(8, radius=1.0, std=0.1)
    inside, outside = model.sample(100, seed=0), torch.zeros(1, 2, dtype=torch.float64)
    exact = model.log_prob(inside, ts.FlowMatching().at(0.0))
    found = ts.log_likelihood(model, inside, steps=40)
    print(f"log-density of its samples: {found.nats.mean():.3f}, exactly {exact.mean():.3f}")
    centre = ts.log_likelihood(model, outside, steps=40).nats
    print(f"of the middle of the ring: {float(centre):.1f}")

    for sampler in ("ddim", "leapfrog"):
        encoded = ts.encode(model, inside, sampler=sampler, steps=40)
        gap = (ts.decode(model, encoded) - inside).abs().max()
        print(f"{sampler}, there and back: {gap:.0e}")


if __name__ == "__main__":
    main()
