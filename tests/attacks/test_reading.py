"""Every file comes in through one door: regular files of a bounded size, never a pipe or a device."""

import ast
import os
import socket
from pathlib import Path

import pytest

import twosides
from twosides.storage.reading import (
    CorruptFolder,
    blame,
    open_file,
    read_file,
    read_json,
    require_file,
    require_folder,
)

SOURCE = Path(twosides.__file__).parent
OPENING = {
    "open", "fdopen", "read_text", "read_bytes", "load", "safe_open", "load_file", "from_file",
    "fromfile", "memmap", "loadtxt", "genfromtxt", "ZipFile", "is_zipfile", "copytree", "copyfile",
    "from_pretrained", "load_config", "load_dataset", "load_from_disk", "truetype",
}  # fmt: skip
CHECKED = "its path has passed require_file, require_folder or read_index, which calls it"
OURS = "a file of the package or of what is installed"
BYTES = "bytes or a stream that open_file has given"
ELSE = "no reading: it is another function of that name"
REASONS = {
    ("storage/reading.py", "open"): "the door",
    ("storage/reading.py", "fdopen"): "the door",
    ("storage/files.py", "open"): "for writing, flushing and locking",
    ("storage/tensors.py", "safe_open"): CHECKED,
    ("training/log.py", "open"): "for writing",
    ("generation/shards.py", "load"): CHECKED + "; or a model, by storage",
    ("metrics/extractors.py", "from_pretrained"): CHECKED,
    ("training/posthoc.py", "load"): "a model, by storage",
    ("training/finetune.py", "load"): "a model, by storage",
    ("training/fit.py", "load"): "a model, by storage",
    ("explorer/figures/model.py", "load"): "a model, by storage",
    ("explorer/server.py", "load"): "the page, of the package",
    ("generation/workers.py", "fdopen"): "a pipe between processes of this package",
    ("integrations/diffusers/texts.py", "load_config"): CHECKED,
    ("storage/plans.py", "load"): BYTES,
    ("storage/plans.py", "ZipFile"): BYTES,
    ("storage/owner.py", "read_text"): "/proc, of the kernel",
    ("data/arrays.py", "load"): CHECKED + "; of tensors alone, nothing is run",
    ("generation/runs.py", "load"): CHECKED,
    ("storage/owner.py", "open"): "for locking, a file of the package's own",
    ("data/stored.py", "ZipFile"): CHECKED,
    ("data/stored.py", "open"): "of what BYTES gave: an archive's member, a picture's bytes",
    ("generation/notes.py", "load"): "a model, by storage",
    ("training/rehearsal.py", "load"): "a model, by storage",
    ("explorer/export.py", "load"): "the page, of the package",
    ("explorer/page.py", "read_text"): OURS,
    ("explorer/page.py", "read_bytes"): OURS,
    ("explorer/names.py", "read_text"): OURS,
    ("__init__.py", "read_text"): OURS,
    ("display/html.py", "read_text"): OURS,
    ("data/glyphs.py", "ZipFile"): BYTES,
    ("data/glyphs.py", "load"): BYTES,
    ("data/glyphs.py", "truetype"): OURS,
    ("data/decode.py", "open"): BYTES,
    ("generation/restoring.py", "load"): BYTES,
    ("data/huggingface.py", "load_dataset"): CHECKED + "; or a name on the hub",
    ("data/huggingface.py", "load_from_disk"): CHECKED,
    ("integrations/diffusers/pipelines.py", "from_pretrained"): CHECKED,
    ("integrations/diffusers/networks.py", "from_pretrained"): CHECKED,
    ("integrations/diffusers/networks.py", "load_config"): CHECKED,
    ("integrations/diffusers/export.py", "copytree"): CHECKED,
    ("integrations/diffusers/export.py", "read_text"): "of a copy that was just written",
    ("integrations/diffusers/export.py", "load_config"): "of a copy that was just written",
    ("integrations/diffusers/facts.py", "load_config"): CHECKED,
}


def calls(path: Path) -> set[str]:
    """Names of the functions called in a file that may open one."""
    nodes = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    names = {
        node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes
    }
    return names & OPENING


def test_every_file_that_is_opened_is_accounted_for():
    found = {
        (str(path.relative_to(SOURCE)), name)
        for path in SOURCE.rglob("*.py")
        for name in calls(path)
    }
    assert not found - REASONS.keys(), "read it by storage.reading, or say here why it is safe"
    assert not REASONS.keys() - found, "no longer there"


def pipe(path):
    os.mkfifo(path)


def plug(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


STRANGERS = {
    "a pipe": pipe,
    "a socket": plug,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize(
    "read", [require_file, open_file, lambda path: read_file(path, 9), read_json]
)
def test_what_is_no_file_is_refused_by_name_at_once(tmp_path, monkeypatch, kind, read):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    STRANGERS[kind](Path("config.json"))
    with pytest.raises(CorruptFolder, match=f"config.json is {kind}, not a file"):
        read(Path("config.json"))


def test_links_are_followed_to_files_and_not_round_in_circles(tmp_path):
    (tmp_path / "blob").write_bytes(b"{}")
    (tmp_path / "a").symlink_to("blob")
    assert read_json(tmp_path / "a") == {}
    (tmp_path / "b").symlink_to("b")
    with pytest.raises(OSError, match="b'"):
        open_file(tmp_path / "b")


def test_a_file_is_no_longer_than_its_reader_takes(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"123456")
    assert read_file(path, 6) == b"123456"
    with pytest.raises(CorruptFolder, match=r"a.json has 6 bytes; at most 5 are read"):
        read_file(path, 5)
    os.truncate(path, 2**40)  # takes no room
    with pytest.raises(CorruptFolder, match="at most 16777216 are read"):
        read_json(path)
    # This one says that it has no bytes.
    with pytest.raises(CorruptFolder, match="more than 5 bytes"):
        read_file("/proc/self/status", 5)


def test_nothing_is_left_open(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read_file(tmp_path / "a", 1)
        with pytest.raises(CorruptFolder):
            read_file(tmp_path, 1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_for_libraries_holds_files_alone(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "again").symlink_to(tmp_path)  # a circle
    (tmp_path / "gone").symlink_to("nowhere")
    assert require_folder(tmp_path) == tmp_path
    os.mkfifo(tmp_path / "unet" / "weights")
    with pytest.raises(CorruptFolder, match="weights is a pipe"):
        require_folder(tmp_path)


def test_a_json_object_has_each_name_once(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(CorruptFolder, match="'b' is there twice"):
        read_json(path)
    path.write_text('{"low": -Infinity}')
    assert read_json(path, finite=False) == {"low": -float("inf")}
    with pytest.raises(CorruptFolder, match="not a finite number"):
        read_json(path)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ValueError("bad"), ValueError),
        (ZeroDivisionError("bad"), ValueError),
        (RecursionError("bad"), ValueError),
        (TypeError("bad"), TypeError),
        (OSError("bad"), OSError),
        (ImportError("bad"), ImportError),
    ],
)
def test_blame_names_the_file(tmp_path, raised, kind):
    with pytest.raises(kind, match="bad") as caught, blame(tmp_path / "a.json"):
        raise raised
    assert not isinstance(caught.value, CorruptFolder)
    assert kind in (ImportError, OSError) or str(tmp_path / "a.json") in str(caught.value)
