"""Files that must be refused: how each is made, and what is asked to read it.

An attack's `make(folder)` writes the file, `read(path)` hands it to the library, which must raise.
The pickles among them leave a file PWNED behind if they are ever run.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[[Path], Path]
Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Attack:
    make: Make
    read: Read
    words: str  # a regular expression for the message


ATTACKS: dict[str, Attack] = {}


def attack(name: str, read: Read, words: str) -> Callable[[Make], Make]:
    def listed(make: Make) -> Make:
        assert name not in ATTACKS
        ATTACKS[name] = Attack(make, read, words)
        return make

    return listed


# ---------------------------------------------------------------------------- readers


def load_tensors(path):
    from twosides.storage.tensors import load_tensors

    return load_tensors(path)


def load_model(path):
    from twosides.storage import models

    return models.load(path)


def load_tars(path):
    from twosides.data import tars
    from twosides.data.decode import Frame
    from twosides.data.images import Images

    tars.MAX_MEMBERS = 1000  # a shard of 200,000 is tedious to write
    return [sample for sample in Images(tars.Tars(str(path)), Frame(8))]


def read_image(path):
    from twosides.data.decode import Frame
    from twosides.data.images import Folder, Images

    return Images(Folder(path.parent), Frame(8))[0]


def decode(path):
    from twosides.data.decode import Frame

    return Frame(8).read(path.read_bytes())


def plan_npz(path):
    from twosides.sampling.plan import Plan

    return Plan.from_npz(path)


def plan_json(path):
    from twosides.sampling.plan import Plan

    return Plan.from_json(path.read_text())


def latents(path):
    from twosides.data.latents import Latents

    return Latents(path)[0]


def pipeline(path):
    from twosides.integrations.diffusers.pipelines import load_pipeline

    return load_pipeline(path, network=False)


def load_pipelines_network(path):
    from twosides.integrations.diffusers import load_denoiser

    return load_denoiser(path)


def train_with(path):
    """The command line, whose errors are a line on stderr and status 2."""
    import contextlib

    from twosides.cli import main

    sys.argv = ["twosides", "train", "ring", "--out", str(path.parent / "run"), "--network", path]
    sys.argv = [str(word) for word in sys.argv]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as stop:
        if stop.code == 2:
            raise ValueError(said.getvalue()) from None


# ---------------------------------------------------------------------------- pickles


class Gadget:
    """Unpickling it creates the file PWNED."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "PWNED")

    def __reduce__(self):
        return open, (self.path, "w")


def pickled(folder: Path) -> bytes:
    return pickle.dumps(Gadget(folder))


def objects(folder: Path) -> bytes:
    """A .npy file of Python objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([Gadget(folder)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@attack("a pickle called safetensors", load_tensors, "claims a header|not a safetensors")
def _(folder):
    return put(folder / "a.safetensors", pickled(folder))


@attack("a pickle of torch.save", load_tensors, "claims a header|not a safetensors")
def _(folder):
    with zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(folder))
        archive.writestr("archive/data/0", bytes(1 << 20))
    return folder / "a.pt"


@attack("a pickle for a model", load_model, "holds no config.json")
def _(folder):
    return put(folder / "model.ckpt", pickled(folder))


@attack("a model folder with a pickle for weights", load_model, "claims a header|safetensors")
def _(folder):
    return model(folder / "m", {}, pickled(folder))


@attack("a .bin for a pipeline's VAE", pipeline, "safetensors")
def _(folder):
    index = {"_class_name": "DiTPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"transformer": ["diffusers", "DiTTransformer2DModel"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "vae").mkdir()
    (folder / "scheduler").mkdir()
    put(folder / "model_index.json", json.dumps(index).encode())
    put(folder / "vae/config.json", b'{"_class_name": "AutoencoderKL"}')
    put(folder / "vae/diffusion_pytorch_model.bin", pickled(folder))
    put(folder / "scheduler/scheduler_config.json", b'{"_class_name": "DDIMScheduler"}')
    return folder


def hostile_pipeline(folder: Path, index: dict[str, Any], code: str) -> Path:
    """A pipeline's folder with Python in it, where diffusers would look for some."""
    index = {"transformer": ["diffusers", "DiTTransformer2DModel"]} | index
    put(folder / "model_index.json", json.dumps(index).encode())
    for part in (".", "vae", "transformer", "scheduler"):
        (folder / part).mkdir(exist_ok=True)
        for name in ("pwn", "pipeline"):
            put(folder / part / f"{name}.py", code.encode())
    put(folder / "scheduler/scheduler_config.json", b'{"_class_name": "DDIMScheduler"}')
    return folder


