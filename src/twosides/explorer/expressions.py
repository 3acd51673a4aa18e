"""Functions of t that visitors type: numbers, t, pi, + - * / **, and a few named functions.

The text is parsed to a tree that may have only these, and the tree is evaluated; the text is never
evaluated as Python. Numbers are floats from the start, so that no power of integers can grow.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

Function = Callable[[Any], Any]

FUNCTIONS = ("sqrt", "exp", "log", "sin", "cos", "tan", "tanh")
CONSTANTS = {"pi": math.pi, "e": math.e}
_BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.Pow: ("**", operator.pow),
}


def parse(text: str, name: str) -> tuple[Function, str]:
    """A function of a float64 tensor, and its Python (of `t`, with `torch`).

    text: the formula; ValueError if it cannot be read.
    name: the name of the function, for the message.

    >>> import torch
    >>> function, python = parse("2 t", "g")
    Traceback (most recent call last):
    ValueError: g = 2 t cannot be read: write products as 2*t, powers as t**2 or t^2
    >>> function, python = parse("2^t + 1", "g")
    >>> float(function(torch.tensor(1.0, dtype=torch.float64))), python
    (3.0, '(((2.0 + 0 * t) ** t) + (1.0 + 0 * t))')
    """
    try:
        tree = ast.parse(text.replace("^", "**").strip(), mode="eval").body
        function, python = _walk(tree, 0)
    except (SyntaxError, RecursionError, MemoryError, OverflowError, ValueError) as error:
        why = error.args[0] if type(error) is ValueError else ""
        hint = why or "write products as 2*t, powers as t**2 or t^2"
        raise ValueError(f"{name} = {text} cannot be read: {hint}") from None
    return function, python


def _walk(node: ast.expr, depth: int) -> tuple[Function, str]:
    if depth > 30:
        raise ValueError("it is nested too deeply")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if isinstance(node.value, bool):
            raise ValueError("True and False are not numbers")
        value = float(node.value)
        return (lambda t: t * 0 + value), f"({value!r} + 0 * t)"
    if isinstance(node, ast.Name):
        return _name(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner, python = _walk(node.operand, depth + 1)
        return (lambda t: -inner(t)), f"(-{python})"
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        sign, apply = _BINARY[type(node.op)]
        (left, a), (right, b) = _walk(node.left, depth + 1), _walk(node.right, depth + 1)
        return (lambda t: apply(left(t), right(t))), f"({a} {sign} {b})"
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return _call(node, depth)
    raise ValueError(f"it may have numbers, t, pi, + - * / ** and {', '.join(FUNCTIONS)}")


def _name(name: str) -> tuple[Function, str]:
    if name == "t":
        return (lambda t: t), "t"
    if name in CONSTANTS:
        value = CONSTANTS[name]
        return (lambda t: t * 0 + value), f"({value!r} + 0 * t)"
    raise ValueError(f"there is no {name[:20]!r}; it is a function of t")


def _call(node: ast.Call, depth: int) -> tuple[Function, str]:
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name not in FUNCTIONS:
        raise ValueError(f"the functions are {', '.join(FUNCTIONS)}")
    inner, python = _walk(node.args[0], depth + 1)

    def apply(t: Any) -> Any:
        import torch

        return getattr(torch, name)(inner(t))

    return apply, f"torch.{name}({python})"
