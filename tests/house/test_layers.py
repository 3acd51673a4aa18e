"""The rooms of the package stand in an order, and imports only go down it."""

import ast
from pathlib import Path

import twosides

ROOT = Path(twosides.__file__).parent
ORDER = (
    {"naming", "randomness", "conditioning", "placement", "display"},
    {"schedules"},
    {"outputs", "clocks"},
    {"denoiser", "conversion", "dynamics"},
    {"sampling", "guidance", "mixing", "oracle"},
    {"losses", "storage", "ode", "posteriors"},
    {"integrations", "comparison"},
    {"data", "generation"},
    {"training", "metrics", "tuning", "distillation"},
    {"explorer", "reports"},
    {"cli"},
)
TOP = {"__init__", "__main__", "cli"}  # programs and the public names import what they like
# Imports inside functions that go up, each for a reason.
UP = {
    # A plan or sampler is read where a file's name is given for it, and a plan writes itself.
    ("sampling.plan", "storage"),
    ("sampling.named", "storage"),
}


def imports(module, tree, inside):
    """What a module imports, by its full name; `inside`: only what functions import."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nested = {id(node) for function in functions for node in ast.walk(function)}
    checking = [
        n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n)
    ]
    nested |= {id(node) for branch in checking for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom | ast.Import) or (id(node) in nested) != inside:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level:
            names = [f"twosides.{module.rpartition('.')[0]}.{node.module}"]
        else:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in (name.removeprefix("twosides.") for name in names if name[:9] == "twosides."):
            public = twosides._HOME.get(name)  # `from twosides import FlowMatching`
            yield f"{public}.{name}".removeprefix("twosides.") if public else name


def modules():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def level(module):
    room = module.split(".")[0]
    return next((number for number, rooms in enumerate(ORDER) if room in rooms), 0)


def against_the_order(inside):
    for module, tree in modules():
        if module.split(".")[0] in TOP:
            continue
        for name in imports(module, tree, inside):
            if level(name) > level(module):
                yield module, name.split(".")[0]


def test_no_module_imports_one_above_it():
    assert not set(against_the_order(inside=False))


def test_functions_import_upwards_for_a_reason_only():
    assert set(against_the_order(inside=True)) <= UP


def test_there_is_no_circle():
    trees = dict(modules())
    graph = {
        module: {
            next((n for n in (name, name.rpartition(".")[0]) if n in trees), "")
            for name in imports(module, tree, inside=False)
        }
        - {"", module}
        for module, tree in trees.items()
    }
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    # A room's door imports its modules, which may not import through the door.
    assert not graph, {module: sorted(needs & graph.keys()) for module, needs in graph.items()}


def test_the_top_level_is_what_a_model_is():
    files = {path.stem for path in ROOT.glob("*.py")}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "_."}
    assert files == {
        "__init__", "__main__", "naming", "randomness", "conditioning", "outputs", "clocks",
        "denoiser", "conversion", "placement", "guidance", "mixing", "dynamics", "oracle", "comparison",
    }  # fmt: skip
    assert folders <= set().union(*ORDER)
