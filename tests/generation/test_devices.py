"""Networks compute on the accelerator: on a pretended one, whose tensors have no numbers."""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twosides.data.named import task_named
from twosides.denoiser import Denoiser
from twosides.generation import samples
from twosides.generation.notes import read_notes
from twosides.generation.request import Request
from twosides.generation.workers import _devices
from twosides.metrics.command import evaluate
from twosides.reports.side_by_side import eps_errors
from twosides.storage import devices, models
from twosides.storage.devices import device_named
from twosides.storage.networks import MLP


class Landing(TorchFunctionMode):
    """What comes from the pretended device to the CPU is zeros, and is counted."""

    landed = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.cpu, Tensor.__float__) and args[0].is_meta:
            self.landed += 1
            return torch.zeros(args[0].shape) if func is Tensor.cpu else 0.0
        return func(*args, **(kwargs or {}))


@pytest.fixture
def pretended(monkeypatch):
    """Torch finds two devices of a kind."""
    monkeypatch.setattr(devices, "accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with Landing() as landing:
        yield landing


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Denoiser(MLP(dim=2, width=8, depth=1, classes=3), data_std=2.0)
    models.save(denoiser, folder, shape=[2], classes=["cat", "dog"], null={"class_labels": 2})
    return folder


def test_names_of_devices_without_an_accelerator():
    assert device_named() == device_named("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="did you mean 'cuda'"):
        device_named("cuad")
    with pytest.raises(ValueError, match="device=mps was asked, but torch finds none here"):
        Request(device="mps")


def test_names_of_devices_with_one(pretended):
    assert device_named() == torch.device("meta") and device_named("cpu").type == "cpu"
    assert device_named("meta:1").index == 1
    with pytest.raises(ValueError, match="there are 2, numbered from 0"):
        device_named("meta:2")
    with pytest.raises(ValueError, match="pass device=meta"):
        device_named("mps")


@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"labels": "cat"}])
def test_a_model_is_sampled_on_the_accelerator(model, pretended, options):
    x = samples.model_samples(model, Request(steps=3, count=5, **options), batch=2)
    assert x.shape == (5, 2) and x.device.type == "cpu" and not x.any()
    assert pretended.landed == 3
    x = samples.model_samples(model, Request(steps=3, count=5, device="cpu", **options))
    assert x.std() > 0.1 and pretended.landed == 3


def test_prompts_go_along(model, pretended):
    """What a prompt tells the network comes from a text encoder on another device."""
    notes, heard = read_notes(model), []

    class Network(torch.nn.Linear):
        def forward(self, z, t, text):
            heard.append(text.device.type)
            return super().forward(z)

    text = samples.TextConditioning({"text": torch.ones(1, 3)}, {"text": torch.zeros(1, 3)})
    with torch.random.fork_rng(devices=[]):
        denoiser = Denoiser(Network(2, 2)).to(device_named())
    samples.drawer(denoiser, notes, Request(guidance=2.0, labels="cat"), text=text)
    draw = samples.drawer(
        denoiser, samples.Notes(model, (2,), (), {}, {}), Request(steps=2, guidance=2.0), text=text
    )
    assert draw(range(3)).is_meta and set(heard) == {"meta"}


def test_evaluate_and_the_errors_of_a_report_compute_there(model, pretended):
    table = evaluate(model, "ring", Request(steps=2, count=64, labels="cat"))
    assert pretended.landed == 1 and "64 samples" in table
    with torch.random.fork_rng(devices=[]):
        ring = Denoiser(MLP(dim=2, width=8, depth=1), data_std=2.0).to(device_named())
    assert eps_errors(ring, task_named("ring"), 0) and pretended.landed > 1


def test_shards_have_a_process_on_each(pretended):
    assert _devices("auto", None) == ["meta:0", "meta:1"] and _devices("meta:1", 1) == ["meta:1"]
    assert _devices("auto", 1) == ["meta:0"] and _devices("cpu", 3) == ["cpu"] * 3
    with pytest.raises(ValueError, match="devices=3 was asked, but device=auto has 2 here"):
        _devices("auto", 3)
