"""What the end of a run needs is tried before its first step; how a run is stopped."""

import signal

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn

import races
from twosides.data.tasks import Points, Task, dataset_of
from twosides.oracle import GaussianMixture
from twosides.storage import models, owner
from twosides.storage.networks import MLP
from twosides.storage.tensors import load_tensors
from twosides.training.fit import Monitor, fit
from twosides.training.log import METRICS, read_rows
from twosides.training.run import train_task
from twosides.training.settings import Settings

DATA = GaussianMixture.ring(4, std=0.1).sample(40, seed=0).float()
SETTINGS = Settings(4, 4, warmup=1, checkpoint_every=2, log_every=1)


class Steps(lightning.Callback):
    """Counts the steps that are begun."""

    count = 0

    def on_train_batch_start(self, *_):
        self.count += 1


class Own(MLP):
    """At the top of a module, so that anybody can import it."""


def network(kind=MLP, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(2, 8, 1, **config)


def train(net, folder, data=None, settings=SETTINGS, **options):
    return fit(net, Points(DATA) if data is None else data, "sd3", folder, settings, **options)


class Plain(nn.Module):
    """Without annotations that are checked, which compilers cannot trace."""

    def __init__(self, dim=2, width=8, depth=1):
        super().__init__()
        self.config = {"dim": dim, "width": width, "depth": depth}
        self.enter, self.leave = nn.Linear(dim, width), nn.Linear(width, dim)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, z, time):
        hidden = self.enter(z) + time[:, None]
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        return self.leave(hidden)


def test_nanogpt_325_a_compiled_network(tmp_path):
    """It is trained compiled; checkpoints and model are those of the plain network, bit for bit."""
    ran = []

    def backend(graph, inputs):
        ran.append(graph)
        return graph.forward

    compiled = torch.compile(network(Plain), backend=backend)
    train(compiled, tmp_path / "compiled")
    assert ran and type(compiled).__name__ == "OptimizedModule"
    plain = train(network(Plain), tmp_path / "plain")
    saved = load_tensors(tmp_path / "compiled/model/model.safetensors")
    assert saved.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.allclose(saved[name], value, atol=1e-6), name
    assert models.read_config(tmp_path / "compiled")["network"]["class"] == f"{__name__}:Plain"
    # Only a block is compiled; and it goes on where the plain run ended.
    net = network(Plain)
    net.blocks[0] = torch.compile(net.blocks[0], backend=backend)
    train(net, tmp_path / "plain", settings=Settings(6, 4, warmup=1, checkpoint_every=2))


class Incomplete(MLP):
    """Its config leaves out what it is made of."""

    def __init__(self, dim=2, width=16, depth=1, classes=0):
        super().__init__(dim, width, depth, classes)
        self.config = {"dim": dim}


class Wrong(MLP):
    def __init__(self, dim=2, width=16, depth=1, classes=0):
        super().__init__(dim, width, depth, classes)
        self.config = {"dimensions": dim}


@pytest.mark.parametrize("kind", [Incomplete, Wrong])
def test_nanogpt_325_a_config_that_builds_another_network(tmp_path, kind):
    steps = Steps()
    with pytest.raises(ValueError, match="model of this run could not be written|does not fit"):
        train(network(kind), tmp_path, callbacks=[steps])
    assert steps.count == 0
    # The corrected config is no other run.
    train(network(Own), tmp_path)


def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path):
    """As a kill before the first line of the log leaves it: to a corrected command and to itself."""
    train(network(), tmp_path / "run")
    before = (tmp_path / "run/run.json").read_bytes()
    for name, classes in (("same", 0), ("other", 2)):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / "run.json").write_bytes(before)
        train(network(classes=classes), tmp_path / name)


def test_where_nothing_locks_another_run_is_never_taken_for_one_that_trained_nothing(
    tmp_path, monkeypatch
):
    """It may be the one that begins at this moment, on another machine."""
    monkeypatch.setattr(owner.fcntl, "lockf", races.refuse)
    owner.claim(tmp_path / "run.json", {"denoiser": "another"}, "run")
    with pytest.warns(UserWarning, match="no locks"), pytest.raises(ValueError, match="another"):
        train(network(), tmp_path)


