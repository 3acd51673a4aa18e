"""The table of recipes: what it says is computed, and is what the page says."""

import math
from pathlib import Path

import pytest
import torch

from twosides.cli import main
from twosides.comparison import compare, curves
from twosides.losses.recipes import recipes
from twosides.reports import catalogue
from twosides.schedules import Cosine, EDMInput, FlowMatching, Geometric, ScaledLinear

PAGE = Path(__file__).parents[2] / "docs/recipes.md"


@pytest.fixture(scope="module")
def rows():
    return {row.name.split(",")[0]: row for row in catalogue.rows()}


def test_the_documented_table_is_the_commands(rows, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["twosides", "recipes", "--markdown"])
    main()
    printed = capsys.readouterr().out
    assert PAGE.read_text(encoding="utf-8").endswith("\n\n" + printed)
    assert printed.count("\n") == 2 + len(rows)


def test_every_recipe_has_one_row_and_a_source(rows):
    names = [name for row in rows.values() for name in row.name.split(", ")]
    assert sorted(names) == sorted(recipes)
    assert all(row.recipe.paper for row in rows.values())
    assert all(recipes[name] is rows["flow-matching"].recipe for name in ("repa", "sit-linear"))


def test_equals_are_equal(rows):
    assert rows["flow-matching"].equal["v-cosine"] == pytest.approx(math.pi / 2, rel=1e-12)
    assert "v-cosine x 1.571" in catalogue.cells(rows["flow-matching"])[7]
    assert rows["sit-vp-score"].equal == {"eps-linear": pytest.approx(1)}
    for name, row in rows.items():
        for other, factor in row.equal.items():
            assert rows[other].equal[name] == pytest.approx(1 / factor, rel=1e-9)
        if row.nearest:
            assert row.distance == compare(recipes[name], recipes[row.nearest]).difference > 0
    assert rows["edm"].nearest == "sd3" and rows["sd3"].nearest == "edm"
    assert all(not row.equal and not row.nearest for row in rows.values() if row.recipe.reweights)
    assert rows["indi"].nearest == ""  # its weight has no end towards noise


def test_bounds_are_those_of_the_literature(rows):
    """Kingma & Gao 2023, table 1 and appendix D: these are monotonic, those are not."""
    bounds = "v-cosine flow-matching indi vdm vdm++ edm-monotonic ve-sde sd3-cosmap sit-vp"
    others = "eps-cosine iddpm edm edm2 sd3 ddpm meanflow"
    assert all(rows[name].falling for name in bounds.split())
    assert not any(rows[name].falling for name in others.split())


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Cosine(-15, 15), "Cosine(logsnr_min=-15, logsnr_max=15)"),
        (FlowMatching().shifted(3), "FlowMatching(), shifted by 3"),
        (Geometric().with_scaling("vp"), "Geometric() as vp"),
        (FlowMatching().with_scaling(EDMInput()), "FlowMatching() as EDMInput"),
        (ScaledLinear(zero_terminal_snr=True), "ScaledLinear(zero_terminal_snr=1)"),
    ],
)
def test_schedules_in_brief(schedule, text):
    assert catalogue.brief(schedule).startswith(text)


def test_the_picture_shows_the_curves(tmp_path, monkeypatch):
    """What is drawn is w and p over their largest values, at the data's own log-SNR."""
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot

    def record(self, x, y, *args, **kwargs):
        drawn.append((x, y, kwargs["label"]))
        return plot(self, x, y, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", record)
    pair = [(name, recipes[name]) for name in ("sd3", "edm")]
    catalogue.picture(pair, tmp_path / "a.png", (1.0, 0.5))
    assert [label for *_, label in drawn] == ["sd3", "sd3", "edm", "edm"]
    grid = torch.from_numpy(drawn[2][0])
    for (_, y, _), curve in zip(drawn[2:], curves(recipes["edm"], grid, 0.5), strict=True):
        assert torch.allclose(torch.from_numpy(y), (curve - curve.max()).exp())
    peak = float(grid[int(drawn[2][1].argmax())])
    assert peak == pytest.approx(-3.3078 + 2 * math.log(0.5), abs=0.03)
