"""Nothing of a stranger's is imported: neither what a config names nor what lies in a folder."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import twosides as ts
from twosides.cli import main
from twosides.storage import files, models

MARK = "PWNED"
SHADOWS = ("json.py", "signal.py", "numpy.py", "torch.py", "tyro.py", "twosides.py")
TRAIN = ("ring", "--steps", "3", "--batch", "8", "--snapshot-every", "1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    subprocess.run([*program(), "train", *TRAIN, "--out", str(folder)], check=True, timeout=300)
    return folder


def program():
    return [str(Path(sys.executable).with_name("twosides"))]


@pytest.fixture
def poisoned(trained, tmp_path, monkeypatch):
    """A finished run whose model names a class of the attacker's, with a manifest that fits."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    code = f"open({str(tmp_path / MARK)!r}, 'w').close()\nfrom twosides.storage.networks import MLP as Net\n"
    (tmp_path / "hostile_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((run / "model" / "config.json").read_text())
    config["network"]["class"] = "hostile_module:Net"
    (run / "model" / "config.json").write_text(json.dumps(config))
    (run / "model" / files.MANIFEST).unlink()
    files._seal(run / "model", {})
    return run


COMMANDS = {
    "train": lambda run, out: ["train", *TRAIN, "--out", run],
    "train on": lambda run, out: ["train", "ring", "--steps", "3", "--batch", "8", "--out", run],
    "finetune": lambda run, out: ["finetune", run, "ring", "--out", out, "--steps", "1"],
    "sample": lambda run, out: ["sample", run, "--out", f"{out}.npy", "--count", "1"],
    "sample shards": lambda run, out: ["sample", run, "--out", out, "--count", "4"],
    "sample workers": lambda run, out: [
        *("sample", run, "--out", out, "--count", "4", "--shard", "2", "--devices", "2"),
    ],
    "ema": lambda run, out: ["ema", run, "--out", out, "--sigma-rel", "0.1"],
    "evaluate": lambda run, out: ["evaluate", run, "--data", "ring", "--count", "50"],
    "report": lambda run, out: [
        "report",
        run,
        "--out",
        f"{out}.html",
        "--data",
        "ring",
        "--count",
        "50",
    ],
    "convert": lambda run, out: ["convert", run, out],
    "export": lambda run, out: ["export", run, out],
    "explore": lambda run, out: ["explore", "--model", run, "--export", f"{out}.html"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_imports_what_a_model_names(poisoned, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(
        sys, "argv", ["twosides", *map(str, COMMANDS[name](poisoned, tmp_path / "out"))]
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(SystemExit) as stop:
            main()
    said = capsys.readouterr().err + " ".join(str(warning.message) for warning in warned)
    assert stop.value.code == 2, said
    assert not (tmp_path / MARK).exists()
    assert "hostile_module:Net" in said or "another run" in said, said


def test_the_poison_would_be_seen(poisoned, tmp_path):
    models.load(poisoned, trust_code=True)
    assert (tmp_path / MARK).exists()


@pytest.mark.filterwarnings("ignore:the model names its network")
def test_a_finished_run_of_ones_own_class_is_read_without_trust(tmp_path):
    """The class that the caller holds needs no import; __main__ and local ones have none."""
    import torch

    class Own(torch.nn.Module):
        def __init__(self, dim=2):
            super().__init__()
            self.config = {"dim": dim}
            self.linear = torch.nn.Linear(dim, dim)

        def forward(self, z, t):
            return self.linear(z)

    from twosides.data.tasks import Points
    from twosides.training.fit import Settings, fit

    data = Points(torch.zeros(8, 2))
    settings = Settings(steps=2, batch=4)
    with torch.random.fork_rng(devices=[]):
        networks = Own(), Own()
    first, again = (fit(net, data, "flow-matching", tmp_path / "run", settings) for net in networks)
    z = torch.ones(3, 2)
    level = ts.FlowMatching().at(0.5)
    assert torch.equal(first(z, level).x, again(z, level).x)


def unsafe():
    """The environment without what a command run in this process has set for its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}


def shadowed(folder):
    """Modules of names that Python and this package import, which leave a mark if they are run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHADOWS:
        mark = folder / f"{MARK}-{name}"
        (folder / name).write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit(77)\n")
    return folder


@pytest.mark.parametrize("started", ["script", "module"])
def test_no_module_in_a_folder_shadows_an_installed_one(trained, tmp_path, started):
    """With the current folder a stranger's, and the folders that a command is given."""
    import shutil

    here = shadowed(tmp_path / "here")
    shutil.copytree(trained, here / "run")
    shadowed(here / "run")
    first = program() if started == "script" else [sys.executable, "-m", "twosides"]
    if started == "module":
        # Python itself runs a twosides.py in the current folder for -m; -P (docs) prevents that.
        (here / "twosides.py").unlink()
    environment = unsafe()
    sampled = [
        *("sample", "run", "--out", "samples", "--count", "4", "--shard", "2", "--devices", "2"),
        *("--steps", "2"),
    ]
    trained_on = [
        *("train", "ring", "--out", "new", "--steps", "1", "--batch", "4", "--devices", "2"),
        *("--strategy", "ddp", "--checkpoint-every", "1"),
    ]
    for words in [sampled] + [trained_on] * (started == "script"):
        done = subprocess.run(
            [*first, *words], cwd=here, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert not list(here.rglob(f"{MARK}-*"))


def test_the_shadow_would_be_seen(tmp_path):
    here = shadowed(tmp_path / "here")
    subprocess.run([sys.executable, "-c", "import json"], cwd=here, env=unsafe(), check=False)
    assert (here / f"{MARK}-json.py").exists()


def test_a_module_of_ones_own_is_found_in_the_current_folder(tmp_path):
    """`twosides train mytasks:make` with mytasks.py here (terratorch #236)."""
    (tmp_path / "mytasks.py").write_text(
        "from twosides.data.named import task_named\n\n\ndef make():\n    return task_named('ring')\n"
    )
    words = ["train", "mytasks:make", "--out", "run", "--steps", "1", "--batch", "4"]
    done = subprocess.run(
        [*program(), *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
