"""Budgets: how long files, functions and signatures may be. `pytest -s` prints the table.

What does not hold yet stands in the lists called EXCEEDING, which are exact: whatever is put right
must leave them, and nothing may join. Lines are those of the file, docstrings included; lengths of
functions go from `def` to the end and leave their docstring out.
"""

import ast
import re
import statistics
import sys
from pathlib import Path

import pytest

import twosides as ts

PACKAGE = Path(ts.__file__).parent
# What everybody must understand, in the order of docs/reading.md.
MECHANISM = (
    "schedules/level.py", "schedules/schedule.py", "outputs.py", "clocks.py", "denoiser.py",
    "conditioning.py", "guidance.py", "sampling/frames.py", "sampling/grids/grid.py",
    "sampling/noise/route.py", "sampling/solvers/solver.py", "sampling/solvers/multistep.py",
    "sampling/plan.py", "sampling/run.py", "sampling/sampler.py", "sampling/sample.py",
    "losses/objective.py",
)  # fmt: skip
HEART = ("schedules/", "sampling/", "ode/", *MECHANISM, "dynamics.py")

MECHANISM_LINES, MECHANISM_FILE, FILE = 3200, 270, 400
TABLES = {"reports/claims.py"}  # one claim after another: as long as there are claims
PUBLIC_NAMES = 45
CAPABILITIES = {  # names of what was added to a whole surface, each a page of its own
    "Measurement", "posterior", "steer", "tilt",  # docs/posteriors.md
    "FlowMap", "distill", "objectives",  # docs/fewsteps.md
    "tune",  # docs/tuning.md
    "combined", "mixing",  # rules of guidance, more than two denoisers
}  # fmt: skip
READING_SET = 3500  # lines of the files that sample(..., "dpmpp-2m") runs through
MEDIAN, P90, LONGEST = (4, 6), 22, 45
PARAMETERS = 9

EXCEEDING_LINES: set[str] = set()
EXCEEDING_LENGTH: set[str] = set()
EXCEEDING_PARAMETERS: set[str] = set()
EXCEEDING_READING: set[str] = set()
MANY_PARAMETERS = {  # for good
    "integrations/diffusers/scheduler.py: __init__": "diffusers keeps a config of its parameters",
    "sampling/sample.py: sample": "the one call that most users make: each option by its name",
}


def sources():
    return {
        str(path.relative_to(PACKAGE).as_posix()): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
    }


def lines(text):
    return text.count("\n")


def functions(texts):
    """(file: name, the function) of all, inner ones and methods too."""
    for file, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file}: {node.name}", node


def length(function):
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = first.end_lineno - first.lineno + 1 if documented else 0
    return function.end_lineno - function.lineno + 1 - docstring


def parameters(function):
    """The number of parameters that a caller has to know of."""
    places = [*function.args.posonlyargs, *function.args.args]
    own = len(places) > 0 and places[0].arg in ("self", "cls")
    return len(places) + len(function.args.kwonlyargs) - own


def over(title, measured, limit):
    """The names that exceed a limit; the table is printed, longest first."""
    print(f"\n{title}, at most {limit}")
    for name, value in sorted(measured.items(), key=lambda row: -row[1])[:20]:
        print(f"  {value:6}{' !' if value > limit else '  '} {name}")
    return {name for name, value in measured.items() if value > limit}


def test_lines_of_files():
    counts = {name: lines(text) for name, text in sources().items() if name not in TABLES}
    mechanism = {name: counts[name] for name in MECHANISM}
    exceeding = over("mechanism", {"the mechanism": sum(mechanism.values())}, MECHANISM_LINES)
    exceeding |= over("each of its files", mechanism, MECHANISM_FILE)
    exceeding |= over("files of the package", counts, FILE)
    assert exceeding == EXCEEDING_LINES


def test_lengths_of_the_functions_of_the_heart():
    heart = {name: text for name, text in sources().items() if name.startswith(HEART)}
    sizes = sorted(length(function) for _, function in functions(heart))
    median, p90 = statistics.median(sizes), sizes[int(0.9 * len(sizes))]
    print(f"\n{len(sizes)} functions of the heart: median {median}, p90 {p90}")
    assert MEDIAN[0] <= median <= MEDIAN[1]
    assert p90 <= P90
    longest = {name: length(function) for name, function in functions(heart)}
    assert over("functions of the heart", longest, LONGEST) == EXCEEDING_LENGTH


def test_numbers_of_parameters():
    texts = {name: text for name, text in sources().items() if not name.startswith("cli/")}
    counts = {name: parameters(function) for name, function in functions(texts)}
    many = over("parameters", counts, PARAMETERS)
    assert many == EXCEEDING_PARAMETERS | set(MANY_PARAMETERS)


def test_number_of_public_names():
    stubs = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r"^from \S+ import \w+ as (\w+)$", stubs, flags=re.M)
    print(f"\n{len(names)} public names, at most {PUBLIC_NAMES}")
    assert set(names) == set(dir(ts)) & set(names), "what is stated is there"
    assert len(set(names) - CAPABILITIES) <= PUBLIC_NAMES


@pytest.mark.parametrize("sampler", ["dpmpp-2m"])
def test_what_one_sampler_runs_through(sampler):
    """The files of the package that a call enters once all is imported, each as a whole."""
    denoiser, entered = ts.Denoiser(lambda z, t: 0 * z), set()
    ts.sample(denoiser, (1, 2), sampler=sampler, steps=3, seed=0)

    def enter(frame, event, argument):
        entered.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(enter)
    try:
        ts.sample(denoiser, (1, 2), sampler=sampler, steps=3, seed=0)
    finally:
        sys.setprofile(before)
    texts = sources()
    here = {name: lines(text) for name, text in texts.items() if str(PACKAGE / name) in entered}
    over(f"files that {sampler} runs through", here, FILE)
    exceeding = over(f"all {len(here)} of them", {sampler: sum(here.values())}, READING_SET)
    assert {"sampling/run.py", "sampling/solvers/multistep.py", "denoiser.py"} <= here.keys()
    assert "losses/objective.py" not in here
    assert exceeding == EXCEEDING_READING & {sampler}


def test_the_page_for_readers_is_the_mechanism_in_order():
    page = (PACKAGE.parents[1] / "docs/reading.md").read_text(encoding="utf-8")
    assert re.findall(r"^### \d+\. `(.*)`$", page, flags=re.M) == list(MECHANISM)
