"""What the documentation says is run: the README's Python in order, and its commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pages

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.S)
SHELL = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
]


def test_the_readmes_python_runs_and_prints_what_it_says(capsys):
    assert len(PYTHON) == 7
    import torch

    with torch.random.fork_rng(devices=[]):
        exec("\n".join(PYTHON), {})
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"```\n(identical.*?)```", README, flags=re.S)[0].splitlines()

    def words(line):  # numbers at rounding level differ between machines
        return re.sub(r"\d\.\de-1\d", "#", line).split(" (")[0]

    assert [words(line) for line in printed] == [words(line) for line in said]


# These two have tests of their own, which compare what the blocks do with the library.
ELSEWHERE = {"plans.md", "written_out.md"}


@pytest.mark.parametrize(
    "page",
    [page for page in pages.pages() if page.name not in ELSEWHERE | {"README.md"}],
    ids=lambda page: str(page.relative_to(ROOT)),
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_pages_python_runs_as_typed_and_prints_what_it_says(page, tmp_path):
    pages.run(page, tmp_path)


def test_a_page_that_says_something_else_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1.26)\n```\n\n```\n1.21\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="block 1"):
        pages.run(page, tmp_path)


def test_the_readmes_commands_run(tmp_path):
    """`verify` has its own test of every claim, and stands last."""
    assert len(SHELL) == 8 and SHELL[-1] == "twosides verify"
    for line in SHELL[:-1]:
        words = shlex.split(line)
        command = [sys.executable, "-m", "twosides.cli", *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_file_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"`([a-z_/]+\.py)`", text)):
        assert (ROOT / "src/twosides" / name).exists() or (ROOT / name).exists(), name
