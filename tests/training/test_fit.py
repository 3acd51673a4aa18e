import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import StackDataset

from twosides.data.named import task_named
from twosides.data.tasks import Points, Task
from twosides.oracle import GaussianMixture
from twosides.storage import models
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.trees import load_tree
from twosides.training.fit import Batches, Settings, fit, loss_curve
from twosides.training.run import train_task

DATA = GaussianMixture.ring(4, std=0.1)


def ring(count=512):
    network = {"class": "MLP", "config": {"dim": 2, "width": 32, "depth": 1}}
    return Task(Points(DATA.sample(count, seed=0).float()), (2,), network)


def train(folder, steps=30, **settings):
    chosen = {"batch": 16, "checkpoint_every": 10, "seed": 3, **settings}
    return train_task(ring(), folder, "flow-matching", steps=steps, **chosen)


def state(folder):
    newest = Checkpoints(Path(folder) / "checkpoints").newest()
    assert newest is not None
    return newest


def test_a_run_leaves_a_model_logs_and_a_curve(tmp_path):
    result = train(tmp_path / "run")
    back = models.load(tmp_path / "run")
    for (name, a), b in zip(result.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    config = models.read_config(tmp_path / "run")
    assert config["recipe"] == "flow-matching" and config["training"]["steps"] == 30
    assert config["ema"] == {"sigma_rel": 0.1}
    steps, losses = loss_curve(tmp_path / "run")
    assert len(steps) == 3 and all(loss > 0 for loss in losses)
    assert list((tmp_path / "run").glob("tensorboard/*/events*"))


def test_settings_of_another_run_are_refused(tmp_path):
    train(tmp_path / "run", steps=10)
    with pytest.raises(ValueError, match="another run.*seed 3, not 4"):
        train(tmp_path / "run", steps=10, seed=4)


def test_finished_runs_return_at_once_and_more_steps_train_on(tmp_path):
    first = train(tmp_path / "run", steps=20)
    (tmp_path / "run/checkpoints").rename(tmp_path / "checkpoints")  # nothing to train from
    again = train(tmp_path / "run", steps=20)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    (tmp_path / "checkpoints").rename(tmp_path / "run/checkpoints")
    longer, whole = train(tmp_path / "run", steps=30), train(tmp_path / "whole", steps=30)
    assert all(
        torch.equal(a, b) for a, b in zip(longer.parameters(), whole.parameters(), strict=True)
    )


def test_resuming_is_exact(tmp_path):
    """Interrupted after 20 of 30 steps and continued: bitwise the uninterrupted run."""
    train(tmp_path / "whole")
    part = tmp_path / "part"
    train(part, steps=30)
    # What a kill between steps 20 and 30 leaves behind.
    os.rename(part / "checkpoints/step-00000030", tmp_path / "gone")
    (part / "model").rename(tmp_path / "gone-too")
    train(part)
    (_, a), (_, b) = state(tmp_path / "whole"), state(part)
    for key in a["state_dict"]:
        assert torch.equal(a["state_dict"][key], b["state_dict"][key]), key
    name = next(key for key in a["callbacks"] if "Averaging" in key)
    averages = [tree["callbacks"][name] for tree in (a, b)]
    assert averages[0]["steps"] == averages[1]["steps"] == 30
    for key, value in averages[0]["weights"].items():
        assert torch.equal(value, averages[1]["weights"][key]), key
    moments = [tree["optimizer_states"][0]["state"][0]["exp_avg"] for tree in (a, b)]
    assert torch.equal(*moments)


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path):
    train(tmp_path / "run")
    (tmp_path / "run/model").rename(tmp_path / "model")
    newest = tmp_path / "run/checkpoints/step-00000030/tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="step-00000030"):
        train(tmp_path / "run")
    again, before = models.load(tmp_path / "run"), models.load(tmp_path / "model")
    for a, b in zip(again.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_batches_are_functions_of_seed_and_step():
    data, settings = ring().data, Settings(batch=8, seed=1)

    def rows(start, count, rank=0, world=1):
        found = []
        for item in Batches(data, settings, start, rank, world):
            found.append(item["batch"]["x"])
            if len(found) == count:
                return found

    whole = rows(0, 130)  # more than an epoch of 64 batches
    assert torch.equal(torch.cat(rows(70, 5)), torch.cat(whole[70:75]))
    ranks = [rows(3, 1, rank, 2)[0] for rank in (0, 1)]
    assert torch.equal(torch.stack(ranks, 1).flatten(0, 1), whole[3])
    epoch = torch.cat(whole[:64])
    assert len({tuple(row) for row in epoch.tolist()}) == 512


def test_class_dropout_uses_the_null_label(tmp_path):
    from twosides.losses.recipes import recipes
    from twosides.randomness import PerSample
    from twosides.training.fit import Module

    settings = Settings(null={"class_labels": 9}, dropout=0.3)
    module = Module(recipes["sd3"].denoiser(lambda z, t: z), recipes["sd3"].objective(), settings)
    dropped = 0
    for step in range(60):
        labels = {"class_labels": torch.zeros(64, dtype=torch.long)}
        out = module._drop(labels, PerSample(0, range(64), stream=step))["class_labels"]
        assert set(out.unique().tolist()) <= {0, 9}
        dropped += int((out == 9).sum())
    assert dropped / (60 * 64) == pytest.approx(0.3, abs=0.03)


CHILD = """
import sys, warnings
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_fit import train
from pathlib import Path
train(Path(sys.argv[1]), steps=4000, checkpoint_every=5)
"""


def test_kill_9_and_the_same_command_again(tmp_path):
    """SIGKILL at arbitrary moments: a complete checkpoint is found, and never an older one."""
    run, last = tmp_path / "run", -1
    code = CHILD.format(tests=str(Path(__file__).parent))
    for attempt in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while child.poll() is None:
            steps = sorted(run.glob("checkpoints/step-*/manifest.json"))
            if steps and int(steps[-1].parent.name[5:]) >= last + 20 + 7 * attempt:
                break
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors.decode()
        step, tree = state(run)
        assert step > last and tree["global_step"] == step
        last = step


def test_failed_writes_are_clear_and_lose_nothing(tmp_path):
    """A file-size limit stands in for a full disk: the run stops with the reason, resumes later."""
    train(tmp_path / "run", steps=30)
    (tmp_path / "run/checkpoints/step-00000030").rename(tmp_path / "gone")
    (tmp_path / "run/model").rename(tmp_path / "gone-too")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    ) + CHILD.format(tests=str(Path(__file__).parent)).replace("4000, checkpoint_every=5", "30")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode != 0 and "could not write" in done.stderr
    assert state(tmp_path / "run")[0] == 20
    train(tmp_path / "run", steps=30)
    whole = load_tree(tmp_path / "gone")["state_dict"]
    for key, value in state(tmp_path / "run")[1]["state_dict"].items():
        assert torch.equal(value, whole[key])


