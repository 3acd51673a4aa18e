"""Every way in, on a device without float64, with networks in bfloat16, and with reused buffers."""

import pytest
import torch

import twosides as ts
from pretended import DEVICE, here, pretended
from twosides.distillation.flow_map import FlowMap
from twosides.guidance import autoguidance, classifier_free
from twosides.integrations.azula import ForAzula
from twosides.integrations.kdiffusion import sampler_function
from twosides.schedules import level
from twosides.storage.networks import MLP

SCHEDULE = ts.Cosine(-9, 9)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


def denoiser():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(2, 8, 1, 3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    options = {"data_mean": torch.tensor([0.1, 0.2]), "data_std": 1.5}
    return ts.Denoiser(network, "v", SCHEDULE, **options)


def drawn(name):
    def run(model, device):
        told = {"class_labels": LABELS.to(device), "device": device}
        return ts.sample(model, (4, 2), sampler=name, steps=3, seed=0, **told)

    return run


def guided(model, device):
    both = autoguidance(
        classifier_free(model, 2.0, null={"class_labels": 2}, rescale=0.5), model, 1.5
    )
    return drawn("ddim")(both, device)


def stepped(name):
    def run(model, device):
        integration = pytest.importorskip("twosides.integrations.diffusers")
        config = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000}
        scheduler = integration.Scheduler.from_config(config, sampler=name)
        scheduler.set_timesteps(3, device=device)
        z = X.to(device)
        generator = torch.Generator().manual_seed(0)
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(z, t)
            z = scheduler.step(torch.tanh(shown), t, z, generator=generator).prev_sample
        return scheduler.add_noise(z, X.to(device), scheduler.timesteps[:1].expand(4))

    return run


def trained(recipe):
    def run(model, device):
        generator = torch.Generator().manual_seed(0)
        told = {"generator": generator, "class_labels": LABELS.to(device)}
        loss = ts.recipes[recipe].objective()(model, X.to(device), **told).mean()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    return run


def k_diffusions(model, device):
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.0])
    run = sampler_function("dpmpp-2m-sde", seed=0)
    return run(lambda x, sigma: 0.5 * x / (1 + sigma[:, None]), 10 * X.to(device), sigmas)


def converted(model, device):
    time, told = torch.full((4,), 0.3, device=device), {"class_labels": LABELS.to(device)}
    network = ts.convert(model, output="u", schedule=ts.FlowMatching())
    return network(X.to(device), time, **told)


def asked(model, device):
    time = torch.tensor([0.2, 0.3, 0.5, 0.9]).to(device)
    return model(X.to(device), SCHEDULE.at(time), class_labels=LABELS.to(device)).x


def encoded(model, device):
    told = {"class_labels": LABELS.to(device)}
    noise = ts.encode(model, X.to(device), steps=3, **told)
    return ts.decode(model, noise, **told) - noise.noise


def seen(method):
    def run(model, device):
        half = ts.Measurement(lambda x: x[:, :1], torch.tensor([[0.5]]).to(device), noise=0.1)
        return drawn("ddim")(ts.posterior(model, half, method), device)

    return run


def steered(model, device):
    told = {"class_labels": LABELS.to(device)}
    half = ts.Measurement(lambda x: x[:, :1], torch.tensor([[0.5]]).to(device), noise=1.0)
    return ts.steer(model, (4, 2), half, particles=3, steps=4, seed=0, **told).sample


def mixed(model, device):
    rule = ts.mixing.projected()
    both = classifier_free(model, 2.0, null={"class_labels": 2}, rule=rule)
    return drawn("kab2c")(ts.combined([(both, 1.5), (model, -0.5)]), device)


def mapped(model, device):
    plain = ts.Denoiser(model.network, "u")
    at = "inner.enter" if hasattr(model.network, "inner") else None
    return drawn("ddim")(FlowMap.from_denoiser(plain, at), device)


def tuned(model, device):
    with torch.no_grad():  # smooth enough for a teacher of few calls
        inner = getattr(model.network, "inner", model.network)
        inner.enter.weight[:, 2:] = 0
        inner.leave.weight.mul_(0.3)
    plain = ts.Denoiser(model.network, "v", SCHEDULE)
    told = {"class_labels": LABELS[0].to(device)}
    found = ts.tune(plain, (2, 2), steps=2, budget=5000, seed=0, **told)
    return drawn(found.sampler)(plain, device)