for name, index, word in (
    ("a pipeline of its own class", {"_class_name": ["pwn", "Pwn"]}, "trust_remote_code|pwn|Pwn"),
    (
        "a pipeline with a part of its own class",
        {"_class_name": "DiTPipeline", "vae": ["pwn", "Pwn"]},
        "vae is of the module pwn",
    ),
    (
        "a pipeline with a part from this system",
        {"_class_name": "DiTPipeline", "vae": ["os", "system"]},
        "vae is of the module os",
    ),
    (
        "a pipeline whose card names others",
        {"_class_name": "KandinskyCombinedPipeline"},
        "model card names",
    ),
):

    @attack(name, pipeline, word)
    def _(folder, index=index):
        code = f"open({str(folder / 'PWNED')!r}, 'w')\nclass Pwn: pass\n"
        return hostile_pipeline(folder, index, code)


@attack("a network of its own class", load_pipelines_network, "no model of diffusers")
def _(folder):
    code = f"open({str(folder / 'PWNED')!r}, 'w')\n"
    index = {"_class_name": "DiTPipeline", "transformer": ["pwn", "Pwn"]}
    return hostile_pipeline(folder, index, code)


@attack("objects in a plan's npz", plan_npz, "allow_pickle=False|not a twosides plan")
def _(folder):
    with zipfile.ZipFile(folder / "plan.npz", "w") as archive:
        for name in ("logsnr", "alpha", "sigma", "x", "eps", "noise", "name"):
            archive.writestr(f"{name}.npy", objects(folder))
    return folder / "plan.npz"


for kind in ("pyd", "pickle", "pkl", "pt", "pth", "ckpt", "bin", "npz", "ten", "mp"):

    @attack(f"a .{kind} in a tar", load_tars, "pickles never are")
    def _(folder, kind=kind):
        return tar(folder / "a.tar", {"a.png": png(), f"a.{kind}": pickled(folder)})


@attack("objects in a tar's npy", load_tars, r"has \|O")
def _(folder):
    return tar(folder / "a.tar", {"a.npy": objects(folder)})


# ---------------------------------------------------------------------------- archives


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, files: dict[str, bytes], **fields: Any) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return path


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with fields that no honest writer makes."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = size.ljust(12, b"\0")
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)

for name in ("../a.png", "/etc/a.png", "a/../../b.png", "..\\a.png"):

    @attack(f"a member {name}", load_tars, "leads out of the tar")
    def _(folder, name=name):
        return tar(folder / "a.tar", {name: png()})


for kind, word in (
    (tarfile.SYMTYPE, "symbolic link"),
    (tarfile.LNKTYPE, "hard link"),
    (tarfile.CHRTYPE, "device"),
    (tarfile.BLKTYPE, "device"),
    (tarfile.FIFOTYPE, "not a plain file"),
    (tarfile.CONTTYPE, "not a plain file"),
    (tarfile.GNUTYPE_SPARSE, "not a plain file"),
):

    @attack(f"a member of kind {kind!r}", load_tars, word)
    def _(folder, kind=kind):
        return tar(folder / "a.tar", {"a.png": b""}, type=kind, linkname="/etc/passwd")