def test_tasks_by_name(tmp_path, monkeypatch):
    assert task_named("ring").shape == (2,)
    module = tmp_path / "my_tasks.py"
    module.write_text("from test_fit import ring\ndef wrong(): return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert task_named("my_tasks:ring").shape == (2,)
    with pytest.raises(TypeError, match="is no data: pass a Dataset"):
        task_named("my_tasks:wrong")
    with pytest.raises(ValueError, match="unknown data set"):
        task_named("glyfs")
    with pytest.raises(ValueError, match="steps must be"):
        Settings(steps=0)
    spec = tmp_path / "network.json"
    spec.write_text(json.dumps({"class": "MLP", "config": {"width": 8, "depth": 1}}))
    result = train_task(ring(), tmp_path / "run", "edm", network_file=spec, steps=3, batch=4)
    assert result.network.config["width"] == 8 and result.output.name == "F(0.5)"


def test_a_clock_that_cannot_tell_all_levels_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="cannot tell all of that"):
        train_task(ring(), tmp_path / "run", "edm", steps=3, time="t")
    assert not (tmp_path / "run").exists()


def test_a_run_killed_before_its_model_was_written_writes_it(tmp_path):
    whole = train(tmp_path / "run", steps=20)
    (tmp_path / "run/model").rename(tmp_path / "gone")  # what a kill after the last step leaves
    again = train(tmp_path / "run", steps=20)
    assert models.read_config(tmp_path / "run")["training"]["steps"] == 20
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_that_fails_later_keeps_its_logs(tmp_path):
    x = torch.zeros(31, 2)
    x[30] = torch.nan
    network = models.build_network(task_named("ring").network, seed=0)
    settings = Settings(steps=80, batch=1, log_every=1)
    with pytest.raises(ValueError, match="is not finite"):
        fit(network, StackDataset(x=x), "flow-matching", tmp_path, settings)
    assert 1 <= len(loss_curve(tmp_path)[0]) < 80 and (tmp_path / "run.json").exists()
