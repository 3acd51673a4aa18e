"""The pages for readers of the code name what is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/twosides"
READING = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
WORDS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in GLOSSARY.splitlines()
    if line.startswith("| ") and not line.startswith("| word")
]


def test_each_file_comes_after_those_that_it_imports():
    """An order for reading: what a file of the mechanism imports of it has been read."""
    order = re.findall(r"^### \d+\. `(.*)`$", READING, flags=re.M)
    for place, name in enumerate(order):
        text = (PACKAGE / name).read_text(encoding="utf-8")
        for module in re.findall(r"^from twosides\.(\S+) import", text, flags=re.M):
            imported = module.replace(".", "/") + ".py"
            assert imported not in order[place:], f"{name} needs {imported}"


@pytest.mark.parametrize("row", WORDS, ids=lambda row: row[0])
def test_a_word_is_used_where_the_glossary_says_that_it_lives(row):
    word, meaning, file, _ = row
    path = PACKAGE / file.strip("`")
    text = path.name + path.read_text(encoding="utf-8").lower().replace("-", "").replace("_", " ")
    assert re.sub("(ing|y|e| form)$", "", word.lower().replace("-", "")) in text
    assert meaning.endswith(".")


def test_the_words_are_different_ones():
    words = [row[0] for row in WORDS]
    assert len(words) == len(set(words)) > 50


def introduced(text):
    """The words in italics, in the singular; questions are in italics, too."""
    emphasised = re.findall(r"(?<![*\w])\*([^*]+)\*(?!\*)", text)
    words = [" ".join(words.split()) for words in emphasised if not words.endswith("?")]
    return [word.removesuffix("s") for word in words]


def test_every_word_that_the_reading_introduces_is_in_the_glossary():
    words = introduced(READING)
    assert len(words) == len(set(words)) > 25
    for word in words:
        assert any(row[0].startswith(word.removesuffix("ing")) for row in WORDS), word


def test_no_file_uses_a_word_before_the_reading_has_introduced_it():
    """Read in this order, page and docstrings; "step", "noise" and "call" are words of anybody."""
    before, *rest = re.split(r"^### \d+\. `(.*)`$", READING, flags=re.M)
    later = set(introduced(READING)) - {"output", "noise", "call"}
    told = before
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        told += text
        later -= set(introduced(told))
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
        docstrings = " ".join(ast.get_docstring(node) or "" for node in nodes)
        for word in later:
            assert not re.search(rf"\b{word}s?\b", docstrings), f"{name} uses {word}"