def test_a_class_that_nobody_can_import_is_saved_with_a_warning(tmp_path):
    class Inside(MLP):
        pass

    net = network(Inside)
    with pytest.warns(UserWarning, match="test_rehearsal:Inside, which nobody can import"):
        result = train(net, tmp_path / "inside")
    back = models.load(tmp_path / "inside", like=net)
    for a, b in zip(result.parameters(), back.parameters(), strict=True):
        assert torch.equal(a, b)
    train(network(Own), tmp_path / "top")  # no warning


def test_pictures_validation_and_notes_are_tried_before_the_first_step(tmp_path):
    def draw(denoiser):
        raise KeyError("low")

    for monitor, message in (
        (Monitor(draw=draw), "no picture of this network can be drawn, KeyError"),
        (Monitor(Points(torch.zeros(3, 5))), "validation data cannot be measured"),
    ):
        steps = Steps()
        with pytest.raises(ValueError, match=message):
            train(network(), tmp_path, callbacks=[steps], monitor=monitor)
        assert steps.count == 0
    assert not (tmp_path / "run.json").exists()


def test_k_diffusion_115_a_task_of_any_keys(tmp_path):
    """Super-resolution: no pictures without the small image, and it goes on after a stop."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {}
            self.layer = nn.Conv2d(2, 1, 3, padding=1)

        def forward(self, z, time, low):
            return self.layer(torch.cat([z, low], 1))

    columns = {"x": torch.linspace(-1, 1, 512).view(8, 1, 8, 8), "low": torch.zeros(8, 1, 8, 8)}
    description = {"class": f"{__name__}:Both2", "config": {}}
    globals()["Both2"] = Both
    Both.__name__ = Both.__qualname__ = "Both2"
    task = Task(dataset_of(columns), (1, 8, 8), description)
    options = {"trust_code": True, "batch": 4, "picture_every": 2, "warmup": 1}
    train_task(task, tmp_path, "sd3", steps=3, **options)
    train_task(task, tmp_path, "sd3", steps=5, **options)
    assert not (tmp_path / "samples").exists()


class Raises(lightning.Callback):
    """A signal in the middle of a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step + 1 == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_saves_where_it_stops(tmp_path, capfd, number, end):
    settings = Settings(8, 4, warmup=1, checkpoint_every=100, log_every=1)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(end) as caught:
        train(network(), tmp_path / "run", settings=settings, callbacks=[Raises(3, number)])
    assert end is KeyboardInterrupt or caught.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    name = "SIGTERM" if number == signal.SIGTERM else "SIGINT"
    assert f"stopped by {name} at step 3" in capfd.readouterr().err
    assert (tmp_path / "run/checkpoints/step-00000003").is_dir()
    assert not (tmp_path / "run/model").exists()
    assert [row["step"] for row in read_rows(tmp_path / "run" / METRICS)] == ["1", "2", "3"]
    a = train(network(), tmp_path / "run", settings=settings)
    b = train(network(), tmp_path / "whole", settings=settings)
    for name, value in b.state_dict().items():
        assert torch.equal(value, a.state_dict()[name]), name
    logs = [(tmp_path / run / METRICS).read_bytes() for run in ("run", "whole")]
    assert logs[0] == logs[1]


def test_so_many_more_minutes_each_time(tmp_path, capfd):
    settings = Settings(3, 4, warmup=1, minutes=1e-9)
    for step in (1, 2):
        train(network(), tmp_path, settings=settings)
        assert f"stopped by the time limit at step {step}" in capfd.readouterr().err
        assert models.read_config(tmp_path)["training"]["steps"] == step
        assert (tmp_path / f"checkpoints/step-{step:08d}").is_dir()
    train(network(), tmp_path, settings=settings)
    assert models.read_config(tmp_path)["training"]["steps"] == 3
    capfd.readouterr()
    (tmp_path / "checkpoints").rename(tmp_path / "gone")
    train(network(), tmp_path, settings=settings)  # finished: nothing to train from is needed
