"""What can be attached to a training, and what it is trained on."""

import dataclasses
import itertools
from dataclasses import dataclass

import lightning.pytorch as lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from twosides.data.tasks import Points
from twosides.denoiser import Denoiser
from twosides.losses.objective import Objective
from twosides.losses.recipes import recipes
from twosides.oracle import GaussianMixture
from twosides.randomness import PerSample
from twosides.schedules import FlowMatching
from twosides.storage import models
from twosides.storage.networks import MLP
from twosides.storage.trees import load_tree
from twosides.training.batches import Batches
from twosides.training.fit import Monitor, fit
from twosides.training.log import METRICS, SPEED, Rows, loss_curve, read_rows
from twosides.training.settings import Settings
from twosides.training.validation import BINS, VALIDATION

DATA = GaussianMixture.ring(4, std=0.1).sample(48, seed=0).float()
SETTINGS = Settings(steps=6, batch=8, checkpoint_every=3, log_every=2, warmup=2, accumulate=2)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(2, 16, 2)


def state(folder, step=6):
    return load_tree(folder / f"checkpoints/step-{step:08d}")["state_dict"]


class Bins(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("logsnr", torch.zeros(8, dtype=torch.float64))


@dataclass(frozen=True)
class Adaptive(Objective):
    bins: nn.Module | None = None

    def observe(self, losses):
        assert self.bins is not None and losses.loss.shape == losses.error.shape == (8,)
        assert losses.loss.dtype == torch.float64
        self.bins.calls += 1
        self.bins.logsnr.copy_(losses.logsnr)


def test_an_objective_observes_the_whole_batch_once_a_step(tmp_path):
    recipe, denoiser = recipes["sd3"], recipes["sd3"].denoiser(network())
    objective = Adaptive(recipe.weighting, recipe.density, bins=Bins())
    fit(denoiser, Points(DATA), objective, tmp_path, SETTINGS)
    drawn = recipe.density.logsnr(PerSample(0, range(8), stream=6).strata())
    found = state(tmp_path)
    assert int(found["bins.calls"]) == 6 and torch.equal(found["bins.logsnr"], drawn)
    assert not any("bins" in name for name in models.load(tmp_path).state_dict())
    # Continued from a checkpoint, it goes on with the state that was saved.
    objective = Adaptive(recipe.weighting, recipe.density, bins=Bins())
    longer = dataclasses.replace(SETTINGS, steps=9)
    denoiser = recipe.denoiser(network())
    fit(denoiser, Points(DATA), objective, tmp_path, longer)
    assert int(state(tmp_path, 9)["bins.calls"]) == 9


class Align(nn.Module):
    """Hidden states should tell the data, as in REPA."""

    def __init__(self, block):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.project, self.hidden = nn.Linear(16, 2), []
        block.register_forward_hook(lambda block, inputs, out: self.hidden.append(out))

    def forward(self, denoiser, batch, losses):
        return ((self.project(self.hidden.pop()) - batch["x"]) ** 2).mean()


def test_an_auxiliary_loss_is_added_trained_and_logged(tmp_path):
    net = network()
    align = Align(net.blocks[0])
    before = align.project.weight.detach().clone()
    fit(net, Points(DATA), "sd3", tmp_path / "with", SETTINGS, auxiliary=align)
    fit(network(), Points(DATA), "sd3", tmp_path / "without", SETTINGS)
    assert not torch.equal(align.project.weight, before)
    found = state(tmp_path / "with")
    assert torch.equal(found["auxiliary.project.weight"], align.project.weight)
    name = "denoiser.network.enter.weight"
    assert not torch.equal(found[name], state(tmp_path / "without")[name])
    assert all(float(row["auxiliary"]) > 0 for row in read_rows(tmp_path / "with" / METRICS))
    saved = models.load(tmp_path / "with").state_dict()
    assert not any("project" in name for name in saved)


def test_only_what_requires_a_gradient_is_trained_and_averaged(tmp_path):
    denoiser = Denoiser(network(), "u", FlowMatching())
    denoiser.requires_grad_(False)
    denoiser.network.leave.requires_grad_(True)
    frozen = {k: v.clone() for k, v in denoiser.state_dict().items() if "leave" not in k}
    result = fit(denoiser, Points(DATA), "sd3", tmp_path, SETTINGS)
    for name, value in frozen.items():
        assert torch.equal(result.state_dict()[name], value), name
    tree = load_tree(tmp_path / "checkpoints/step-00000006")
    assert set(tree["callbacks"]["Averaging"]["weights"]) == {
        "network.leave.weight",
        "network.leave.bias",
    }
    assert len(tree["optimizer_states"][0]["state"]) == 2
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        denoiser.requires_grad_(False)
        fit(denoiser, Points(DATA), "sd3", tmp_path / "none", SETTINGS)


class Count:
    """An endless stream of numbered points."""

    def items(self, start):
        for number in itertools.count(start):
            yield {"x": DATA[number % len(DATA)], "number": number}


class Endless(IterableDataset):
    def __iter__(self):
        return Count().items(0)


def numbers(data, steps=3, rank=0, world=1, **settings):
    chosen = Settings(batch=12, **settings)
    loader = DataLoader(
        Batches(data, chosen, 5, rank, world),
        batch_size=None,
        generator=torch.Generator(),
        num_workers=chosen.workers,
    )
    found = {}
    for item in itertools.islice(loader, steps * chosen.accumulate):
        rows = zip(item["places"], item["batch"]["number"].tolist(), strict=True)
        found |= {(item["step"], place): number for place, number in rows}
    return found


@pytest.mark.parametrize("settings", [{}, {"accumulate": 3}, {"accumulate": 2, "workers": 2}])
def test_a_stream_is_read_in_its_order_by_any_number_of_processes(settings):
    whole = {(step, place): step * 12 + place for step in (5, 6, 7) for place in range(12)}
    assert numbers(Count(), **settings) == whole
    shared = [numbers(Count(), rank=rank, world=2, **settings) for rank in (0, 1)]
    assert shared[0] | shared[1] == whole and not shared[0].keys() & shared[1].keys()


def test_a_stream_that_ends_says_so(tmp_path):
    class Short:
        def items(self, start):
            return iter([{"x": DATA[0]}] * 10)

    with pytest.raises(ValueError, match="ended before sample 10"):
        fit(network(), Short(), "sd3", tmp_path, SETTINGS)


def test_validation_measures_the_average_by_level(tmp_path):
    """The written errors are those of the saved model, at the levels of each bin."""
    settings = dataclasses.replace(SETTINGS, validate_every=3)
    unseen = Monitor(Points(DATA[:43]))
    result = fit(network(), Points(DATA), "edm", tmp_path, settings, monitor=unseen)
    rows = read_rows(tmp_path / VALIDATION)
    assert [int(row["step"]) for row in rows] == [3] * BINS + [6] * BINS
    own = PerSample(0, range(43))
    bins, inside = torch.arange(43) % BINS, own.uniform()
    density = recipes["edm"].density
    logsnr = density.logsnr((bins + inside) / BINS)
    level = result.schedule.level(logsnr)
    eps = own.normal((2,))
    with torch.no_grad():
        estimate = result(level.mix(DATA[:43], eps), level)
    errors = ((estimate.eps - eps).double() ** 2).mean(1)
    for number, row in enumerate(rows[BINS:]):
        mine = logsnr[bins == number]
        low, high = float(row["logsnr_low"]), float(row["logsnr_high"])
        assert bool(((mine >= low) & (mine <= high)).all())
        assert float(row["error"]) == pytest.approx(float(errors[bins == number].mean()), rel=1e-3)
    logged = [row["validation"] for row in read_rows(tmp_path / METRICS) if row["validation"]]
    assert len(logged) == 2 and (tmp_path / "validation.png").read_bytes()[1:4] == b"PNG"
    # Measuring changes nothing.
    fit(network(), Points(DATA), "edm", tmp_path / "without", settings)
    assert loss_curve(tmp_path) == loss_curve(tmp_path / "without")
    with pytest.raises(TypeError, match="validation data have a length"):
        endless = Monitor(Endless())
        fit(network(), Points(DATA), "edm", tmp_path / "x", settings, monitor=endless)


class Told(lightning.Callback):
    steps = 0

    def on_train_batch_end(self, trainer, *_):
        self.steps = trainer.global_step

    def state_dict(self):
        return {"steps": self.steps}


def test_callbacks_come_before_the_checkpoint_and_loggers_hear(tmp_path):
    class Ear(lightning.loggers.Logger):
        name, version, heard = "ear", 0, {}

        def log_metrics(self, metrics, step=None):
            self.heard.setdefault(step, {}).update(metrics)

        def log_hyperparams(self, *_, **__):
            pass

    ear = Ear()
    settings = dataclasses.replace(SETTINGS, peak_tflops=1e-3)
    options = {"callbacks": [Told()], "monitor": Monitor(loggers=[ear])}
    fit(network(), Points(DATA), "sd3", tmp_path, settings, **options)
    tree = load_tree(tmp_path / "checkpoints/step-00000003")
    assert tree["callbacks"]["Told"] == {"steps": 3}
    assert sorted(ear.heard) == [2, 4, 6]
    row = read_rows(tmp_path / METRICS)[-1]
    assert ear.heard[6]["loss"] == float(row["loss"])
    assert float(row["learning_rate"]) == 1e-3 and float(row["gradient_norm"]) > 0
    speed = read_rows(tmp_path / SPEED)[-1]
    # 2nm for a matrix (n, m): forward, its gradient, and its input's but for the first.
    sizes = {name: p.numel() for name, p in network().named_parameters() if p.ndim == 2}
    flops = 6 * sum(sizes.values()) - 2 * sizes["enter.weight"]
    rate = float(speed["samples_per_second"])
    assert float(speed["tflops"]) == pytest.approx(rate * flops / 1e12, rel=1e-9)
    assert float(speed["mfu"]) == pytest.approx(float(speed["tflops"]) / 1e-3, rel=1e-9)


def test_half_a_line_of_the_log_is_not_read(tmp_path):
    rows = Rows(tmp_path / "logs/x.csv", ["loss"])
    rows.rewind(0)
    rows.append(120, {"loss": 0.25})
    rows.append(130, {"loss": 0.5}, {"loss": 0.75})
    whole = (tmp_path / "logs/x.csv").read_bytes()
    for end in range(len(whole)):
        (tmp_path / "logs/x.csv").write_bytes(whole[:end])
        for row in read_rows(tmp_path / "logs/x.csv"):
            assert (row["step"], row["loss"]) in {("120", "0.25"), ("130", "0.5"), ("130", "0.75")}
    (tmp_path / "logs/x.csv").write_bytes(whole)
    rows.rewind(125)
    assert (tmp_path / "logs/x.csv").read_text() == "step,loss\n120,0.25\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 10, "accumulate": 4}, "batch of 10 cannot be shared by 1 processes with 4"),
        ({"strategy": "fdsp"}, "unknown strategy 'fdsp'; did you mean 'fsdp'"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"workers": -1}, "workers must not be negative, got -1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and finite, got inf"),
        ({"minutes": 0}, "minutes must be positive and finite, got 0"),
        ({"clip_gradients": 0}, "clip_gradients must be positive, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"sigma_rel": 0.5}, "got 0.5"),
        ({"devices": 0}, "devices must be 'auto' or at least 1, got 0"),
        ({"validate_every": 0}, "validate_every must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_what_is_trained_is_said_once(tmp_path):
    data, denoiser = Points(DATA), Denoiser(network())
    objective = recipes["sd3"].objective()
    with pytest.raises(ValueError, match="an objective does not say"):
        fit(network(), data, objective, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="time: a Denoiser has its own"):
        fit(denoiser, data, objective, tmp_path, SETTINGS, time="t")
