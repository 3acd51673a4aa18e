"""The figures of the README's first screen are on the pages that it links."""

import re

import pages

README = (pages.ROOT / "README.md").read_text(encoding="utf-8")
FIRST = README.split("| what you run today")[1].split("\n\n")[0]
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in FIRST.splitlines()[2:]]


def test_each_figure_is_on_the_page_that_measures_it():
    assert len(ROWS) == 8
    for _, does, measured in ROWS:
        (page,) = re.findall(r"\]\((.*?)\)", measured)
        text = (pages.ROOT / page).read_text(encoding="utf-8")
        for figure in re.findall(r"\d+\.\d{2,}", does):
            assert figure in text, f"{figure} is not on {page}"


def test_what_is_said_of_the_noise_is_what_the_table_says():
    table = (pages.ROOT / "docs/diffusers.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in table.splitlines()
        if len(cells := line.split("|")) == 6
    }
    assert rows["diffusers FlowMatchEuler, stochastic_sampling"][2].endswith("/ 0.348")
    assert round(1 - 0.348 / 0.5, 1) == 0.3
    assert rows["diffusers FlowMatchHeun, s_churn=4"][2] == "0.460 / 0.603"
    assert any("s_churn=40 (ignored)" in name for name in rows)


def test_what_is_said_of_timesteps_is_what_the_pages_say():
    schedulers = (pages.ROOT / "docs/schedulers.md").read_text(encoding="utf-8")
    for name in ("UniPCMultistep", "DEISMultistep", "DPMSolverMultistep", "SASolver"):
        (row,) = [line for line in schedulers.splitlines() if line.startswith(f"| {name} |")]
        assert "all its timesteps at 0" in row
    (row,) = [line for line in schedulers.splitlines() if line.startswith("| FlowMatchEulerDis")]
    assert "shifts its last time twice" in row
    samplers = (pages.ROOT / "docs/samplers.md").read_text(encoding="utf-8")
    assert "published: half of the quadratic term, order 2" in samplers
