"""What the commands say: the user's words in errors, one sentence each, and nothing hidden."""

import json
import warnings
from dataclasses import fields
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from small_models import save_points
from twosides.cli import in_options
from twosides.cli.training import Training, finetune, train
from twosides.display.terminal import complaint, shown
from twosides.storage.files import commit_folder


def save(folder, **notes):
    return save_points(folder, notes.pop("classes", "ab"), **notes)


def write_config(folder, change):
    """A model's folder whose config.json is `change`d, with checksums that are right."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    weights = (folder / "model.safetensors").read_bytes()

    def write(target):
        (target / "model.safetensors").write_bytes(weights)
        (target / "config.json").write_text(json.dumps(config))

    commit_folder(folder, write)


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("If you trust it, pass trust_code=True", "If you trust it, pass --trust-code"),
        ("count must be at least 1, got 0", "--count must be at least 1, got 0"),
        ("leave labels out for all", "leave --labels out for all"),
        ("give it a scale: guidance=3", "give it a scale: --guidance 3"),
        ("say that: prompt='a red hat'", "say that: --prompt 'a red hat'"),
        ("by number, labels=207,360, but", "by number, --labels 207,360, but"),
        ("negative_prompt=x", "--negative-prompt x"),
        ("Sampler(grid=Karras(rho=7.0))", "Sampler(grid=Karras(rho=7.0))"),
        ("the seed of 3 samples", "the seed of 3 samples"),
        ("sigma_rel must be below 0.288", "sigma_rel must be below 0.288"),
        ("model=x", "model=x"),
    ],
)
def test_arguments_become_options(said, wanted):
    assert in_options(said, ["sample", "runs/letters"]) == wanted
    assert in_options(said, ["--help"]) == said


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_what_training_and_fine_tuning_share_are_options_of_both(cli, command):
    """Each by its own name, in the help and in errors."""
    code, out, _ = cli(command, "--help")
    assert code == 0 and "--training" not in out
    for field in fields(Training):
        option = "--" + field.name.replace("_", "-")
        assert f"{option} " in out or f"{option}\n" in out, option
        assert in_options(f"{field.name} must be 3", [command, "x"]) == f"{option} must be 3"


def test_the_options_of_fine_tuning_differ_in_their_defaults_only():
    """What the objects say: the same settings, but for the three that fine-tuning has of its own."""
    ours, theirs = (signature(f).parameters["training"].default for f in (train, finetune))
    assert (theirs.steps, theirs.batch, theirs.picture_every) == (1000, 8, None)
    assert ours.settings(1.0)["learning_rate"] == 1e-3
    assert theirs.settings(1e-4)["learning_rate"] == 1e-4
    given = Training(devices="2", validate_every=7, steps=9).settings(1.0)
    assert given["devices"] == 2 and given["validate"] and given["validate_every"] == 7
    plain = Training(steps=9).settings(1.0)
    assert plain["devices"] == "auto" and not plain["validate"] and plain["validate_every"] == 9


@pytest.mark.filterwarnings("ignore:the classes of the data are not known:UserWarning")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "m", "--out", "a.npy", "--steps", 0), "--steps must be at least 1"),
        (("sample", "m", "--out", "a.npy", "--seed", -1), "--seed must be non-negative"),
        (("sample", "m", "--out", "a.png"), "--pipeline FOLDER"),
        (("sample", "m", "--out", "many", "--prompt", "a"), "--out FILE"),
        (("sample", "foreign", "--out", "a.npy"), "--trust-code"),
        (("sample", "m", "--out", "a.npy", "--compat", "published"), "--compat"),
        (("evaluate", "foreign", "--data", "ring", "--count", 50), "--trust-code"),
        (("evaluate", "m", "--data", "ring", "--count", 30_000), "--count 20000"),
        (("convert", "foreign", "out"), "--trust-code"),
        (("report", "m", "--steps", 0), "--steps must be"),
    ],
)
def test_errors_name_options(cli, words, message):
    save(Path("m"))
    save(Path("foreign"))
    write_config(Path("foreign"), lambda config: config["network"].update({"class": "no.such:Net"}))
    code, out, err = cli(*words)
    assert code == 2 and message in err + out and "=True" not in err and "Traceback" not in err


def test_the_published_form_is_sampled_by_name(cli):
    save(Path("m"))
    for name in ("dpmpp-3m", "dpmpp-3m-published"):
        words = ("--sampler", name, "--steps", 4, "--count", 2, "--out", f"{name}.npy")
        code, out, err = cli("sample", "m", *words)
        assert code == 0 and f"{name}, 4 steps" in out, err
    assert np.abs(np.load("dpmpp-3m.npy") - np.load("dpmpp-3m-published.npy")).max() > 1e-4


def test_labels_of_words_are_counted_in_folders_too(cli):
    save(Path("m"), classes=["cat", "dog"])
    code, out, err = cli("sample", "m", "--labels", "dog,cat,dog", "--out", "many", "--steps", 2)
    assert code == 0 and "3 samples of (2,)" in out, err


# ---------------------------------------------------------------------------- broken models

VALUES = (None, [], "x", -1.5, {"a": 1}, [[1]])
KEYS = ("network", "output", "schedule", "time", "data_mean", "data_std", "shape", "classes")
KEYS += ("null", "pipeline", "recipe", "training", "logsnr_range", "version", "entropic")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("key", KEYS)
def test_no_config_ends_in_a_traceback(cli, key):
    """Each entry replaced by anything, or left out: drawn, or refused in a sentence."""
    for number, value in enumerate([*VALUES, "absent"]):
        folder = save(Path(f"m{number}"))

        def change(config, value=value):
            config.pop(key, None)
            if value != "absent":
                config[key] = value

        write_config(folder, change)
        asked = ("--steps", 1, "--count", 40)
        for words in (
            ("sample", folder, *asked, "--out", "a.npy", "--guidance", 2),
            ("sample", folder, *asked, "--out", f"many{number}", "--labels", "a"),
            ("evaluate", folder, *asked, "--data", "ring", "--metrics", "mmd"),
            ("report", folder, *asked, "--out", "a.html"),
            ("convert", folder, f"c{number}"),
            ("export", folder, f"e{number}"),
            ("explain", folder),
        ):
            code, _, err = cli(*words)
            assert code in (0, 2) and "Traceback" not in err, (words, value)
            assert code == 0 or err.strip(), (words, value)


@pytest.mark.parametrize("sizes", [[3], [2, 2], [10**9, 10**9], [0], ["2"], [2.0]])
def test_shapes_that_do_not_fit_are_one_sentence(cli, sizes):
    save(Path("m"), shape=sizes)
    code, _, err = cli("sample", "m", "--out", "a.npy", "--count", 1, "--steps", 1)
    assert code == 2 and ("shape" in err) and "m" in err


# ---------------------------------------------------------------------------- hidden signs

HIDDEN = "a\x1b]0;owned\x07\u202e\x9bb\udcff"  # a title, a direction, a C1 control, no text


def test_what_is_hidden_is_shown():
    assert shown(HIDDEN) == r"a\x1b]0;owned\x07\u202e\x9bb\udcff"
    assert shown("Straße ± é 漢字\tλ\n") == "Straße ± é 漢字\tλ\n"
    assert complaint("a\ntwosides: all is well") == "twosides: a\n  twosides: all is well"


def hostile(folder):
    """A model, a picture's folder of classes, arrays and an empty folder, of hostile names."""
    name = HIDDEN.replace("\udcff", "")
    save(
        folder / name,
        classes=[name, "dog"],
        recipe=name,
        training={name: name},
        pipeline={"folder": name, "vae": name},
    )
    for kind in (name, "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(2):
            pixels = np.full((8, 8, 3), 50 * number, np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{number}.png")
    (folder / "photos" / name / "bad.png").write_bytes(b"no picture")
    np.save(folder / f"{name}.npy", np.zeros((50, 3), np.float32))
    (folder / f"{name} empty").mkdir()
    return name


COMMANDS = [
    ("sample", "{}", "--out", "{}.npy", "--steps", "1", "--count", "2"),
    ("sample", "{}", "--out", "{}.png", "--steps", "1", "--count", "2"),
    ("sample", "{}", "--out", "{} many", "--steps", "1", "--count", "2"),
    ("sample", "{}", "--out", "a.npy", "--labels", "cat"),
    ("sample", "{}", "--out", "a.npy", "--prompt", "a hat"),
    ("sample", "{} empty", "--out", "a.npy"),
    ("sample", "{}", "--out", "a.npy", "--sampler", "{}"),
    ("sample", "{}", "--out", "a{}"),
    ("evaluate", "{}", "--data", "ring", "--count", "40", "--metrics", "mmd", "--steps", "1"),
    ("evaluate", "{}.npy", "--data", "ring"),
    ("evaluate", "{} empty", "--data", "ring"),
    ("evaluate", "{}.npy", "--data", "{}"),
    ("report", "{}", "--count", "4", "--steps", "1", "--out", "{}.html"),
    ("report", "{}", "--count", "40", "--data", "photos", "--out", "a.html"),
    ("data", "folder:photos?size=8,max_bad=0.5"),
    ("data", "folder:{}"),
    ("encode-latents", "folder:photos?size=8,max_bad=0.5", "--pipeline", "{}", "--out", "l"),
    ("convert", "{}", "{} converted"),
    ("convert", "{} empty", "x"),
    ("export", "{}", "{} exported"),
    ("explain", "{}"),
    ("explain", "{} empty"),
    ("compare", "{}", "ddim"),
    ("compare", "sd3", "edm", "--plot", "{}.jpg"),
    ("ema", "{}", "--out", "{} averages", "--sigma-rel", "0.1"),
    ("train", "folder:{}", "--out", "{} run"),
    ("train", "{}", "--out", "{} run"),
    ("finetune", "{}", "folder:{}", "--out", "{} run"),
    ("explore", "--model", "{} empty", "--no-browser"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_names_hide_nothing(cli, tmp_path, words, capsys):
    name = hostile(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code, out, err = cli(*(word.replace("{}", name) for word in words))
    assert code in (0, 2) and "Traceback" not in err
    for text in (out, err, *(complaint(each.message) for each in caught)):
        assert all(sign.isprintable() or sign in "\n\t" for sign in text), text
    assert name not in out + err
