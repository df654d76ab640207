"""Training images that stay in their files."""

import numpy as np
import pytest
import torch
from PIL import Image
from published import write_images
from tiny import write_recipe

from regrow.app.recipes import load
from regrow.app.training.batches import Batches
from regrow.data import Augment, image_folder
from regrow.errors import RegrowValueError

# these runs are a few steps long, shorter than the intervals of their recipes
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no update within")


@pytest.fixture
def wide(tmp_path, monkeypatch):
    """PNG files of 90 x 30 pixels whose red is the column and whose green is the row."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = np.zeros((30, 90, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(90), np.arange(30)[:, None]
    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "ramps" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels[..., 2] = number
                Image.fromarray(pixels).save(tmp_path / "ramps" / split / name / f"{number}.png")
    return str(tmp_path / "ramps")


def test_only_the_test_images_are_decoded_in_advance(wide, tmp_path):
    data, squares = image_folder(wide, size=20, whole=True), image_folder(wide, size=20)
    assert data.train_inputs.shape == squares.train_inputs.shape == (16, 3, 20, 20)
    assert torch.equal(data.test_inputs, squares.test_inputs)
    assert torch.equal(data.train_inputs.to("cpu"), squares.train_inputs)
    assert torch.equal(data.train_inputs[torch.tensor([9, 3])].to("cpu"), squares.train_inputs[[9, 3]])
    assert (data.mean, data.std) == (squares.mean, squares.std)
    sizes = {array.stat().st_size for array in (tmp_path / "cache" / "regrow" / "images").iterdir()}
    assert min(sizes) < 4 * 1200 + 200


def test_parts_are_cut_out_of_the_whole_image(wide):
    """RandomResizedCrop of the original: columns that no central square of 30 x 30 (30 .. 59) has."""
    data = image_folder(wide, size=24, whole=True)
    augment = Augment(resized_crop=10, scale=(0.08, 0.2))
    seen = torch.cat([augment.train(data.train_inputs, 0, step) for step in range(10)])
    assert seen.dtype == torch.uint8
    assert seen.shape == (160, 3, 10, 10)
    assert int(seen[:, 0].min()) < 5
    assert int(seen[:, 0].max()) > 84
    assert int(seen[:, 1].max()) > 27  # in the pixels of the file: 30 rows, not 24
    assert torch.equal(augment.train(data.train_inputs, 0, 3), seen[48:64])
    # the very part, as Pillow cuts and resizes it
    part = augment._parts(16, torch.Generator().manual_seed(5))
    top, left, height, width = part(11, 30, 90)
    with Image.open(data.train_inputs.files[11]) as whole:
        box = whole.crop((left, top, left + width, top + height))
    wanted = np.asarray(box.resize((10, 10), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert torch.equal(data.train_inputs.cut(part, 10)[11], torch.from_numpy(wanted.copy()))


def test_grey_images(wide):
    data = image_folder(wide, size=24, channels=1, whole=True)
    assert Augment(resized_crop=10).train(data.train_inputs, 0, 0).shape == (16, 1, 10, 10)


def test_a_run_sees_parts_and_tests_central_squares(wide, tmp_path):
    keys = [f"data={{name: image-folder, folder: {wide}, size: 24, whole: true}}", "batch_size=4"]
    augmented = [*keys, "augment={resized_crop: 20, flip: true}", "validation=0.25"]
    data = image_folder(wide, size=24, whole=True)
    batches = Batches(data, load(str(write_recipe(tmp_path)), augmented), torch.device("cpu"))
    inputs, targets = batches.train(2)
    assert (inputs.shape, inputs.dtype, targets.shape) == ((4, 3, 20, 20), torch.float32, (4,))
    assert torch.equal(inputs, batches.train(2)[0])
    squares = image_folder(wide, size=24)
    kept = Batches(squares, load(str(write_recipe(tmp_path)), augmented), torch.device("cpu"))
    for one, other in zip(batches.test(), kept.test(), strict=True):
        assert torch.equal(one[0], other[0])
    for cut in ("{}", "{crop: 2}", "{crop: 2, resized_crop: 20}"):
        with pytest.raises(RegrowValueError, match=r"`data.whole` is true, but `augment` cuts no parts"):
            Batches(data, load(str(write_recipe(tmp_path)), [*keys, f"augment={cut}"]), torch.device("cpu"))


def test_whole_images_need_a_size(tmp_path):
    write_images(tmp_path / "animals")
    for options, said in (
        ({"whole": True}, "`data.whole` is true without `data.size`"),
        ({"whole": "yes", "size": 8}, "`data.whole` must be true or false"),
    ):
        with pytest.raises(RegrowValueError, match=said):
            image_folder(str(tmp_path / "animals"), **options)
