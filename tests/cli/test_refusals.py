"""Every command refuses bad input in one sentence that names what was wrong, and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_words import save

from program import run


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save(Path("m"))
    Path("folder").mkdir()
    Path("text").write_text("no model")
    return lambda *words: run(capsys, monkeypatch, *words)


REFUSED = [
    # A file or folder that is not there, or is something else.
    ("sample nowhere --out a.npy", "nowhere"),
    ("sample folder --out a.npy", "folder"),
    ("sample text --out a.npy", "text"),
    ("sample m --out folder/a.xyz", ".xyz"),
    ("convert nowhere c", "nowhere"),
    ("convert text c", "text"),
    ("export nowhere e", "nowhere"),
    ("explain nowhere", "nowhere"),
    ("report nowhere --out r.html", "nowhere"),
    ("evaluate nowhere --data ring", "nowhere"),
    ("ema nowhere --out e --sigma-rel 0.1", "nowhere"),
    ("finetune nowhere ring --out f", "nowhere"),
    ("data folder:nowhere", "nowhere"),
    ("data folder:folder", "folder"),
    ("train folder:folder --out t", "folder"),
    ("train ring --out t --network nowhere.json", "nowhere.json"),
    # Names that there are not.
    ("sample m --out a.npy --sampler dimm", "dimm"),
    ("sample m --out a.npy --grid karas", "karas"),
    ("sample m --out a.npy --schedule cosin", "cosin"),
    ("compare ddim dimm", "dimm"),
    ("convert m c --output vv", "vv"),
    ("convert m c --time tt", "tt"),
    ("train ring --out t --recipe sd33", "sd33"),
    ("train ring --out t --optimizer adamm", "adamm"),
    ("train ring --out t --decay cos", "cos"),
    ("evaluate m --data ring --metrics fidd", "fidd"),
    # Numbers that make no sense.
    ("sample m --out a.npy --steps -1", "--steps"),
    ("sample m --out a.npy --steps x", "--steps"),
    ("sample m --out a.npy --count -1", "--count"),
    ("sample m --out a.npy --seed -1", "--seed"),
    ("sample m --out a.npy --guidance nan", "guidance"),
    ("sample m --out a.npy --guidance inf", "guidance"),
    ("sample m --out a.npy --noise churn(nan)", "nan"),
    ("sample m --out a.npy --schedule cosine(nan,1)", "nan"),
    ("compare ddim ddpm --steps -1", "steps"),
    ("compare sd3 edm --data-std nan 1", "nan"),
    ("train ring --out t --steps -1", "steps"),
    ("train ring --out t --batch 0", "batch"),
    ("train ring --out t --learning-rate nan", "learning"),
    ("train ring --out t --seed -1", "seed"),
    ("train ring --out t --minutes nan", "minutes"),
    ("train ring --out t --dropout nan", "dropout"),
    ("evaluate m --data ring --count -1", "count"),
    ("report m --out r.html --steps -1", "--steps"),
    # Options and commands that there are not.
    ("sample m --out a.npy --stepz 3", "--stepz"),
    ("trian ring", "trian"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[words for words, _ in REFUSED])
def test_what_is_refused_is_named(cli, words, message):
    before = {path.name for path in Path().iterdir()}
    code, _, err = cli(*words.split())
    assert code not in (0, None) and message in err and "Traceback" not in err, err
    assert not {path.name for path in Path().iterdir()} - before - {"t", "f"}


@pytest.mark.parametrize(
    ("missing", "words", "extra"),
    [
        ("lightning", "train ring --out t", "train"),
        ("diffusers", "explain folder", "diffusers"),
        ("starlette", "explore", "explore"),
        ("uvicorn", "explore", "explore"),
    ],
)
def test_a_missing_extra_is_named(missing, words, extra, tmp_path):
    """As where it was never installed, in a process that has imported nothing: what to install."""
    (tmp_path / "folder").mkdir()
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom twosides.cli import main; main()"
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and f"pip install 'twosides[{extra}]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
