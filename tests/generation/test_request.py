"""How to sample as one object: made of names once, refused once, the same in another process."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import twosides as ts
from small_models import save_points
from twosides import mixing
from twosides.generation import notes, pipelines, samples, shards, workers
from twosides.generation.request import Request
from twosides.generation.samples import label_tensor
from twosides.generation.shards import Job
from twosides.guidance import classifier_free
from twosides.metrics import command, sources
from twosides.reports import side_by_side
from twosides.sampling.named import sampler_named
from twosides.sampling.presets import samplers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_points(tmp_path_factory.mktemp("models") / "model", ["cat", "dog"])


@pytest.mark.parametrize(
    "request_",
    [
        Request(),
        Request.of("kab2(0.5, 3)", schedule="cosine(-9, 9)", steps=7, count=3),
        Request.of("ddim", noise="churn(0.3)", grid="karras(5)", labels="AB", guidance=1.5),
        Request.of(samplers["unipc"], labels=("cat", "dog"), seed=9),
        Request(prompt="a hat", negative_prompt="mud", guidance=2.0),
        Request(guidance=3.0, rule="rescale(0.5)"),
    ],
)
def test_a_request_comes_back_from_json(request_):
    back = Request.from_json(json.loads(json.dumps(request_.to_json())))
    assert sampler_named(back.sampler) == sampler_named(request_.sampler)
    for name in (
        "steps",
        "schedule",
        "guidance",
        "labels",
        "prompt",
        "negative_prompt",
        "seed",
        "rule",
    ):
        assert getattr(back, name) == getattr(request_, name)
    assert back.count == request_.count


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sampler": "dimm"}, ValueError, "did you mean 'ddim'"),
        ({"sampler": "dimm-published"}, ValueError, "did you mean 'ddim'"),
        ({"sampler": "ddim-published"}, ValueError, "leave -published out"),
        ({"noise": "chrun(1)"}, ValueError, "did you mean 'churn'"),
        ({"grid": "karas"}, ValueError, "did you mean 'karras'"),
        ({"schedule": "cosin"}, ValueError, "did you mean 'cosine'"),
        ({"stesp": 3}, TypeError, "did you mean 'steps'"),
        ({"compat": "published"}, TypeError, "unknown option of sampling 'compat'"),
        ({"steps": 0}, ValueError, "steps must be at least 1, a whole number, got 0"),
        ({"steps": 2.5}, ValueError, "steps must be at least 1, a whole number, got 2.5"),
        ({"seed": -1}, ValueError, "seed must be non-negative"),
        ({"count": 0}, ValueError, "count must be at least 1"),
        ({"guidance": float("nan")}, ValueError, "guidance must be a finite number"),
        ({"guidance": 2.0, "rule": "agp"}, ValueError, "did you mean 'apg'"),
        ({"guidance": 2.0, "rule": "tcfg(1, 2, 3)"}, ValueError, "more numbers than tcfg takes"),
        ({"rule": "apg"}, ValueError, "pass guidance="),
        ({"labels": ""}, ValueError, "no label was given"),
        ({"negative_prompt": "mud"}, ValueError, "what guidance leads away from"),
    ],
)
def test_what_no_model_could_do_is_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        Request.of(**options)


def test_the_published_form_is_a_name():
    assert sampler_named("unipc-published") == samplers["unipc"].published
    assert sampler_named("unipc-published") != samplers["unipc"]


def test_a_request_says_what_is_sampled():
    assert str(Request.of("dpmpp-2m", steps=3, seed=5)) == "dpmpp-2m, 3 steps, seed 5"
    assert "Churn(value=0.3)" in str(Request.of("ddim", noise="churn(0.3)"))


def test_the_options_of_shards_are_those_of_a_request(model, tmp_path):
    with pytest.raises(TypeError, match="did you mean 'steps'"):
        ts.sample_shards(model, tmp_path / "out", 3, stesp=4)
    assert not (tmp_path / "out").exists()
    ts.sample_shards(model, tmp_path / "a", 4, noise="eta(1)", steps=3)
    ts.sample_shards(model, tmp_path / "b", 4, sampler="ddpm", steps=3)
    a, b = (np.load(tmp_path / name / "shard-00000.npy") for name in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_folders_of_earlier_runs_are_continued(model, tmp_path):
    """run.json as it was written when every option was a parameter of its own."""
    out = tmp_path / "out"
    options = {"schedule": "cosine(-9, 9)", "labels": "dog,cat", "guidance": 1.5, "seed": 2}
    ts.sample_shards(model, out, 5, sampler="kab2c", steps=3, shard=4, **options)
    now = json.loads((out / "run.json").read_text())
    before = {
        "format": "twosides samples",
        "version": 1,
        "model": now["model"],
        "count": 5,
        "sampler": "kab2c",
        "steps": 3,
        "schedule": {"type": "Cosine", "logsnr_min": -9.0, "logsnr_max": 9.0, "offset": 0.0},
        "guidance": 1.5,
        "labels": "dog,cat",
        "seed": 2,
        "batch": 256,
        "shard": 4,
        "shape": [2],
        "device": now["device"],
    }
    assert now == before
    plain = Job(Request(count=1), model, out).identity()
    assert plain["guidance"] == 1.0 and plain["schedule"] is None and plain["labels"] is None
    (out / "run.json").write_text(json.dumps(before))
    result = ts.sample_shards(model, out, 5, sampler="kab2c", steps=3, shard=4, **options)
    assert result.made == 0


def test_prompts_are_not_for_shards(model, tmp_path):
    with pytest.raises(ValueError, match="prompted for a .png or .npy file"):
        ts.sample_shards(model, tmp_path / "out", 3, prompt="a hat")


def test_labels_are_letters_or_words():
    assert label_tensor("BAB", "AB").tolist() == [1, 0, 1]
    assert label_tensor("dog,cat", ("cat", "dog")).tolist() == [1, 0]
    assert label_tensor(("dog", "dog"), ("cat", "dog")).tolist() == [1, 1]
    assert label_tensor("", "").tolist() == []
    with pytest.raises(ValueError, match="did you mean 'dog'"):
        label_tensor("dig", ("cat", "dog"))
    with pytest.raises(ValueError, match="the model has no classes"):
        label_tensor("A", "")


def test_no_signature_repeats_the_options():
    rooms = (notes, samples, shards, workers, pipelines, command, sources, side_by_side)
    for room in rooms:
        for function in vars(room).values():
            if inspect.isfunction(function) and function.__module__ == room.__name__:
                names = inspect.signature(function).parameters
                assert len(names) <= 9, function
                assert not {"guidance", "prompt", "noise", "compat"} & names.keys(), function


def test_whole_numbers_of_any_kind():
    made = Request.of(steps=np.int64(7), seed=torch.tensor(3))
    assert (made.steps, made.seed) == (7, 3) and type(made.steps) is int
    assert json.dumps(made.to_json())


@pytest.mark.parametrize("rule", [*mixing.RULES, "rescale(0.3)"])
def test_a_rule_by_its_name_is_that_of_the_library(model, rule, cli):
    """From the command line, into a file and into a folder."""
    words = ("--steps", 4, "--count", 6, "--guidance", 3, "--rule", rule, "--seed", 1)
    code, out, err = cli("sample", model, "--out", "x.npy", *words)
    assert code == 0 and f"guidance 3 by {rule}" in out, err
    denoiser = ts.load(model)
    mixed = mixing.rule_named(rule)
    guided = classifier_free(denoiser, 3.0, null={"class_labels": 2}, rule=mixed)
    labels = torch.tensor([0, 1] * 3)
    where = (
        "cosine(-12, 12)" if rule == "tcfg" else None
    )  # it acts in eps, which is z at pure noise
    told = {"steps": 4, "seed": 1, "schedule": where, "class_labels": labels}
    wanted = ts.sample(guided, (6, 2), **told)
    assert np.allclose(np.load("x.npy"), wanted, atol=1e-6)
    plain = classifier_free(denoiser, 3.0, null={"class_labels": 2})
    assert not torch.allclose(ts.sample(plain, (6, 2), **told), wanted, atol=1e-4)
    code, out, err = cli("sample", model, "--out", "folder", "--devices", 1, *words)
    assert code == 0, err
    (shard,) = Path("folder").glob("*.npy")
    assert np.allclose(np.load(shard), wanted, atol=1e-6)
