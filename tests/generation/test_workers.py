"""Shards of samples: the same bytes whatever the number of processes and interruptions."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import twosides as ts
from small_models import save_points
from twosides.cli import main
from twosides.generation.request import Request
from twosides.generation.shards import Job
from twosides.generation.workers import Place, launcher_place, sample_shards
from twosides.sampling.presets import samplers
from twosides.storage import models

OPTIONS = {"steps": 60, "batch": 16, "shard": 20, "seed": 5}
WORDS = "--steps 60 --batch 16 --shard 20 --seed 5".split()
COUNT = 1210
FEW = {"count": 90, "steps": 6, "batch": 16, "shard": 20, "seed": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_points(tmp_path_factory.mktemp("models") / "model", "abc")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What one process makes, without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "samples"
    finish(model, folder)
    return folder


@pytest.fixture(scope="module")
def few(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few") / "samples"
    sample_shards(model, folder, **FEW)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def numbers(folder):
    return np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def start(model, out, *words, launcher=("-m", "twosides.cli"), **options):
    command = [sys.executable, *launcher, "sample", str(model), "--out", str(out)]
    command += ["--count", str(COUNT), *WORDS, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=heeds_interrupts,
        **options,
    )


def heeds_interrupts():
    """What a shell starts in the background, and all that it starts, may be deaf to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(model, out, **options):
    child = start(model, out, **options)
    printed, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "1210 samples of (2,) in 61 shards" in printed
    assert [path.name for path in out.glob(".*")] == []


def shards(out):
    return len(list(out.glob("*.sha256")))


# ------------------------------------------------------------------ what is in the files


