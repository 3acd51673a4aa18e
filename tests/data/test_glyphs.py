import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twosides.data import Glyphs, Reader, accuracy, fonts, train_reader

COUNT = 260


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of this file share; those that damage files have their own."""
    return tmp_path_factory.mktemp("cache")


def ink(letters: Glyphs) -> Tensor:
    """Images (count, size, size) with 0 for black and 1 for white."""
    return (letters.x[:, 0] + 1) / 2


def drawn_anew(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each set of images that is drawn, not read."""
    calls: list[int] = []
    draw = Glyphs._draw

    def counted(self: Glyphs) -> object:
        calls.append(self.count)
        return draw(self)

    monkeypatch.setattr(Glyphs, "_draw", counted)
    return calls


def test_an_image_depends_on_size_seed_split_and_index_alone(folder: Path, tmp_path: Path) -> None:
    letters = Glyphs(count=60, seed=3, cache=folder)
    assert torch.equal(letters.x[:40], Glyphs(count=40, seed=3, cache=tmp_path).x)
    assert torch.equal(letters.x, Glyphs(count=60, seed=3, cache=tmp_path).x)
    other = Glyphs(count=60, seed=4, cache=folder).x
    assert (letters.x != other).flatten(1).any(1).all()
    split = Glyphs(count=60, seed=3, split="validation", cache=folder).x
    assert (letters.x != split).flatten(1).any(1).all()


def test_images_of_one_letter_differ(folder: Path) -> None:
    letters = Glyphs(count=COUNT, cache=folder)
    assert len(torch.unique(letters.x[letters.labels == 0], dim=0)) == COUNT // 26


@pytest.mark.parametrize("split", ["train", "validation"])
def test_any_prefix_is_balanced(folder: Path, split: str) -> None:
    letters = Glyphs(count=COUNT, split=split, cache=folder)
    assert letters.classes == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for n in (26, 100, COUNT):
        seen = torch.bincount(letters.labels[:n], minlength=letters.num_classes)
        assert seen.max() - seen.min() <= (n % 26 > 0)


def test_items_have_the_form_a_training_step_expects(folder: Path) -> None:
    letters = Glyphs(count=COUNT, cache=folder)
    assert len(letters) == COUNT
    item = letters[27]
    assert set(item) == {"x", "class_labels"}
    assert item["x"].shape == (1, 16, 16) and item["x"].dtype == torch.float32
    assert item["class_labels"].shape == () and item["class_labels"].dtype == torch.int64
    assert letters.classes[item["class_labels"]] == "B"
    batch = next(
        iter(torch.utils.data.DataLoader(letters, batch_size=8, generator=torch.Generator()))
    )
    assert torch.equal(batch["x"], letters.x[:8])


def test_splits_share_no_font() -> None:
    assert not set(fonts("train")) & set(fonts("validation"))
    assert len(fonts("train")) + len(fonts("validation")) == 22


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_font_has_26_letters_that_differ(split: str) -> None:
    """A font without Latin letters draws the same box, or nothing, for all of them."""
    from twosides.data import glyphs

    for name in fonts(split):
        images = [glyphs._stamp(name, letter, 1).image for letter in Glyphs.classes]
        assert len({image.tobytes() for image in images}) == 26
        assert all(image.getbbox() for image in images)


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_letter_is_cut_off(folder: Path, split: str, size: int) -> None:
    images = ink(Glyphs(size, COUNT, split=split, cache=folder))
    width = size // 16
    border = images.clone()
    border[:, width:-width, width:-width] = 0
    assert border.max() < 0.02


@pytest.mark.parametrize("size", [16, 32])
def test_letters_fill_the_frame_with_white_on_black(folder: Path, size: int) -> None:
    letters = Glyphs(size, COUNT, cache=folder)
    assert letters.x.min() == -1 and letters.x.max() == 1
    images = ink(letters)
    height = (images.amax(2) > 0.25).sum(1) / size
    assert 0.65 < height.mean() < 0.85 and height.min() >= 0.5
    assert 0.1 < images.mean() < 0.4
    assert (images.flatten(1).amax(1) > 0.7).all()


def test_sizes_show_the_same_letters(folder: Path) -> None:
    small, large = ink(Glyphs(16, 52, cache=folder)), ink(Glyphs(32, 52, cache=folder))
    reduced = torch.nn.functional.avg_pool2d(large[:, None], 2)[:, 0]
    assert (small - reduced).abs().mean() < 0.02


def test_the_cache_is_read_and_holds_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn_anew(monkeypatch)
    monkeypatch.setenv("TWOSIDES_CACHE", str(tmp_path / "a" / "b"))
    first, second = Glyphs(count=30), Glyphs(count=30)
    assert calls == [30]
    assert torch.equal(first.x, second.x) and torch.equal(first.labels, second.labels)
    assert [file.suffix for file in (tmp_path / "a" / "b").iterdir()] == [".npz"]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def emptied(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [truncated, flipped, emptied])
