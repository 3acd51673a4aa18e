"""The retold post quotes every claim that is verified, and its figures are the explorer's."""

import math
import re

import pages
from twosides.explorer.figures import FIGURES
from twosides.reports.claims import CLAIMS
from twosides.schedules import VPLinear

DOCS = pages.ROOT / "docs"
STORY = (DOCS / "story.md").read_text(encoding="utf-8")
CHECKED = " ".join(
    " ".join(re.findall(r"^\*Checked:\*(.*?)\n\n", STORY, flags=re.S | re.M)).split()
)


def test_what_it_calls_checked_is_checked_and_nothing_that_is_checked_is_left_out():
    quoted = re.findall(r'"(.*?)"(?=[;.])', CHECKED)
    assert sorted(quoted) == sorted(claim.text for claim in CLAIMS)


def test_its_figures_are_those_that_there_are():
    for page in DOCS.glob("**/*.md"):
        for view in re.findall(r"figures\.html#figure=([^\"]+)", page.read_text(encoding="utf-8")):
            name, *settings = view.split("&")
            (figure,) = [figure for figure in FIGURES if figure.name == name]
            controls = {control.name for control in figure.controls}
            assert {setting.split("=")[0] for setting in settings} <= controls
    assert {figure.name for figure in FIGURES} == set(re.findall(r"#figure=([\w-]+)", STORY))


def test_the_erratum_is_one_number_everywhere():
    """The printed sigma is off by 1 / alpha: 58.84 at t = 0.9."""
    told = f"{1 / float(VPLinear().at(0.9).alpha):.2f}"
    assert told == "58.84" and math.isclose(float(told), math.exp(4.0748), rel_tol=1e-4)
    places = [
        STORY,
        (DOCS / "errata.md").read_text(encoding="utf-8"),
        (pages.ROOT / "README.md").read_text(encoding="utf-8"),
        next(claim.text for claim in CLAIMS if "as printed lacks" in claim.text),
        next(figure.text for figure in FIGURES if figure.name == "dictionary"),
    ]
    for text in places:
        assert told in text
        assert not re.search(r"\b(57|58|59)(?!\.84)\b.{0,30}(times|at t)", text)
