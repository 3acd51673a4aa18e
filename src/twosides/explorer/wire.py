"""Messages between the server and the page: JSON, and JSON with float32 arrays behind it.

A reply is `uint32 H`, H bytes of UTF-8 JSON padded with spaces so that 4 + H is a multiple of 4,
then little-endian float32. An array is `{"shape": [...], "offset": o}` in the JSON, o in floats.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

from twosides.explorer.figure import Axis, Figure, Invalid, Panel, View

LONGEST = 16_384  # the bytes of a request


def parse(text: str) -> Any:
    """The value of a JSON text; Invalid for other texts, and for deep nesting."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid("this message is not JSON") from error


def request(text: str, figures: dict[str, Figure]) -> tuple[int, Figure, dict[str, Any]]:
    """The number, the figure and the checked parameters of a request; Invalid with the reason.

    text: the JSON text. The number of one that is refused can be read by `number_of`.
    figures: the figures by name.
    """
    content = parse(text)
    if not isinstance(content, dict) or set(content) != {"req", "figure", "params"}:
        raise Invalid("a request is {req, figure, params}")
    number, name = number_of(content), content["figure"]
    if number is None:
        raise Invalid("req is a whole number")
    if not isinstance(name, str) or name not in figures:
        raise Invalid(f"there is no such figure; there are {', '.join(figures)}")
    return number, figures[name], figures[name].check(content["params"])


def number_of(content: Any) -> int | None:
    """The number of a request, if it has one."""
    number = content.get("req") if isinstance(content, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return number if 0 <= number < 2**53 else None


def error(number: int | None, message: str, code: str, control: str | None = None) -> str:
    """An error reply.

    number: the number of the request, if it has one.
    message: the reason, for people.
    code: "invalid", "busy" or "internal".
    control: the name of the control that the error is about.
    """
    return json.dumps(
        {"req": number, "error": {"message": message, "control": control, "code": code}}
    )


def reply(number: int, figure: str, milliseconds: float, view: View) -> bytes:
    """A view as one binary message.

    number: the number of the request.
    figure: the name of the figure.
    milliseconds: the time that computing took.
    view: the view.
    """
    data: list[np.ndarray] = []
    header = {
        "req": number,
        "figure": figure,
        "ms": round(milliseconds, 3),
        "view": {
            "panels": [_panel(panel, data) for panel in view.panels],
            "numbers": [
                {
                    "name": each.name,
                    "label": each.label,
                    "value": _plain(each.value),
                    "format": each.format,
                }
                for each in view.numbers
            ],
            "notes": list(view.notes),
            "python": view.python,
            "cli": view.cli,
        },
    }
    text = json.dumps(header, allow_nan=False, ensure_ascii=False).encode()
    text += b" " * (-(4 + len(text)) % 4)
    return struct.pack("<I", len(text)) + text + b"".join(array.tobytes() for array in data)


def _panel(panel: Panel, data: list[np.ndarray]) -> dict[str, Any]:
    marks: list[dict[str, Any]] = []
    for mark in panel.marks:
        arrays = {name: _array(values, data) for name, values in mark.arrays.items()}
        marks.append(
            {
                "kind": mark.kind,
                "label": mark.label,
                "group": mark.group,
                "arrays": arrays,
                "style": _plain(mark.style),
            }
        )
    ends = {"x": _axis(panel.x), "y": _axis(panel.y)}
    about = {"kind": panel.kind, "title": panel.title, "caption": panel.caption}
    return {**about, **ends, "marks": marks}


def _axis(axis: Axis | None) -> dict[str, Any] | None:
    return None if axis is None else {key: _plain(value) for key, value in vars(axis).items()}


def _array(values: Any, data: list[np.ndarray]) -> dict[str, Any]:
    with np.errstate(over="ignore", under="ignore"):
        array = np.ascontiguousarray(values, dtype="<f4")
    offset = sum(each.size for each in data)
    data.append(array)
    return {"shape": list(array.shape), "offset": offset}


def _plain(value: Any) -> Any:
    """The value as JSON data, where "nan", "inf" and "-inf" stand for numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else str(number)
