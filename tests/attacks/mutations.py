"""What can happen to a file: damage, things in its place, and JSON that says something else.

A mutation is a function of the path, the honest bytes and a random generator. Those of JSON take
the document of a .json file or of the header of a .safetensors file.
"""

import copy
import json
import os
import pickle
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[Path, random.Random], None]
RAW: dict[str, Mutation] = {}
JSON: dict[str, Mutation] = {}


def raw(function: Mutation) -> Mutation:
    RAW[function.__name__] = function
    return function


class Gadget:
    """Unpickling it creates the file PWNED."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# ---------------------------------------------------------------------------- damage


@raw
def cut_short(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size or 1))


@raw
def extended(path, rng):
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.choice([1, 7, 4096])))


@raw
def doubled(path, rng):
    path.write_bytes(path.read_bytes() * 2)


@raw
def of_a_terabyte(path, rng):
    os.truncate(path, 2**40)  # takes no room


def _changed(path, rng, count):
    data = bytearray(path.read_bytes())
    for _ in range(count):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@raw
def a_bit_flipped(path, rng):
    _changed(path, rng, 1)


@raw
def bits_flipped(path, rng):
    _changed(path, rng, 16)


@raw
def bits_flipped_in_front(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[:64])
    _changed(path, rng, 4)
    path.write_bytes(path.read_bytes() + data[64:])


@raw
def zeroed(path, rng):
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data) or 1)
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


@raw
def a_piece_left_out(path, rng):
    data = path.read_bytes()
    start = rng.randrange(len(data) or 1)
    path.write_bytes(data[:start] + data[start + rng.randrange(1, 40) :])


@raw
def digits_made_longer(path, rng):
    """A number in a text, in a header or in a name becomes another."""
    data = path.read_bytes()
    places = [k for k in range(len(data)) if data[k : k + 1].isdigit()]
    if places:
        place = rng.choice(places)
        long = rng.choice([b"999999999", b"-1", b"0", b"1e999", b"9" * 5000])
        path.write_bytes(data[:place] + long + data[place + 1 :])


# ---------------------------------------------------------------------------- in its place


@raw
def empty(path, rng):
    path.write_bytes(b"")


@raw
def noise(path, rng):
    path.write_bytes(rng.randbytes(rng.choice([10, 3000])))


@raw
def null_bytes(path, rng):
    path.write_bytes(bytes(512))


@raw
def a_pickle(path, rng):
    path.write_bytes(pickle.dumps(Gadget(path.with_name("PWNED"))))


@raw
def missing(path, rng):
    path.unlink()


@raw
def a_folder(path, rng):
    path.unlink()
    path.mkdir()


@raw
def a_pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


@raw
def a_socket(path, rng):
    path.unlink()
    before = os.getcwd()
    os.chdir(path.parent)  # paths of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


@raw
def a_device(path, rng):
    path.unlink()
    path.symlink_to("/dev/zero")


@raw
def a_link_to_itself(path, rng):
    path.unlink()
    path.symlink_to(path.name)


@raw
def a_link_to_the_folder(path, rng):
    path.unlink()
    path.symlink_to(".")


@raw
def swapped(path, rng):
    """It and another file of its folder have changed places."""
    others = [other for other in sorted(path.parent.iterdir()) if other != path and other.is_file()]
    if others:
        other = rng.choice(others)
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)


# ---------------------------------------------------------------------------- JSON

HUGE = "HUGE"  # stands for text that json would not write
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "minus_one": -1,
    "a_billion": 10**9,
    "ten_to_the_18": 10**18,
    "ten_to_the_400": 10**400,
    "the_largest_float": 1.7e308,
    "half": 0.5,
    "a_tiny_float": 5e-324,
    "an_empty_text": "",
    "a_text": "inf",
    "a_long_text": "x" * 100_000,
    "a_null_byte": "a\0b",
    "half_a_character": "\ud800",
    "an_empty_list": [],
    "an_empty_object": {},
    "a_list_in_a_list": [[1, [2]]],
    "a_long_list": [1] * 100_000,
    "an_object": {"type": "FlowMatching", "class": "os:system"},
}
TEXTS = {
    "not_a_number": "NaN",
    "infinity": "-Infinity",
    "beyond_floats": "1e999",
    "a_number_of_10000_digits": "1" * 10_000,
    "nested_300_deep": "[" * 300 + "]" * 300,
    "nested_100000_deep": "[" * 100_000 + "]" * 100_000,
    "objects_nested_2000_deep": '{"a":' * 2000 + "1" + "}" * 2000,
    "no_json": "0x10",
    "a_name_twice": '{"a": 1, "a": 2}',
}


def document(path: Path) -> tuple[Any, bytes]:
    """The JSON in a file, and what follows it."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return json.loads(data), b""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_document(path: Path, text: str, rest: bytes) -> None:
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(
        struct.pack("<Q", len(data)) + data + rest if path.suffix == ".safetensors" else data
    )


def places(node: Any) -> list[tuple[Any, Any]]:
    """Everywhere in a document: (container, key)."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in list(items):
        found.append((node, key))
        if isinstance(value, dict | list):
            found += places(value)
    return found


def replacing(value: Any, text: str | None) -> Mutation:
    def replace(path, rng):
        tree, rest = document(path)
        where = places(tree)
        if not where:
            return
        # By depth first: else nearly all would lie in the longest list.
        container, key = rng.choice(where)
        container[key] = HUGE if text is not None else copy.deepcopy(value)
        written = json.dumps(tree)
        put_document(
            path, written.replace(f'"{HUGE}"', text) if text is not None else written, rest
        )

    return replace


def json_mutation(name: str) -> Callable[[Mutation], Mutation]:
    def listed(mutation: Mutation) -> Mutation:
        JSON[name] = mutation
        return mutation

    return listed


for name, value in VALUES.items():
    JSON[name] = replacing(value, None)
for name, text in TEXTS.items():
    JSON[name] = replacing(None, text)


@json_mutation("a_key_left_out")
def _(path, rng):
    tree, rest = document(path)
    container, key = rng.choice(places(tree) or [({"": 0}, "")])
    del container[key]
    put_document(path, json.dumps(tree), rest)


@json_mutation("a_key_renamed")
def _(path, rng):
    tree, rest = document(path)
    where = [place for place in places(tree) if isinstance(place[0], dict)]
    container, key = rng.choice(where or [({"": 0}, "")])
    container[rng.choice(["__class__", "../x", "", "a\0b", "self", "__metadata__"])] = (
        container.pop(key)
    )
    put_document(path, json.dumps(tree), rest)


@json_mutation("a_key_twice")
def _(path, rng):
    tree, rest = document(path)
    if isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        text = json.dumps(tree)
        put_document(path, text[:-1] + f", {json.dumps(key)}: {json.dumps(tree[key])}}}", rest)


@json_mutation("two_values_swapped")
def _(path, rng):
    tree, rest = document(path)
    where = places(tree)
    if len(where) > 1:
        (a, i), (b, j) = rng.sample(where, 2)
        a[i], b[j] = copy.deepcopy(b[j]), copy.deepcopy(a[i])
    put_document(path, json.dumps(tree), rest)


@json_mutation("another_document")
def _(path, rng):
    _, rest = document(path)
    put_document(path, rng.choice(["[]", "{}", "null", "1", '"a"', "[1, 2]", '{"a": []}']), rest)


@json_mutation("a_mark_in_front")
def _(path, rng):
    tree, rest = document(path)
    put_document(path, "\ufeff" + json.dumps(tree), rest)
