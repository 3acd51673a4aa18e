"""The pages for readers of the code name what is there."""

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


def test_every_word_that_the_reading_introduces_is_in_the_glossary():
    emphasised = re.findall(r"(?<![*\w])\*([^*]+)\*(?!\*)", READING)
    introduced = [words for words in emphasised if not words.endswith("?")]
    words = [row[0] for row in WORDS]
    assert len(introduced) > 25
    for word in introduced:
        stem = re.sub("(ing|s)$", "", " ".join(word.split()))
        assert any(known.startswith(stem) for known in words), word