def test_a_damaged_cache_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    calls = drawn_anew(monkeypatch)
    first = Glyphs(count=30, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be read"):
        second = Glyphs(count=30, cache=tmp_path)
    assert torch.equal(first.x, second.x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Glyphs(count=30, cache=tmp_path)
    assert calls == [30, 30]


def test_a_cache_file_of_other_images_is_made_again(tmp_path: Path) -> None:
    first = Glyphs(count=30, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    Glyphs(count=20, cache=tmp_path / "other")
    (other,) = (tmp_path / "other").iterdir()
    path.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="cannot be read"):
        assert torch.equal(first.x, Glyphs(count=30, cache=tmp_path).x)


def test_a_cache_that_cannot_be_written_is_a_warning(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be stored"):
        letters = Glyphs(count=30, cache=tmp_path / "file" / "cache")
    assert torch.equal(letters.x, Glyphs(count=30, cache=folder).x)


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twosides.data import glyphs

    def full(path: Path, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(glyphs, "write_file", full)
    with pytest.warns(UserWarning, match="no space left"):
        assert len(Glyphs(count=30, cache=tmp_path)) == 30
    assert not list(tmp_path.iterdir())


def test_an_unknown_split_names_the_known_ones() -> None:
    for ask in (lambda: Glyphs(count=1, split="test"), lambda: fonts("test")):
        with pytest.raises(ValueError, match=r"'test'.*'train', 'validation'"):
            ask()


@pytest.mark.parametrize("wrong", [{"size": 4}, {"count": 0}, {"seed": -1}])
def test_a_wrong_number_is_named(wrong: dict[str, int], tmp_path: Path) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} of Glyphs is an integer >= .*got {value}"):
        Glyphs(**wrong, cache=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    Glyphs(count=30, cache=tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    Glyphs(count=30, cache=tmp_path)
    with pytest.raises(ImportError, match=r"pip install 'twosides\[train\]'"):
        Glyphs(count=31, cache=tmp_path)


def test_letters_and_reader_leave_the_global_generators_alone(folder: Path, tmp_path: Path) -> None:
    import numpy as np

    before = torch.random.get_rng_state(), str(np.random.get_state())
    Glyphs(count=30, cache=tmp_path)
    brief(folder, seed=7)
    brief(folder, seed=7)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == str(np.random.get_state())


@pytest.fixture(autouse=True)
def fewer_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is trained on 1040 letters here, not 20000."""
    from twosides.data import reader

    monkeypatch.setattr(reader, "Glyphs", lambda size, cache: Glyphs(size, 1040, cache=cache))


def brief(cache: Path, seed: int = 0, steps: int = 2) -> Reader:
    return train_reader(seed=seed, steps=steps, cache=cache)


def test_a_briefly_trained_reader_reads_fonts_it_has_not_seen(folder: Path) -> None:
    letters = Glyphs(count=COUNT, split="validation", cache=folder)
    assert accuracy(brief(folder, steps=60), letters.x, letters.labels) > 0.7
    assert accuracy(brief(folder, steps=1), letters.x, letters.labels) < 0.3


def test_a_reader_depends_on_its_arguments_alone(folder: Path, tmp_path: Path) -> None:
    x = Glyphs(count=26, cache=folder).x
    logits = brief(folder)(x)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert torch.equal(logits, brief(tmp_path)(x))
    assert not torch.allclose(logits, brief(folder, seed=1)(x), atol=1e-2)
    assert not torch.allclose(logits, brief(folder, steps=3)(x), atol=1e-4)


def test_features_are_what_the_last_layer_sees(folder: Path) -> None:
    reader, x = brief(folder), Glyphs(32, 26, cache=folder).x
    features = reader.features(x)
    assert features.shape == (26, 128)
    assert torch.equal(reader.out(features), reader(x))


@pytest.mark.parametrize("damage", [truncated, flipped, emptied])
def test_a_damaged_reader_is_trained_again(
    folder: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    first = brief(folder)
    (path,) = folder.glob("reader*-2steps-seed0.safetensors")
    for file in folder.glob("*1040*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / path.name).write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="cannot be read"):
        second = brief(tmp_path)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brief(tmp_path)


def test_a_reader_whose_cache_cannot_be_written_is_still_trained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be stored") as caught:
        brief(tmp_path / "file" / "cache")
    assert any("reader" in str(warning.message) for warning in caught)
    assert not any("cannot be read" in str(warning.message) for warning in caught)


def test_accuracy_is_the_part_that_is_read(folder: Path) -> None:
    reader, x = brief(folder), Glyphs(count=52, cache=folder).x
    read = reader(x).argmax(1)
    assert accuracy(reader, x, read) == 1
    read[:13] = (read[:13] + 1) % 26
    assert accuracy(reader, x, read) == 0.75
    with pytest.raises(ValueError, match="52 images and 51 labels"):
        accuracy(reader, x, read[:51])
