"""torch.compile: a compiled network is compiled once for all steps, and a whole run is one graph.

The checks run in a process of their own, because the compiler cannot read the wrappers with which
this suite checks types.
"""

import json
import subprocess
import sys
import weakref

import pytest
import torch

from twosides.denoiser import Denoiser
from twosides.sampling.named import plan
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.sampling.sample import sample
from twosides.schedules import Cosine, FlowMatching

FLOAT64 = torch.float64
SHAPE = (4, 3)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mixing = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=FLOAT64))

    def forward(self, z, t):
        return torch.tanh(z @ self.mixing) + t[:, None] * z


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)


# ---------------------------------------------------------------------------- in a fresh process


def the_network_is_compiled_once():
    """Not per step, not per run, not per sampler or number of steps."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    network = Network()
    compiled = Denoiser(torch.compile(network, backend=counter, fullgraph=True), "v", Cosine())
    for steps in (3, 3, 8):
        for name in ("ddim", "ddpm", "dpmpp-2m-sde", "kab3c", "heun"):
            made = plan(name, Cosine(-9, 9), steps)
            options = {"sampler": made, "seed": 0, "dtype": FLOAT64}
            ours = sample(compiled, SHAPE, **options)
            assert torch.equal(ours, sample(Denoiser(network, "v", Cosine()), SHAPE, **options))
    assert counter.frame_count == 1


def a_whole_run_is_one_graph():
    """With its network inside: no break, no second compilation, the same numbers."""
    from torch._dynamo.testing import CompileCounter

    for name in ("ddim", "ddpm", "dpmpp-2m-sde", "kab3c", "heun", "rk4"):
        counter = CompileCounter()
        made, denoiser = plan(name, Cosine(-9, 9), 4), Denoiser(Network(), "v", FlowMatching())

        def whole(initial, noises, made=made, denoiser=denoiser):
            draws = iter(noises.unbind())
            return run(made, denoiser, initial, lambda: next(draws))

        compiled = torch.compile(whole, backend=counter, fullgraph=True)
        noises = normal(8, *SHAPE)
        for scale in (1.0, -2.0):
            arguments = scale * noises[0], noises[1:]
            assert torch.allclose(compiled(*arguments), whole(*arguments), rtol=0, atol=1e-12)
        assert counter.frame_count == 1, name


def gradients_go_through_a_compiled_run():
    network = Network()
    made, denoiser = plan("dpmpp-2m", Cosine(-9, 9), 4), Denoiser(network, "v", Cosine())
    compiled = torch.compile(lambda z: run(made, denoiser, z), backend="aot_eager", fullgraph=True)
    slopes = [
        torch.autograd.grad(function(normal(*SHAPE)).square().sum(), network.mixing)[0]
        for function in (compiled, lambda z: run(made, denoiser, z))
    ]
    assert torch.allclose(*slopes, rtol=1e-12)


def sampling_alone_does_not_import_the_compiler():
    sample(Denoiser(Network()), SHAPE, seed=0)
    assert "torch._dynamo" not in sys.modules


def one_graph_serves_all_steps_of_the_drop_in_scheduler():
    """One for the first step, which has no past, one for the others; new runs add two at most."""
    from torch._dynamo.testing import CompileCounter

    from twosides.integrations.diffusers import Scheduler

    noise = torch.randn(13, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def driven(scheduler, step, steps, begin):
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(begin)
        z = noise[0]
        for t, fresh in zip(scheduler.timesteps[begin:], noise[1:], strict=False):
            answer = torch.tanh(0.7 * z + t / 1000)
            z = step(answer, t, z, variance_noise=fresh, return_dict=False)[0]
        return z

    for name in ("ddim", "unipc", "dpmpp-2m-sde"):
        torch._dynamo.reset()
        counter = CompileCounter()
        scheduler = Scheduler(name, prediction_type="flow_prediction", shift=3.0)
        compiled = torch.compile(scheduler.step, backend=counter, fullgraph=True)
        counts = []
        for steps, begin in ((12, 0), (12, 3), (9, 0), (7, 2), (12, 0)):
            got = driven(scheduler, compiled, steps, begin)
            expected = driven(scheduler, scheduler.step, steps, begin)
            assert torch.allclose(got, expected, atol=1e-5), name
            counts.append(counter.frame_count)
        assert counts[0] <= 2 and counts[-1] == counts[-2] <= 4, (name, counts)


CHECKS = (
    sampling_alone_does_not_import_the_compiler,
    the_network_is_compiled_once,
    a_whole_run_is_one_graph,
    gradients_go_through_a_compiled_run,
    one_graph_serves_all_steps_of_the_drop_in_scheduler,
)


def main():
    import traceback

    torch.set_num_threads(1)
    failures = {}
    for check in CHECKS:
        try:
            check()
        except Exception:
            failures[check.__name__] = traceback.format_exc()
    print(json.dumps(failures))


@pytest.fixture(scope="module")
def failures():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_compiled(name, failures):
    assert name not in failures, failures[name]


# ---------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", samplers)
def test_only_the_history_that_is_needed_is_alive(name):
    """When the network is asked, of its inputs and answers only what a later row uses is left."""
    made = plan(name, Cosine(-9, 9), 12)
    used = made.x.astype(bool) | made.eps.astype(bool)
    history = max(i - int(used[i].argmax()) for i in range(1, made.nfe + 1))
    asked, answered = [], []

    def alive(references):
        return sum(reference() is not None for reference in references)

    def network(z, t):
        asked.append(weakref.ref(z))
        assert alive(asked) <= history and alive(answered) <= history - 1
        answer = torch.sin(z)
        answered.append(weakref.ref(answer))
        return answer

    sample(Denoiser(network, "u", Cosine()), (2, 2), sampler=made, seed=0)
    assert len(asked) == made.nfe


if __name__ == "__main__":
    main()
