"""The parts of a figure of the explorer: plain data, and a function that computes a view.

A Figure states its controls and the path of its function, `compute(**parameters) -> View`. A view
is panels of marks, numbers, and the Python that reproduces them. The page draws these and computes
nothing.

Every array and number states the expression in that Python which gives it (`code`), and the tests
check that both agree.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


class Invalid(ValueError):
    """The error of a request that is refused, with the control that it is about."""

    def __init__(self, message: str, control: str | None = None) -> None:
        """`message` is for people."""
        super().__init__(message)
        self.control = control


# ---------------------------------------------------------------------------- controls


@dataclass(frozen=True, kw_only=True)
class _Control:
    """The fields that all controls share.

    help: a text for the visitor.
    when: other controls and their values with which this one is shown; None for always.
    """

    help: str = ""
    when: Mapping[str, tuple[Any, ...]] | None = None


@dataclass(frozen=True)
class Range(_Control):
    """A number in [low, high].

    name, label: the name of the parameter, and the text beside the control.
    low, high, step: the range, and the step of the slider.
    default: the value at first.
    integer: whether it is a whole number.
    log: whether the slider is logarithmic.
    unit: the unit.
    """

    name: str
    label: str
    low: float
    high: float
    step: float
    default: float
    integer: bool = False
    log: bool = False
    unit: str = ""

    def check(self, value: object) -> float | int:
        """The number; Invalid outside the range, as NaN and infinity are."""
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
        # The number is compared before it is converted, as integers of JSON may have any length.
        if number is None or not self.low <= number <= self.high:
            raise Invalid(
                f"{self.label} is a number in [{self.low:g}, {self.high:g}], got {_short(value)}",
                self.name,
            )
        if self.integer and number != int(number):
            raise Invalid(f"{self.label} is a whole number, got {_short(value)}", self.name)
        return int(number) if self.integer else float(number)


@dataclass(frozen=True)
class Choice(_Control):
    """One of (value, label) options."""

    name: str
    label: str
    options: tuple[tuple[str, str], ...]
    default: str

    def check(self, value: object) -> str:
        """The value; Invalid for a value that is not an option."""
        return _option(self, value)


@dataclass(frozen=True)
class Many(_Control):
    """Some of (value, label) options, at least one and at most `most`."""

    name: str
    label: str
    options: tuple[tuple[str, str], ...]
    default: tuple[str, ...]
    most: int = 6

    def check(self, value: object) -> tuple[str, ...]:
        """The values, without repetition."""
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= self.most:
            raise Invalid(
                f"{self.label}: choose between 1 and {self.most} of the options", self.name
            )
        return tuple(dict.fromkeys(_option(self, each) for each in value))


@dataclass(frozen=True)
class Switch(_Control):
    """A control that is on or off."""

    name: str
    label: str
    default: bool

    def check(self, value: object) -> bool:
        """The bool; Invalid for anything else, such as 1."""
        if not isinstance(value, bool):
            raise Invalid(f"{self.label} is true or false, got {_short(value)}", self.name)
        return value


@dataclass(frozen=True)
class Text(_Control):
    """A short line of text."""

    name: str
    label: str
    default: str
    longest: int = 80
    hint: str = ""

    def check(self, value: object) -> str:
        """The text; Invalid if it is long or not printable."""
        if not isinstance(value, str) or len(value) > self.longest or not value.isprintable():
            raise Invalid(f"{self.label} is a line of at most {self.longest} characters", self.name)
        return value


Control = Range | Choice | Many | Switch | Text


def _option(control: Choice | Many, value: object) -> str:
    known = [option for option, _ in control.options]
    if not isinstance(value, str) or value not in known:
        raise Invalid(f"{control.label} has no option {_short(value)}", control.name)
    return value


def _short(value: object) -> str:
    """At most 40 characters of a value from outside, but never the digits of a huge integer."""
    text = "a huge number" if isinstance(value, int) and abs(value) > 1e18 else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# ---------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figure:
    """A figure.

    name, title: its name, and the title on the page.
    text: the text beside it.
    controls: its controls.
    compute: the path of its function, "module:function".
    bound: arguments of the function that the visitor does not choose, such as a model's folder.
    frames: for the page without Python, the values of some controls to compute in advance.
    """

    name: str
    title: str
    text: str
    controls: tuple[Control, ...]
    compute: str
    bound: Mapping[str, Any] = field(default_factory=dict)
    frames: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """The figure as JSON data for the page."""
        controls = [{"kind": type(c).__name__.lower(), **asdict(c)} for c in self.controls]
        return {"name": self.name, "title": self.title, "text": self.text, "controls": controls}

    def check(self, params: object) -> dict[str, Any]:
        """All parameters, with defaults filled in; Invalid for unknown names and wrong values."""
        if not isinstance(params, dict):
            raise Invalid("params is an object of control names and values")
        known = {control.name: control for control in self.controls}
        for name in params:
            if name not in known:
                raise Invalid(
                    f"{self.name} has no control {_short(name)}; it has {', '.join(known)}"
                )
        return {
            name: control.check(params[name]) if name in params else control.check(control.default)
            for name, control in known.items()
        }

    def view(self, params: Mapping[str, Any]) -> View:
        """Compute the view, with parameters that were checked."""
        module, name = self.compute.split(":")
        function: Callable[..., View] = getattr(importlib.import_module(module), name)
        return function(**self.bound, **params)


# ---------------------------------------------------------------------------- views


@dataclass(frozen=True)
class Axis:
    """An axis; ends that are None follow from the marks."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class Mark:
    """A thing that is drawn, of a kind that the page knows.

    kind, arrays: the kind and its arrays by name. line, points, stems: x, y (n,). paths: x, y (k,
        n). area: x, y0, y1 (n,). field: v (h, w), row 0 at the bottom, with the style extent [x0,
        x1, y0, y1]. text: the style x, y. heat: v (h, w). images: v (count, h, w) or (count, h, w,
        3) in [0, 1]. table: the style columns, rows. NaN breaks a line.
    label: the text in the legend.
    group: a colour, the same in all panels; None is neutral.
    style: how it is drawn.
    code: for each array the expression that gives it in the view's Python.
    """

    kind: str
    label: str = ""
    group: int | None = None
    arrays: Mapping[str, Any] = field(default_factory=dict)
    style: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """A frame around marks, of the kind plot, heat, images or table."""

    kind: str
    title: str
    x: Axis | None = None
    y: Axis | None = None
    marks: tuple[Mark, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Number:
    """A number that is shown; `format` is Python's."""

    name: str
    label: str
    value: float | str
    format: str = ".3g"
    code: str = ""


@dataclass(frozen=True)
class View:
    """The content of a figure.

    panels, numbers: what is drawn and shown.
    python: the Python that reproduces them.
    cli: the command that does, where there is one.
    notes: remarks for the visitor.
    """

    panels: tuple[Panel, ...]
    numbers: tuple[Number, ...]
    python: str
    cli: str = ""
    notes: tuple[str, ...] = ()


def table(title: str, columns: list[str], rows: list[list[Any]], caption: str = "") -> Panel:
    """A panel of text and numbers."""
    mark = Mark("table", style={"columns": columns, "rows": rows})
    return Panel("table", title, marks=(mark,), caption=caption)
