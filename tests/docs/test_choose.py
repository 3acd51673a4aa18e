"""docs/choose.md recommends what was measured; docs/migrate.md names what there is."""

import re
from pathlib import Path

import pytest

from twosides.naming import named
from twosides.outputs import OUTPUTS
from twosides.sampling import grids
from twosides.sampling.grids import GRIDS
from twosides.sampling.named import sampler_named
from twosides.schedules import SCHEDULES, schedule_named

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "choose.md").read_text(encoding="utf-8")
MIGRATE = (DOCS / "migrate.md").read_text(encoding="utf-8")
SENTENCES = " ".join(PAGE.split())
QUALITY = (DOCS / "quality.md").read_text(encoding="utf-8")
NOISE = (DOCS / "diffusers.md").read_text(encoding="utf-8")
VARIANCE = (DOCS / "loss_variance.md").read_text(encoding="utf-8")
TABLES = [
    [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.strip().splitlines()[2:]]
    for block in re.findall(r"(?:^\|.*\n)+", MIGRATE, flags=re.M)
]


def cells(text, *starts):
    """The cells after `starts` in the one row of a page that begins with them."""
    rows = [[c.strip(" *") for c in line.split("|")[1:-1]] for line in text.splitlines()]
    (found,) = [row[len(starts) :] for row in rows if tuple(row[: len(starts)]) == starts]
    return found


def test_the_means_and_the_worst_are_those_measured():
    said = re.findall(r"`([\w ]+ / [\w, ]+)`,? mean (\d\.\d+) and worst (\d\.\d+)", SENTENCES)
    assert len(said) == 4
    for name, mean, worst in said:
        assert cells(QUALITY, name) == [mean, worst]


def test_the_choices_are_the_best_of_their_kind():
    """The recommended grid has the least mean of all, and deis the least worst case."""
    section = QUALITY.split("## One choice for everything")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| ([\d.]+) \| ([\d.]+) \|$", section, flags=re.M)
    assert min(rows, key=lambda row: float(row[1]))[0] == "**kab2c / exponential, SD**"
    assert min(rows, key=lambda row: float(row[2]))[0] == "**deis / exponential, SD**"
    peers = [row for row in rows if not row[0].startswith("**")]
    assert min(peers, key=lambda row: float(row[1]))[0] == "diffusers UniPC 2 / exponential, SD"


def test_the_errors_of_the_grids_are_those_measured():
    first = QUALITY.split("## The typical sample")[0]
    for problem, best, own in (("ring8", "0.0079", "0.053"), ("spec64", "0.068", "0.068")):
        row = cells(first, problem, "10")
        assert row[2] == own and row[5] == best and best in PAGE and own in PAGE
        assert row[4] == ("kab2c / exponential, SD" if problem == "ring8" else "kab2c / own")


def test_the_deviations_with_noise_are_those_measured():
    sentence = re.search(r"after 10 steps: (.*?); after 50: (.*?)\. ", SENTENCES)
    named = dict(re.findall(r"`([\w-]+)` ([\d.]+)", sentence[1]))
    later = re.findall(r"[\d.]+\d", sentence[2])
    assert list(named) == ["dpmpp-2m-sde", "edm", "kab2c-sde", "ddpm"] and len(later) == 4
    for (name, ten), fifty in zip(named.items(), later, strict=True):
        row = [cell.split(" / ")[1] for cell in cells(NOISE, name)]
        assert row[:2] == [ten, fifty]


def test_the_noise_of_the_losses_is_that_measured():
    table = VARIANCE.split("How many times smaller")[1].split("*At best*")[0]
    for row, said in (("flow matching", "1.1"), ("Min-SNR", "2.8"), ("ELBO", "8.2")):
        assert cells(table, row)[1] == said and said in PAGE


@pytest.mark.parametrize("row", TABLES[1], ids=lambda row: row[3])
def test_the_presets_exist(row):
    (name,) = re.findall(r"`([^`]+)`", row[3])
    assert sampler_named(name).order >= 0


@pytest.mark.parametrize("row", TABLES[2], ids=lambda row: row[3])
def test_the_grids_exist(row):
    for name in re.findall(r"`([^`]+)`", row[3]):
        assert eval(name, {"grids": grids}) if "grids." in name else named("grid", name, GRIDS)


@pytest.mark.parametrize("row", [*TABLES[3], *TABLES[4]], ids=lambda row: row[0])
def test_the_names_for_azula_and_flow_matching_exist(row):
    for name in re.findall(r"`([a-z][\w-]*)`", row[1]):
        assert name in ("eta",) or sampler_named_or_schedule(name)


def sampler_named_or_schedule(name):
    return schedule_named(name) if name in SCHEDULES else sampler_named(name)


def test_every_row_of_the_names_has_one():
    """No row without a name of ours, and the tables are those that the tests read."""
    assert [len(TABLES[1]) > 25, len(TABLES[2]) > 8] == [True, True]
    assert all(re.search("`.+`", row[3]) for row in [*TABLES[1], *TABLES[2]])


def test_diffusers_has_the_classes_that_are_named():
    diffusers = pytest.importorskip("diffusers")
    classes = set(re.findall(r"`(\w+Scheduler)", MIGRATE))
    assert len(classes) > 15
    assert all(hasattr(diffusers, name) for name in classes)


def test_the_outputs_exist():
    section = PAGE.split("## An output")[1].split("\n## ")[0]
    assert set(re.findall(r"`(\w+)`", section)) <= OUTPUTS.keys()