ENTRIES = {
    **{f"sample {name}": drawn(name) for name in ("kab2c", "dpmpp-2m-sde", "heun", "edm")},
    "guidance": guided,
    "log_likelihood": lambda model, device: (
        ts.log_likelihood(model, X.to(device), class_labels=LABELS.to(device), steps=3).nats
    ),
    "sample_adaptive": lambda model, device: ts.sample_adaptive(
        model,
        (4, 2),
        seed=0,
        adaptive=ts.ode.Adaptive(1e-3, 1e-3),
        device=device,
        class_labels=LABELS.to(device),
    ),
    "rollout": lambda model, device: (
        ts.rollout(
            model,
            (4, 2),
            sampler="ddpm",
            steps=3,
            seed=0,
            device=device,
            class_labels=LABELS.to(device),
        ).log_probs
    ),
    "encode, decode": encoded,
    **{f"objective {name}": trained(name) for name in ("sd3", "edm", "min-snr")},
    "k-diffusion's function": k_diffusions,
    "convert": converted,
    "a call": asked,
    **{f"posterior {name}": seen(name) for name in ("mmps", "pigdm", "gaussian", "diffpir")},
    "tilt": lambda model, device: drawn("heun")(
        ts.tilt(model, torch.tensor([0.3, 0.0]).to(device)), device
    ),
    "steer": steered,
    "rules and combined": mixed,
    "flow map": mapped,
    "tune": tuned,
    "azula": lambda model, device: (
        ForAzula(model)(
            X.to(device), torch.tensor(0.3).to(device), class_labels=LABELS.to(device)
        ).mean
    ),
    **{f"Scheduler {name}": stepped(name) for name in ("ddim", "kab2c-sde", "heun")},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_device_without_float64(entry, monkeypatch):
    wanted = ENTRIES[entry](denoiser(), torch.device("cpu"))
    monkeypatch.setattr(level, "WITHOUT_FLOAT64", {DEVICE.type})
    with pretended():
        found = ENTRIES[entry](denoiser().to(DEVICE), DEVICE)
        assert found.device == DEVICE and found.dtype == torch.float32
        found = here(found.detach())
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- other networks


class Reused(torch.nn.Module):
    """A network whose answers lie in one buffer, as those of CUDA graphs and TensorRT do."""

    def __init__(self, network):
        super().__init__()
        self.inner, self.buffers_of = network, {}

    def forward(self, z, time, **told):
        with torch.no_grad():
            answer = self.inner(z, time, **told)
            buffer = self.buffers_of.setdefault(answer.shape, torch.empty_like(answer))
            return buffer.copy_(answer)


class Mixed(torch.nn.Module):
    """A network in bfloat16 whose first parameter is in float32, as Wan's table is."""

    dtype = torch.bfloat16

    def __init__(self, network):
        super().__init__()
        self.scale_shift_table = torch.nn.Parameter(torch.zeros(1))
        self.inner = network.to(torch.bfloat16)

    def forward(self, z, time, **told):
        assert z.dtype == torch.bfloat16
        return self.inner(z, time, **told)


def around(kind):
    made = denoiser()
    made.network = kind(made.network)
    return made


GRADIENTS = ("objective", "posterior mmps", "posterior pigdm", "log_likelihood")


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if not entry.startswith(GRADIENTS)])
def test_a_network_that_reuses_its_output(entry):
    """unsloth #10537, TensorRT-LLM #16095. Gradients go through no such buffer."""
    wanted = ENTRIES[entry](denoiser(), torch.device("cpu"))
    found = ENTRIES[entry](around(Reused), torch.device("cpu"))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_network_in_bfloat16(entry):
    """diffusers #10992: the network says in which dtype it computes, and the state is float32."""
    wanted = ENTRIES[entry](around(lambda network: network.bfloat16().float()), torch.device("cpu"))
    found = ENTRIES[entry](around(Mixed), torch.device("cpu"))
    assert found.dtype == torch.float32 or entry.startswith("objective")
    assert (found - wanted).norm() < 0.15 * wanted.norm()


def test_the_pretended_device_refuses_what_it_should():
    with pretended():
        there = torch.ones(2, device=DEVICE)
        for wrong in (lambda: there.double(), lambda: there.new_zeros(2, dtype=torch.float64)):
            with pytest.raises(TypeError, match="float64"):
                wrong()
        with pytest.raises(RuntimeError, match="mixes"):
            there + torch.ones(2)
