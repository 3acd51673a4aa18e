"""`twosides tune` on a model's folder: files that are samplers, a page, a check, and "auto"."""

import json
import re

import pytest
import torch

import twosides as ts
from twosides import cli
from twosides.sampling.named import sampler_named
from twosides.sampling.solvers import Tabled
from twosides.storage.networks import MLP
from twosides.tuning.sources import Wish, source_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of a few seconds' training, so that there is something to gain."""
    folder, generator = tmp_path_factory.mktemp("model") / "ring", torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ts.Denoiser(MLP())
    data = ts.oracle.GaussianMixture.ring(8, std=0.1).sample(4000, seed=3).float()
    objective = ts.recipes["flow-matching"].objective()
    optimizer = torch.optim.Adam(denoiser.parameters(), 4e-3)
    for _ in range(300):
        x = data[torch.randint(len(data), (128,), generator=generator)]
        loss = objective(denoiser, x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ts.save(denoiser, folder, shape=[2], task="ring8")
    return folder


def say(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["twosides", *map(str, words)])
    cli.main()
    return capsys.readouterr().out


def test_it_writes_samplers_and_a_page_and_sample_uses_them(folder, monkeypatch, capsys, tmp_path):
    told = say(monkeypatch, capsys, "tune", folder, "--steps", 4, 5, "--n", 8, "--budget", 30000)
    assert len(re.findall(r"network evaluations", told)) == 2
    own = folder.with_name("ring-tuned")
    page = (own / "report.html").read_text(encoding="utf-8")
    assert "<h2>4 calls</h2>" in page and "<h2>5 calls</h2>" in page
    assert not re.findall(r"\{\{\w+\}\}", page) and "kab2" in page
    kept = len(list((own / "teacher").iterdir()))
    assert kept > 0
    notes = json.loads((own / "5.json").read_text(encoding="utf-8"))["tuned"]
    assert notes["accepted"] and isinstance(sampler_named(str(own / "5.json")).solver, Tabled)
    assert notes["after"]["median"] < notes["before"]["median"]

    out = tmp_path / "a.npy"
    told = say(
        monkeypatch, capsys, "sample", folder, "--sampler", "auto", "--steps", 5, "--out", out
    )
    assert "5.json" in told and out.exists()
    told = say(
        monkeypatch, capsys, "sample", folder, "--sampler", "auto", "--steps", 9, "--out", out
    )
    assert "kappa-shift Adams" in told

    told = say(monkeypatch, capsys, "tune", folder, "--check", own / "5.json", "--n", 8)
    assert "still proven" in told


def test_words_that_do_not_fit_are_told(folder):
    for wish, why in (
        (Wish(8, size=64), "leave size out"),
        (Wish(8, prompts=("a hat",)), "takes no prompts"),
        (Wish(8, guidance=3.0), "guidance needs a model trained with dropped classes"),
        (Wish(8, labels="A"), "no classes"),
    ):
        with pytest.raises(ValueError, match=why):
            source_of(folder, wish)


def test_a_pipelines_network_is_a_source(tmp_path):
    import diffusers

    from pipelines import of, plain_unet2d

    with torch.random.fork_rng(devices=[]):
        of(diffusers.DDPMPipeline, "flow", unet=plain_unet2d)().save_pretrained(tmp_path / "ddpm")
    source = source_of(tmp_path / "ddpm", Wish(3))
    z = torch.zeros(3, *source.shape)
    level = ts.schedules.Level(*(torch.full((3,), value).double() for value in (0.0, 0.5, 0.5)))
    assert source.denoiser(z, level, **source.conditioning).x.shape == z.shape