@attack("a member twice", load_tars, "is there twice")
def _(folder):
    with tarfile.open(folder / "a.tar", "w") as archive:
        for _ in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(png())
            archive.addfile(info, io.BytesIO(png()))
    return folder / "a.tar"


@attack("many members", load_tars, "more than 1000 members")
def _(folder):
    return put(folder / "a.tar", header(b".x", b"0") * 1001 + END)


for name, size in (
    ("a size beyond the file", b"77777777777"),
    ("a size of 2^88", b"\x80" + b"\xff" * 11),
    ("a size below 0", b"\xff" * 12),
    ("a size in words", b"twelve"),
    ("a size with a sign", b"-1"),
):

    @attack(name, load_tars, "beyond the end|no header")
    def _(folder, size=size):
        return put(folder / "a.tar", header(b"a.png", size) + bytes(512) + END)


def pax(**records: str) -> bytes:
    """An extended header."""
    data = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return header(b"x", b"%o" % len(data), b"x") + data.ljust(-(-len(data) // 512) * 512, b"\0")


for name, records, word in (
    ("an extended size beyond the file", {"size": str(10**15)}, "beyond the end"),
    ("an extended size below 0", {"size": "-5"}, "not read here"),
    ("an extended name that leads out", {"path": "../../a.png"}, "leads out"),
    ("a sparse file", {"GNU__sparse__realsize": str(10**12)}, "not read here"),
):

    @attack(name, load_tars, word)
    def _(folder, records=records):
        data = png()
        body = header(b"a.png", b"%o" % len(data)) + data.ljust(512, b"\0")
        return put(folder / "a.tar", pax(**records) + body + END)


@attack("an extended header of a gigabyte", load_tars, "extended header of 1073741824 bytes")
def _(folder):
    put(folder / "a.tar", header(b"x", b"%o" % 2**30, b"x"))
    os.truncate(folder / "a.tar", 2**30 + 2048)
    return folder / "a.tar"


@attack("extended headers without an end", load_tars, "not read here")
def _(folder):
    return put(folder / "a.tar", header(b"x", b"11", b"x") + b"999999 =".ljust(512) + END)


@attack("a member of a gigabyte", load_tars, "too many for a png")
def _(folder):
    put(folder / "a.tar", header(b"a.png", b"%o" % 2**30))
    os.truncate(folder / "a.tar", 2**30 + 2048)
    return folder / "a.tar"


@attack("a class of a megabyte", load_tars, "too many for a cls")
def _(folder):
    return tar(folder / "a.tar", {"a.png": png(), "a.cls": b"1" * (1 << 20)})


@attack("a class of 10^9", load_tars, "number from 0 to")
def _(folder):
    return tar(folder / "a.tar", {"a.png": png(), "a.cls": b"1" + b"0" * 9})


@attack("deep JSON in a tar", load_tars, "JSON that cannot be read")
def _(folder):
    return tar(folder / "a.tar", {"a.png": png(), "a.json": b"[" * 60_000})


@attack("a compressed tar", load_tars, "compressed")
def _(folder):
    return put(folder / "a.tar", gzip.compress(tar(folder / "b", {"a.png": png()}).read_bytes()))


@attack("a tar cut short", load_tars, "cut short")
def _(folder):
    path = tar(folder / "a.tar", {"a.png": png()})
    os.truncate(path, 1024)
    return path


@attack("a tar in a tar", load_tars, "nothing else is read")
def _(folder):
    inner = tar(folder / "b", {"a.png": bytes(1 << 20)}).read_bytes()
    return tar(folder / "a.tar", {"a.tar": inner})


@attack("a bomb in a plan's npz", plan_npz, "compressed")
def _(folder):
    start = np.lib.format.magic(1, 0)
    text = repr({"descr": "<f8", "fortran_order": False, "shape": (2**27,)}).ljust(117) + "\n"
    data = start + struct.pack("<H", len(text)) + text.encode()
    with zipfile.ZipFile(folder / "plan.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("logsnr", "alpha", "sigma", "x", "eps", "noise", "name"):
            with archive.open(f"{name}.npy", "w") as file:
                file.write(data)
                for _ in range(4):
                    file.write(bytes(1 << 20))
    return folder / "plan.npz"


@attack("a huge shape in a plan's npz", plan_npz, "not a twosides plan")
def _(folder):
    start = np.lib.format.magic(1, 0)
    text = repr({"descr": "<f8", "fortran_order": False, "shape": (10**11,)}).ljust(117) + "\n"
    data = start + struct.pack("<H", len(text)) + text.encode()
    with zipfile.ZipFile(folder / "plan.npz", "w") as archive:
        for name in ("logsnr", "alpha", "sigma", "x", "eps", "noise", "name"):
            archive.writestr(f"{name}.npy", data)
    return folder / "plan.npz"


@attack("a plan of 100,000 calls", plan_json, "logsnr is not that of its alpha")
def _(folder):
    count = 100_000
    row = {"x": [], "eps": [], "noise": []}
    content = {"format": "twosides.plan", "version": 1, "name": "", "noises": 0}
    content |= {key: [0.5] * (count + 1) for key in ("logsnr", "alpha", "sigma")}
    content["rows"] = [row] * (count + 1)
    return put(folder / "plan.json", json.dumps(content).encode())


# ---------------------------------------------------------------------------- images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claimed(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims a size, with little behind it."""
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    chunks = [chunk(b"IHDR", start), *extra, body, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def zeros(megabytes: int) -> bytes:
    """So many megabytes of zeros, deflated."""
    deflate = zlib.compressobj(9)
    parts = [deflate.compress(bytes(1 << 20)) for _ in range(megabytes)]
    return b"".join(parts) + deflate.flush()


for width, height in ((50_000, 50_000), (70_000, 10), (2**31 - 1, 2**31 - 1), (8193, 8193)):

    @attack(f"a PNG of {width} x {height}", decode, "claims .* at most 67108864")
    def _(folder, width=width, height=height):
        return put(folder / "a.png", claimed(width, height))


@attack("a PNG whose pixels are a bomb", decode, "claims 12000 x 12000")
def _(folder):
    start = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zeros(40))
    return put(
        folder / "a.png",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + body + chunk(b"IEND", b""),
    )


@attack("a PNG with a colour profile of 200 MB", decode, "damaged")
def _(folder):
    return put(folder / "a.png", claimed(8, 8, chunk(b"iCCP", b"p\0\0" + zeros(200))))


@attack("a PNG with a text of 200 MB", decode, "damaged")
def _(folder):
    return put(folder / "a.png", claimed(8, 8, chunk(b"zTXt", b"p\0\0" + zeros(200))))


@attack("a PNG with 200 texts of a megabyte", decode, "damaged")
def _(folder):
    text = chunk(b"zTXt", b"p\0\0" + zlib.compress(bytes((1 << 20) - 1), 9))
    return put(folder / "a.png", claimed(8, 8, text * 200))


@attack("a truncated PNG", decode, "damaged")
def _(folder):
    return put(folder / "a.png", png()[:44])


@attack("a folder of truncated PNGs", read_image, "none of the 1 images is good")
def _(folder):
    (folder / "images").mkdir()
    return put(folder / "images" / "a.png", png()[:44])


def frames(folder, kind, count, **options):
    from PIL import Image

    images = [Image.new("RGB", (16, 16), (i, i, i)) for i in range(count)]
    path = folder / f"a.{kind}"
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@attack("a GIF of 200 frames", decode, "several frames")
def _(folder):
    return frames(folder, "gif", 200)


@attack("a WebP of 50 frames", decode, "several frames")
def _(folder):
    return frames(folder, "webp", 50)


@attack("an animated PNG", decode, "several frames")
def _(folder):
    return frames(folder, "png", 50)


@attack("a TIFF of 200 pages", decode, "several frames")
def _(folder):
    return frames(folder, "tiff", 200)


@attack("a GIF of 60000 x 60000", decode, "claims too many pixels")
def _(folder):
    data = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
    data += b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x01\x00\x00;"
    return put(folder / "a.gif", data)


@attack("a BMP of 60000 x 60000", decode, "claims too many pixels")
def _(folder):
    info = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return put(folder / "a.bmp", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info)


@attack("a TIFF of 60000 x 60000", decode, "claims too many pixels")
def _(folder):
    from PIL import Image

    Image.new("L", (8, 8)).save(folder / "a.tiff")
    data = (folder / "a.tiff").read_bytes()
    for tag in (256, 257):  # width and height, as they stand in the directory
        old = struct.pack("<HHII", tag, 4, 1, 8)
        old = old if old in data else struct.pack("<HHIHH", tag, 3, 1, 8, 0)
        assert old in data
        data = data.replace(old, struct.pack("<HHII", tag, 4, 1, 60_000))
    return put(folder / "a.tiff", data)


@attack("an array of 10^12 pixels", decode, "claims 1000000 x 1000000")
def _(folder):
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}).ljust(117) + "\n"
    data = np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text.encode()
    return put(folder / "a.npy", data)


@attack("an array with code in its header", decode, "damaged")
def _(folder):
    text = f"open({str(folder / 'PWNED')!r}, 'w')\n"
    data = np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text.encode()
    return put(folder / "a.npy", data)


@attack("an array with a deep header", decode, "damaged")
def _(folder):
    data = np.lib.format.magic(1, 0) + struct.pack("<H", 900) + b"(" * 900
    return put(folder / "a.npy", data)


@attack("a PostScript image", decode, "is no PNG")
def _(folder):
    return put(folder / "a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(a) run\n")


@attack("a file of a gigabyte", read_image, "at most 67108864 are read")
def _(folder):
    (folder / "images").mkdir()
    put(folder / "images" / "a.png", png())
    os.truncate(folder / "images" / "a.png", 2**30)
    return folder / "images" / "a.png"


# ---------------------------------------------------------------------------- safetensors


def tensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def deep(depth: int) -> bytes:
    return b'{"a": ' + b"[" * depth + b"]" * depth + b"}"


DUPLICATES = (
    b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)
SAFETENSORS = {
    "a header of 2^63 bytes": tensors(b"{}", length=2**63),
    "a header longer than the file": tensors(b"{}", length=100),
    "tensors that overlap": tensors({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
    "a hole between tensors": tensors({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "bytes behind the tensors": tensors({"a": entry(0, 4)}, bytes(400)),
    "a tensor twice": tensors(DUPLICATES, bytes(4)),
    "an unknown dtype": tensors({"a": entry(0, 4, dtype="O")}, bytes(4)),
    "a tensor beyond the file": tensors({"a": entry(0, 400, (100,))}, bytes(4)),
    "a shape of 10^18": tensors({"a": entry(0, 4, (10**18,))}, bytes(4)),
    "a shape that overflows": tensors({"a": entry(0, 0, (2**32, 2**32))}),
    "a negative shape": tensors({"a": entry(0, 4, (-1,))}, bytes(4)),
    "negative offsets": tensors({"a": entry(-4, 0)}, bytes(4)),
    "a shape of floats": tensors({"a": entry(0, 4, (1.0,))}, bytes(4)),
    "a header 100,000 deep": tensors(deep(100_000)),
    "a header that is no text": tensors(b"\xff\xfe{}"),
    "a header that is a list": tensors(b"[]"),
    "an empty file": b"",
}
for name, data in SAFETENSORS.items():

    @attack(f"safetensors: {name}", load_tensors, "safetensors")
    def _(folder, data=data):
        return put(folder / "a.safetensors", data)


@attack("safetensors: a header of 77 MB", load_tensors, "at most 8388608")
def _(folder):
    text = b'{"a":' + b" " * (77 << 20) + b"0}"
    return put(folder / "a.safetensors", tensors(text))


# ---------------------------------------------------------------------------- configs


def committed(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder whose checksums are right, as an attacker would make them."""
    folder.mkdir(parents=True)
    manifest = {}
    for name, data in files.items():
        put(folder / name, data)
        manifest[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    put(folder / "manifest.json", json.dumps(manifest).encode())
    return folder


CONFIG = {
    "format": "twosides.model",
    "version": 1,
    "network": {"class": "MLP", "config": {"dim": 2, "width": 8, "depth": 1, "classes": 0}},
    "output": "u",
    "schedule": {"type": "FlowMatching"},
    "time": {"type": "Time"},
}


WEIGHTS = tensors({"a": entry(0, 4000, (1000,))}, bytes(4000))


def model(folder: Path, config: dict[str, Any] | bytes, weights: bytes = WEIGHTS) -> Path:
    text = config if isinstance(config, bytes) else json.dumps({**CONFIG, **config}).encode()
    return committed(folder, {"config.json": text, "model.safetensors": weights})


def network(kind: str, **config: Any) -> dict[str, Any]:
    return {"network": {"class": kind, "config": config}}


def nested(depth: int) -> bytes:
    text = json.dumps({**CONFIG, "schedule": "HERE"})
    return text.replace('"HERE"', "[" * depth + "]" * depth).encode()


def converted(times: int) -> dict[str, Any]:
    """A network in another notation, in another notation, ..."""
    spec = CONFIG["network"]
    for _ in range(times):
        spec = {"class": "Converted", **CONFIG, "of": {**CONFIG, "network": spec}}
        spec |= {"class": "Converted"}
    return {"network": spec}


CONFIGS: dict[str, tuple[Any, str]] = {
    "100,000 deep": (nested(100_000), "not readable JSON"),
    "500 deep": (nested(500), "nested deeper than 256"),
    "not a number": (b'{"format": "twosides.model", "version": NaN}', "not a finite number"),
    "infinite": (b'{"format": "twosides.model", "version": 1e999}', "not a finite number"),
    "a number of 10,000 digits": (b'{"version": ' + b"1" * 10_000 + b"}", "not readable JSON"),
    "an unknown schedule": ({"schedule": {"type": "os.system"}}, "unknown part"),
    "an unknown field": ({"schedule": {"type": "FlowMatching", "run": 1}}, "unexpected keyword"),
    "a class from outside": (network("os:system"), "code outside this library"),
    "a class that is none": (network("twosides.cli:main"), "no torch.nn.Module"),
    "a class of diffusers' that is none": (network("diffusers.logging"), "no model called"),
    "a pipeline for a network": (network("diffusers.DiffusionPipeline"), "no model called"),
    "an unknown class": (network("UNet"), "unknown network class"),
    "a class inside a conversion": (
        {"network": {**CONFIG, "class": "Converted", "of": {**CONFIG, **network("os:system")}}},
        "code outside this library",
    ),
    "a network of 10^12 numbers": (network("MLP", width=10**6, depth=1), "does not fit"),
    "a UNet of 10^13 numbers": (
        network(
            "diffusers.UNet2DModel",
            block_out_channels=[10**6],
            down_block_types=["DownBlock2D"],
            up_block_types=["UpBlock2D"],
        ),
        "does not fit",
    ),
    "weights that are missing": ({}, "does not fit"),
    "a shape of 10^9": ({"shape": [10**9]}, "shape is .1000000000.; that is whole numbers"),
    "a shape of words": ({"shape": ["2"]}, "that is whole numbers"),
    "two million classes": ({"classes": "x" * 2_000_000}, "at most 1000000 texts"),
    "a null of words": ({"null": {"class_labels": "x"}}, "an object of whole numbers"),
    "a deviation beyond float32": ({"data_std": 1e300}, "data_std has numbers that are not finite"),
    "a mean of another shape": (
        {"shape": [2], "data_mean": [0.0] * 3},
        "config.json cannot be used",
    ),
    "a million layers": (
        network("MLP", width=2, depth=10**6),
        "more than 1020 layers, for 1 tensors",
    ),
    "a billion layers": (network("MLP", width=2, depth=10**9), "beyond 16777216"),
    "a schedule of 10^9 rows": (
        {"schedule": {"type": "ScaledLinear", "count": 10**9}},
        "has the count 1000000000; tables have at most",
    ),
    "twenty conversions": (converted(20), "converted more than 8 times"),
}
for name, (config, words) in CONFIGS.items():

    @attack(f"a config with {name}", load_model, words)
    def _(folder, config=config):
        return model(folder / "m", config)


@attack("a manifest that leads out", load_model, "is not a file that|is missing")
def _(folder):
    path = model(folder / "m", {})
    manifest = json.loads((path / "manifest.json").read_text())
    data = put(folder / "outside", b"x").read_bytes()
    manifest["../outside"] = {"size": 1, "sha256": hashlib.sha256(data).hexdigest()}
    put(path / "manifest.json", json.dumps(manifest).encode())
    return path


LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@attack("a billion laughs in YAML", train_with, r"bomb\.yaml is not readable JSON")
def _(folder):
    return put(folder / "bomb.yaml", LAUGHS.encode())


@attack("a network file with a class from outside", train_with, "code outside this library")
def _(folder):
    return put(folder / "a.json", b'{"class": "os:system", "config": {}}')


# ---------------------------------------------------------------------------- latents


def summary(**parts: Any) -> dict[str, bytes]:
    tree = {"shape": [4, 8, 8], "counts": [10], "classes": [], "bad": [], "null": {}}
    tree |= {"pipeline": {"folder": "p", "size": 16, "vae": "", "texts": ""}} | parts
    nodes = [[key, encoded(value)] for key, value in tree.items()]
    moments = {"data_mean": entry(0, 16, (4, 1, 1)), "data_std": entry(16, 32, (4, 1, 1))}
    moments = {key: value for key, value in moments.items() if key not in parts}
    nodes += [[key, {"tensor": key}] for key in moments]
    text = json.dumps({"format": "twosides tree", "version": 1, "tree": {"dict": nodes}})
    return {
        "tree.json": text.encode(),
        "tensors.safetensors": tensors(moments, struct.pack("<f", 1.0) * (4 * len(moments))),
    }


def encoded(value):
    if isinstance(value, dict):
        return {"dict": [[key, encoded(item)] for key, item in value.items()]}
    return {"int": hex(value)} if isinstance(value, int) and abs(value) >= 2**53 else value


def stored_latents(folder: Path, shard: bytes, **parts: Any) -> Path:
    committed(folder / "l/shard-00000", {"latents.safetensors": shard, "bad.json": b"[]"})
    committed(folder / "l/summary", summary(**parts))
    return folder / "l"


@attack("latents without tensors", latents, "has mean missing")
def _(folder):
    return stored_latents(folder, tensors({}))


@attack("latents that are fewer than said", latents, r"has mean \[1\]")
def _(folder):
    return stored_latents(folder, tensors({"mean": entry(0, 4)}, bytes(4)), counts=[10**12])


@attack("latents whose null prompt is no tensor", latents, "describes no latents")
def _(folder):
    return stored_latents(folder, tensors({}), null={"encoder_hidden_states": [0.0]})


@attack("latents whose moments are numbers", latents, "describes no latents")
def _(folder):
    return stored_latents(folder, tensors({}), data_std=1.0)


@attack("latents whose pipeline is nowhere", latents, "describes no latents")
def _(folder):
    return stored_latents(folder, tensors({}), pipeline={"folder": "p"})


@attack("latents whose pipeline has no size", latents, "describes no latents")
def _(folder):
    pipeline = {"folder": "p", "size": "many", "vae": "", "texts": ""}
    return stored_latents(folder, tensors({}), pipeline=pipeline)


@attack("latents whose summary is none", latents, "describes no latents")
def _(folder):
    return stored_latents(folder, tensors({}), counts="many")
