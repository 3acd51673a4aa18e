"""What is not installed is named with the extra that installs it, by every command."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {source!r})
sys.argv = ["twosides", *{words!r}]
from twosides.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("blocked", "words", "answer"),
    [
        (["tyro"], ["samplers"], "twosides: the command line needs tyro and rich: "
         "pip install 'twosides[cli]'"),
        (["lightning"], ["train", "ring", "--out", "run"], "twosides[train]"),
        (["starlette"], ["explore", "--no-browser"], "twosides[explore]"),
        (["diffusers"], ["explain", "pipe"], "twosides[diffusers]"),
        (["matplotlib"], ["compare", "sd3", "edm", "--plot", "a.png"], "twosides[train]"),
        (["datasets"], ["data", "hf:there"], "twosides[data]"),
    ],
)  # fmt: skip
def test_the_extra_is_named(tmp_path, blocked, words, answer):
    (tmp_path / "there").mkdir()
    code = BLOCKED.format(blocked=blocked, words=words, source=str(SOURCE))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and answer in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and " needs " in done.stderr and blocked[0] in done.stderr


def test_the_version_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "twosides", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("twosides 0.")