def test_shards_are_the_samples_of_their_numbers(model, whole):
    """Sample i is that of (seed, i) and of class i mod 3, to rounding in another batch."""
    x = numbers(whole)
    assert x.shape == (COUNT, 2) and x.dtype == np.float32
    rows = [0, 17, 20, 777, COUNT - 1]
    labels = torch.tensor([i % 3 for i in rows])
    expected = ts.sample(
        ts.load(model), (5, 2), steps=60, seed=5, indices=rows, class_labels=labels
    )
    np.testing.assert_allclose(x[rows], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_checksums_and_the_run_are_as_documented(model, whole):
    names = [f"shard-{k:05d}.npy" for k in range(61)]
    assert sorted(content(whole)) == sorted(
        ["run.json", *names, *(f"{name}.sha256" for name in names)]
    )
    for name in names:
        digest = hashlib.sha256((whole / name).read_bytes()).hexdigest()
        assert (whole / f"{name}.sha256").read_text() == f"{digest}  {name}\n"
    run = json.loads((whole / "run.json").read_text())
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert run["model"]["model.safetensors"] == weights and run["device"] == "cpu"
    assert {key: run[key] for key in OPTIONS} == OPTIONS


def test_the_summary_has_the_statistics_of_all_numbers(model, few):
    result = sample_shards(model, few, **FEW)
    x = numbers(few).astype(np.float64)
    assert (result.made, result.absent) == (0, 0)
    assert result.mean == pytest.approx(x.mean(), rel=1e-12)
    assert result.std == pytest.approx(x.std(), rel=1e-12)
    assert (result.low, result.high) == (x.min(), x.max())
    assert "90 samples of (2,) in 5 shards, 5 of them there before; mean" in str(result)


def test_labels_guidance_and_other_samplers(model, tmp_path):
    options = {"labels": "cab", "guidance": 1.5, "sampler": "ddpm", "schedule": "cosine(-9, 9)"}
    sample_shards(model, tmp_path / "out", 9, steps=4, shard=4, seed=1, **options)
    denoiser = ts.guidance.classifier_free(ts.load(model), 1.5, null={"class_labels": 3})
    options = {"sampler": "ddpm", "schedule": "cosine(-9, 9)", "seed": 1, "steps": 4}
    expected = ts.sample(denoiser, (9, 2), class_labels=torch.tensor([2, 0, 1] * 3), **options)
    np.testing.assert_allclose(numbers(tmp_path / "out"), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", samplers)
def test_a_job_goes_to_another_process_unchanged(name):
    schedule = ts.Cosine(-9, 9)
    request = Request(name, schedule=schedule, labels="ab", count=10)
    job = Job(request, Path("/model"), Path("/out"))
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


# ------------------------------------------------------------------ processes and interruptions


def test_three_processes_write_the_same_bytes(model, whole, tmp_path):
    told = []
    result = sample_shards(
        model, tmp_path / "out", COUNT, devices=3, progress=lambda *now: told.append(now), **OPTIONS
    )
    assert content(tmp_path / "out") == content(whole) and result.made == 61
    assert told[-1] == (COUNT, COUNT) and [done for done, _ in told] == sorted(
        {done for done, _ in told}
    )


def test_torchrun_writes_the_same_bytes(model, whole, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "-m"]
    finish(model, tmp_path / "out", launcher=(*launcher, "twosides.cli"))
    assert content(tmp_path / "out") == content(whole)


def test_killed_and_interrupted_runs_continue_to_the_same_bytes(model, whole, tmp_path):
    """SIGKILL to all, SIGKILL to the first alone, Ctrl-C: no process is left, and no shard lost."""
    out = tmp_path / "out"
    for stop, more in (("group", 2), ("first", 5), ("interrupt", 3)):
        child, before = start(model, out, "--devices", "2"), shards(out)
        wait_for(lambda least=before + more: shards(out) >= least)
        others = children(child.pid)
        if stop == "first":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL if stop == "group" else signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert child.returncode == (130 if stop == "interrupt" else -signal.SIGKILL), err
        assert "Traceback" not in err and len(others) == 2
        wait_for(lambda pids=others: not any(map(alive, pids)), 10)
    assert "twosides: interrupted" in err and before + 3 <= shards(out) < 61
    kept = {path.name: path.stat().st_ino for path in out.glob("*.sha256")}
    finish(model, out)
    assert content(out) == content(whole)
    assert kept.items() <= {path.name: path.stat().st_ino for path in out.iterdir()}.items()


def test_a_process_that_dies_ends_all(model, tmp_path):
    pids = []

    def kill(done, total):
        if not pids:
            pids.extend(children(os.getpid()))
            os.kill(pids[0], signal.SIGKILL)

    with pytest.raises(ChildProcessError, match=r"process [01] of 2 failed.*SIGKILL.*continues"):
        sample_shards(model, tmp_path / "out", COUNT, devices=2, progress=kill, **OPTIONS)
    assert len(pids) == 2 and not any(map(alive, pids))


def test_a_full_disk_is_one_clear_line(model, tmp_path, monkeypatch, capsys):
    """A limit on the size of files stands in for it; the shards do not fit, run.json does."""
    out, words = tmp_path / "out", "--count 1210 --devices 2 --shard 600 --steps 3".split()
    monkeypatch.setattr(sys, "argv", ["twosides", "sample", str(model), "--out", str(out), *words])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed, err = capsys.readouterr()
    assert stop.value.code == 2 and not printed
    assert "of 2 failed: " in err and "could not write the file" in err and "Traceback" not in err
    assert "no half of it was left" in err and [p.name for p in out.iterdir()] == ["run.json"]


def test_damaged_shards_are_made_again(model, few, tmp_path):
    out = tmp_path / "out"
    sample_shards(model, out, **FEW)
    data = (out / "shard-00001.npy").read_bytes()
    (out / "shard-00001.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (out / "shard-00002.npy").unlink()
    (out / "shard-00004.npy.sha256").unlink()  # killed between the two
    (out / ".tmp-shard-00004.npy-4242").write_bytes(b"half")
    with pytest.warns(UserWarning) as told:
        result = sample_shards(model, out, **FEW)
    assert [str(w.message).split("/")[-1][:15] for w in told] == [
        "shard-00001.npy",
        "shard-00002.npy",
    ]
    assert result.made == 3 and content(out) == content(few)


# ------------------------------------------------------------------ errors


def test_another_run_is_refused_with_the_difference(model, few, tmp_path):
    before = content(few)
    for changed, message in (
        ({"seed": 6}, "seed 5, not 6"),
        ({"batch": 8, "steps": 7}, "steps 6, not 7; batch 16, not 8"),
        ({"sampler": "ddpm"}, "sampler 'ddim', not 'ddpm'"),
    ):
        with pytest.raises(ValueError, match=f"holds another run: it has {message}"):
            sample_shards(model, few, **{**FEW, **changed})
    other = tmp_path / "other"
    denoiser = ts.load(model)
    with torch.no_grad():
        next(denoiser.parameters()).add_(1.0)
    models.save(denoiser, other, **models.read_notes(model))
    with pytest.raises(ValueError, match="it has model.model.safetensors"):
        sample_shards(other, few, **FEW)
    assert content(few) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no samples"):
        sample_shards(model, tmp_path / "mine", 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"shard": -1}, "shard must be at least 1"),
        ({"seed": -1}, "non-negative"),
        ({"labels": "abx"}, "unknown class 'x'"),
        ({"labels": ""}, "one letter or more"),
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"devices": 0}, "devices=0 was asked"),
    ],
)
def test_wrong_options_leave_nothing(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        sample_shards(model, tmp_path / "out", **{"count": 3, **options})
    assert not (tmp_path / "out").exists()


def test_samples_that_are_not_finite_are_told(model, tmp_path):
    denoiser = ts.load(model)
    with torch.no_grad():
        next(denoiser.parameters()).fill_(torch.nan)
    models.save(denoiser, tmp_path / "model", shape=[2], classes="abc")
    with pytest.warns(UserWarning, match="shard-00000.npy has samples that are not finite"):
        sample_shards(tmp_path / "model", tmp_path / "out", 3, steps=2)


def test_places_of_launchers():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launcher_place(torchrun) == Place(3, 8, 1)
    assert launcher_place({**torchrun, "WORLD_SIZE": "1", "RANK": "0"}) is None
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}
    assert launcher_place(batch) is None  # the script of a job, which is one process
    assert launcher_place({**batch, "SLURM_STEP_NUM_TASKS": "8"}) == Place(0, 8, 0)


def test_under_a_launcher_each_process_makes_its_share(model, few, tmp_path, monkeypatch):
    told, made = [], []
    for rank in (1, 0):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        made.append(sample_shards(model, tmp_path, progress=lambda *now: told.append(now), **FEW))
    assert [(result.made, result.absent) for result in made] == [(2, 3), (3, 0)]
    assert "made 2 shards, 3 are to come" in str(made[0])
    assert told == [(16, 50), (20, 50), (36, 50), (40, 50), (50, 50)]  # of the first one
    assert content(tmp_path) == content(few)
    with pytest.raises(ValueError, match="2 processes were started by a launcher"):
        sample_shards(model, tmp_path, devices=2, **FEW)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "x.npy", "--devices", "2"), "--devices are for"),
        (("--batch", "2", "--shard", "3"), "--batch, --shard are for"),
        (("--out", "x", "--count", "3", "--guidance", "2", "--labels", "z"), "unknown class 'z'"),
    ],
)
def test_the_commands_errors(model, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["twosides", "sample", str(model), *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
