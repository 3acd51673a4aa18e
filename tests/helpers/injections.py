"""Put numbers that are not finite into trainings, at random steps, and look what they leave.

    python tests/helpers/injections.py --count 200 --seed 0

Each training gets NaN or an infinity in one step: in its data, the network's answer, the loss, the
gradient, the optimizer's moments or the weights. It must end with an error that says so; no file of
its folder may hold such a number; and the same call without the fault must go on from the newest
checkpoint and finish.
"""

import argparse
import contextlib
import csv
import io
import math
import random
import re
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import lightning.pytorch as lightning
import torch

from twosides.data.tasks import Points
from twosides.oracle import GaussianMixture
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.networks import MLP
from twosides.storage.tensors import load_tensors
from twosides.training import guard
from twosides.training.finite import places_not_finite
from twosides.training.fit import Monitor, fit
from twosides.training.settings import Settings

DATA = GaussianMixture.ring(4, std=0.1).sample(40, seed=0).float()
UNSEEN = Points(GaussianMixture.ring(4, std=0.1).sample(16, seed=1).float())
STEPS = 18
KINDS = ("data", "answer", "loss", "gradient", "moments", "weights")


def network():
    """The same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP(2, 8, 1)


class Fault(lightning.Callback):
    """Spoils one step; it is an auxiliary loss of 0, too. Notes where the run began."""

    def __init__(self, kind, step, value=math.nan, micro_batch=0):
        self.kind, self.step, self.value, self.micro_batch = kind, step, value, micro_batch
        self.began, self.now = None, False

    def on_train_start(self, trainer, pl_module):
        self.began = trainer.global_step
        pl_module.denoiser.network.register_forward_hook(self._answer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        micro_batch = batch_idx % pl_module.settings.accumulate
        self.now = trainer.global_step + 1 == self.step and micro_batch == self.micro_batch

    def _answer(self, network, inputs, output):
        if self.now and self.kind == "answer":
            return torch.cat([output[:1].clone().fill_(self.value), output[1:]])

    def __call__(self, denoiser, batch, losses):
        weight = denoiser.network.leave.weight
        if self.now and self.kind == "loss":
            return self.value + 0 * weight.sum()
        if self.now and self.kind == "gradient":
            # sqrt(0) is finite, its slope is not.
            return ((weight - weight.detach()) ** 2).sum().sqrt()
        return 0 * weight.sum()

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.now = False
        if trainer.global_step != self.step or self.kind not in ("moments", "weights"):
            return
        self.step = 0
        weight = pl_module.denoiser.network.leave.weight
        with torch.no_grad():
            if self.kind == "weights":
                weight[0, 0] = self.value
            else:
                trainer.optimizers[0].state[weight]["exp_avg"][0, 0] = self.value


def files_not_finite(folder):
    """What of a run's folder holds NaN or infinities; levels of the noise may be infinite."""
    bad = [path for path in folder.rglob("*.safetensors") if places_not_finite(load_tensors(path))]
    for path in folder.rglob("*.csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        values = [v for row in rows for k, v in row.items() if v and not k.startswith("logsnr")]
        if not all(math.isfinite(float(value)) for value in values):
            bad.append(path)
    return [str(path.relative_to(folder)) for path in bad]


def settings_of(choice):
    """A short run with everything on that writes files, each at its own pace."""
    return Settings(
        STEPS, 4, warmup=1,
        accumulate=choice.choice([1, 1, 2]),
        precision=choice.choice(["32-true", "32-true", "bf16-mixed", "bf16-true"]),
        checkpoint_every=choice.randint(1, 8),
        log_every=choice.randint(1, 9),
        picture_every=choice.randint(2, 7),
        validate_every=choice.randint(2, 9),
        snapshot_every=choice.choice([None, choice.randint(1, 6)]),
    )  # fmt: skip


def waiting(waits):
    """A guard that looks seldom, as on a device, where a look makes the host wait."""
    start = guard.Guard.on_train_start

    def later(self, trainer, pl_module):
        start(self, trainer, pl_module)
        self.waits = True

    changed = mock.patch.object(guard.Guard, "on_train_start", later)
    return changed if waits else contextlib.nullcontext()


def inject(seed, folder):
    """One training of a seed; AssertionError for what it leaves."""
    choice, folder = random.Random(seed), Path(folder)
    settings, kind = settings_of(choice), choice.choice(KINDS)
    step, value = choice.randint(1, STEPS), choice.choice([math.nan, math.inf, -math.inf])
    unseen = choice.choice([None, UNSEEN])
    named = f"seed {seed}, {value} in {kind} of step {step}, {settings.precision}"
    x, drawn = DATA.clone(), []
    if kind == "data":
        x[choice.randrange(len(x))] = value

    def draw(denoiser):
        drawn.append(not places_not_finite(denoiser.state_dict()))
        return b"picture"

    def run(data, fault):
        monitor = Monitor(validation=unseen, draw=draw)
        options = {"auxiliary": fault, "callbacks": [fault], "monitor": monitor}
        with contextlib.redirect_stderr(io.StringIO()):  # without the bar
            return fit(network(), Points(data), "flow-matching", folder, settings, **options)

    fault = Fault(kind, step, value, choice.randrange(settings.accumulate))
    said = ""
    with waiting(choice.random() < 0.5):
        try:
            run(x, fault)
        except ValueError as error:
            said = str(error)
    assert re.search("(is|are) not finite", said), f"{named}: {said or 'it went on'}"
    at = re.search(r"(loss|gradient) of step (\d+) is not finite", said)
    if kind not in ("moments", "weights"):  # which show one or two steps later
        assert at and (kind == "data" or int(at[2]) == step), f"{named}: {said}"
        assert (at[1] == "gradient") == (kind == "gradient"), f"{named}: {said}"
        step = int(at[2])
    assert not files_not_finite(folder), f"{named}: {files_not_finite(folder)}"
    assert all(drawn), f"{named}: a picture was drawn of it"
    newest = Checkpoints(folder / "checkpoints").newest_folder()
    kept = int(newest.name[5:]) if newest else 0
    last = (step - 1) // settings.checkpoint_every * settings.checkpoint_every
    late = kind in ("moments", "weights")
    assert kept == last or (late and kept < step), f"{named}: went on from {kept}"
    sound = Fault("", 0)
    result = run(DATA, sound)
    assert sound.began == kept, f"{named}: began at {sound.began}, not {kept}"
    assert not places_not_finite(result.state_dict()) and not files_not_finite(folder), named


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    for number in range(asked.count):
        try:
            with tempfile.TemporaryDirectory() as work:
                inject(asked.seed + number, work)
        except AssertionError as error:
            failed += 1
            print(error, flush=True)
        if number % 20 == 19:
            print(f"{number + 1} of {asked.count}", file=sys.stderr, flush=True)
    print(f"seed {asked.seed}: {asked.count} injections, {failed} left something not finite")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
