"""The command line on data of one's own: look, encode, train, sample."""

import numpy as np
import pytest
from PIL import Image

from text_pipelines import saved

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is replaced by the next:UserWarning"),
]


@pytest.fixture
def cli(cli, tmp_path):
    """The program in a folder with photos of cats and dogs."""
    for i in range(12):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    return cli


def test_images_are_looked_at_trained_on_and_drawn_by_class(cli, tmp_path):
    code, out, err = cli("data", "folder:photos?size=16", "--out", "sheet.png")
    assert code == 0, err
    assert "12 samples, each (3, 16, 16)" in out and "2: cat 6, dog 6" in out
    with Image.open("sheet.png") as picture:
        assert picture.size == (4 * (8 * 17 + 1), 4 * (2 * 17 + 1))
    words = ("--steps", 2, "--batch", 2, "--out", "run", "--picture-every", 2)
    code, out, err = cli("train", "folder:photos?size=16,flip", *words)
    assert code == 0, err
    assert len(list((tmp_path / "run/samples").glob("*.png"))) == 1
    code, _, err = cli("sample", "run", "--labels", "dog,cat,dog", "--steps", 2, "--out", "a.npy")
    assert code == 0, err
    drawn = np.load("a.npy", allow_pickle=False)
    assert drawn.shape == (3, 3, 16, 16) and not np.array_equal(drawn[0], drawn[2])
    code, _, err = cli("sample", "run", "--labels", "dog,dig", "--out", "a.npy")
    assert code == 2 and "unknown class 'dig'; did you mean 'dog'" in err


def test_latents_are_encoded_looked_at_and_trained_on(cli, tmp_path):
    saved("sd", tmp_path / "pipeline")
    encode = ("encode-latents", "folder:photos?size=16", "--pipeline", "pipeline", "--out", "l")
    code, out, err = cli(*encode)
    assert code == 0 and "12 latents" in out and "twosides train latents:l" in out, err
    code, out, err = cli("data", "latents:l", "--out", "sheet.png")
    assert code == 0 and "12 samples, each (4, 8, 8)" in out and (tmp_path / "sheet.png").is_file()
    code, _, err = cli("train", "latents:l", "--steps", 2, "--batch", 2, "--out", "run")
    assert code == 0, err
    code, _, err = cli("sample", "run", "--labels", "cat", "--steps", 2, "--out", "a.npy")
    assert code == 0 and np.load("a.npy").shape == (1, 4, 8, 8), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data", "folder:nowhere"), "nowhere is not a folder of images"),
        (("data", "folder:photos?sise=8"), "did you mean 'size'"),
        (("data", "photos"), "folder:photos of pictures"),
        (("data", "ring", "--out", "a.gif"), "not '.gif'"),
        (("data", "latents:photos"), "twosides encode-latents"),
        (("encode-latents", "ring", "--pipeline", "p", "--out", "l"), "no set of images"),
    ],
)
def test_errors_are_a_line(cli, words, message):
    code, _, err = cli(*words)
    assert code == 2 and message in err and "Traceback" not in err
