"""Folders of images: what is decoded, what is skipped, what is refused."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from twosides.data.decode import BadImage, Frame
from twosides.data.images import Folder, Images
from twosides.data.named import SOURCES, options_of, source_named, task_named


def stored(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bytes_of(x):
    """Back to the 8-bit values (H, W, C) that the tensor stands for."""
    return ((x.double() + 1) * 127.5).permute(1, 2, 0).numpy()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_are_exact_where_nothing_is_resized():
    values = noise(8, 8, 3)
    x = Frame(8).read(stored(Image.fromarray(values)))
    assert x.shape == (3, 8, 8) and x.dtype == torch.float32
    np.testing.assert_allclose(bytes_of(x), values, atol=1e-4)
    grey = Frame(8, grey=True).read(stored(Image.fromarray(values[..., 0])))
    np.testing.assert_allclose(bytes_of(grey)[..., 0], values[..., 0], atol=1e-4)
    np.testing.assert_allclose(
        bytes_of(Frame(8).read(stored(Image.fromarray(values[..., 0])))),
        values[..., :1].repeat(3, 2),
        atol=1e-4,
    )


@pytest.mark.parametrize("width", [8, 14])
def test_the_centre_is_cut_out(width):
    values = noise(8, width, 3)
    x = Frame(8).read(stored(Image.fromarray(values)))
    start = (width - 8) // 2
    np.testing.assert_allclose(bytes_of(x), values[:, start : start + 8], atol=1e-4)


def test_a_mean_survives_reduction():
    """Of a periodic pattern any unbiased filter gives the mean away from the border."""
    values = np.indices((64, 64)).sum(0) % 2 * 200
    x = Frame(8, grey=True).read(stored(Image.fromarray(values.astype(np.uint8))))
    np.testing.assert_allclose(bytes_of(x)[1:-1, 1:-1], 100, atol=1.01)


def test_sixteen_bits_are_kept():
    values = noise(8, 8, 2).view(np.uint16)[..., 0]
    x = Frame(8, grey=True).read(stored(Image.fromarray(values)))
    np.testing.assert_allclose((x[0].double() + 1) / 2 * 65535, values, atol=0.01)
    assert Frame(8).read(stored(Image.fromarray(values), "TIFF")).shape == (3, 8, 8)


def test_palettes_are_looked_up_and_transparency_lies_on_white():
    colours = noise(4, 3)
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "P")
    image.putpalette(colours.tobytes())
    np.testing.assert_allclose(
        bytes_of(Frame(8).read(stored(image))), colours[np.asarray(image)], atol=1e-4
    )
    clear = Frame(8).read(stored(image, transparency=2))
    wanted = np.where((np.asarray(image) == 2)[..., None], 255, colours[np.asarray(image)])
    np.testing.assert_allclose(bytes_of(clear), wanted, atol=1e-4)
    rgba = np.concatenate([noise(8, 8, 3), np.full((8, 8, 1), 51, np.uint8)], 2)
    mixed = rgba[..., :3] * 0.2 + 255 * 0.8
    np.testing.assert_allclose(
        bytes_of(Frame(8).read(stored(Image.fromarray(rgba)))), mixed, atol=0.6
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(orientation):
    values = noise(8, 8, 3)
    turned = {
        1: values,
        2: values[:, ::-1],
        3: values[::-1, ::-1],
        4: values[::-1],
        5: values.transpose(1, 0, 2),
        6: np.rot90(values, -1),
        7: np.rot90(values, 2).transpose(1, 0, 2),
        8: np.rot90(values, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    x = Frame(8).read(stored(Image.fromarray(values), exif=exif))
    np.testing.assert_allclose(bytes_of(x), turned, atol=1e-4)


def test_modes_without_a_black_and_white_are_refused():
    image = Image.fromarray(np.zeros((8, 8), np.float32))
    with pytest.raises(BadImage, match="mode F"):
        Frame(8).read(stored(image, "TIFF"))
    with pytest.raises(ValueError, match="pixels, got 0"):
        Frame(0)


# ---------------------------------------------------------------------------- folders


@pytest.fixture
def photos(tmp_path):
    """Two classes of six images; cat/2 and cat/3 are damaged."""
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(6):
            data = stored(Image.fromarray(noise(8, 8, 3, seed=i + 6 * (kind == "dog"))))
            bad = kind == "cat" and i in (2, 3)
            (tmp_path / kind / f"{i}.png").write_bytes(data[:60] if bad else data)
    (tmp_path / "dog" / "0.txt").write_text(" a dog\n")
    return tmp_path


def quietly(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [data[i] for i in range(len(data))]


def test_folders_are_classes_and_bad_images_the_next_good_one(photos):
    data = Images(Folder(photos), Frame(8), max_bad=0.2)
    assert len(data) == 12 and data.classes == ("cat", "dog")
    with pytest.warns(UserWarning, match=r"cat/2\.png is damaged.*without further") as warned:
        samples = [data[i] for i in range(12)]
    assert len(warned) == 1
    assert [int(s["class_labels"]) for s in samples] == [0] * 6 + [1] * 6
    assert torch.equal(samples[2]["x"], samples[4]["x"])
    assert torch.equal(samples[3]["x"], samples[4]["x"])
    assert sorted(data.bad) == [2, 3] and "cat/3.png" in data.bad[3]
    backwards = Images(Folder(photos), Frame(8), max_bad=0.2)
    with pytest.warns(UserWarning, match=r"cat/3\.png"):
        for i in reversed(range(12)):
            assert torch.equal(backwards[i]["x"], samples[i]["x"])
    assert data.files[6].caption == "a dog" and data.files[7].caption is None


def test_the_mirror_images_follow(photos):
    data = Images(Folder(photos), Frame(8), flip=True, max_bad=0.2)
    samples = quietly(data)
    assert len(samples) == 24
    for plain, mirrored in zip(samples[:12], samples[12:], strict=True):
        assert torch.equal(plain["x"].flip(-1), mirrored["x"])
        assert plain["class_labels"] == mirrored["class_labels"]
    with pytest.raises(IndexError):
        data[24]


def test_too_many_bad_images_are_an_error(photos):
    data = Images(Folder(photos), Frame(8), max_bad=0.1)
    with pytest.raises(ValueError, match=r"more than 1 of 12 .*\n  cat/2\.png is damaged"):
        quietly(data)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 12 images is good"):
        quietly(Images(Folder(photos), Frame(8), max_bad=0.99))


def test_classes_must_be_clear(photos, tmp_path):
    (photos / "loose.png").write_bytes(b"")
    with pytest.raises(ValueError, match="labels=false"):
        Folder(photos)
    assert Folder(photos, labels=False).classes == ()
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        Images(Folder(photos / "empty"), Frame(8))
    with pytest.raises(FileNotFoundError):
        Folder(photos / "none")


# ---------------------------------------------------------------------------- names


def test_a_name_has_options(photos):
    task = task_named(f"folder:{photos}?size=16,grey,flip=true,max_bad=0.3")
    assert task.shape == (1, 16, 16) and len(task.data) == 24
    assert task.classes == ("cat", "dog") and task.null == {"class_labels": 2}
    assert task.network["config"]["num_class_embeds"] == 3
    plain = task_named(f"folder:{photos}?labels=false")
    assert plain.shape == (3, 64, 64) and plain.null == {} and plain.classes == ()
    assert "num_class_embeds" not in plain.network["config"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder:{}?sise=16", "unknown option of folder: 'sise'; did you mean 'size'"),
        ("folder:{}?size=big", "size is of type int, got 'big'"),
        ("folder:{}?flip=perhaps", "flip is true or false, got 'perhaps'"),
        ("folder:{}?size=8,size=16", "given twice"),
        ("folder:{}?max_bad=2", "max_bad"),
        ("glifs", "did you mean 'glyphs'.*folder:"),
    ],
)
def test_wrong_names_are_errors(photos, name, words):
    with pytest.raises(ValueError, match=words):
        task_named(name.format(photos))


@pytest.mark.parametrize("kind", SOURCES)
def test_every_option_is_a_word_or_number(kind):
    assert all(type(value) in (bool, int, float, str) for value in options_of(kind).values())
    with pytest.raises((ValueError, OSError)):
        source_named(f"{kind}:/nowhere/at all")


def test_a_network_is_called_with_what_the_data_give(photos):
    from twosides.storage.models import build_network

    for size in (6, 24):
        task = task_named(f"folder:{photos}?size={size},max_bad=0.3")
        sample = quietly(task.data)[0]
        network = build_network(task.network)
        with torch.no_grad():
            labels = sample["class_labels"][None]
            answer = network(sample["x"][None], torch.zeros(1), class_labels=labels)
        assert answer.sample.shape == (1, 3, size, size)
