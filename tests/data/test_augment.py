import numpy as np
import pytest
import torch
from torch.nn import functional as F

from regrow.data import Augment
from regrow.errors import RegrowValueError

IMAGES = torch.randint(1, 256, (64, 3, 10, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ALL = Augment(crop=2, resized_crop=8, flip=True)


@pytest.mark.parametrize("images", [IMAGES, IMAGES / 255])
@pytest.mark.parametrize("augment", [Augment(crop=2), Augment(flip=True), Augment(resized_crop=8), ALL])
def test_a_pure_function_of_seed_and_step(augment, images):
    first = augment.train(images, 3, 17)
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(first, augment.train(images, 3, 17))
    assert not torch.equal(first, augment.train(images, 3, 18))
    assert not torch.equal(first, augment.train(images, 4, 17))
    assert first.dtype == images.dtype


def test_nothing_is_nothing():
    assert not Augment()
    assert Augment().train(IMAGES, 0, 0) is IMAGES
    assert Augment(crop=2).test(IMAGES) is IMAGES


def test_each_crop_is_a_cut_of_the_padded_image_and_every_place_comes():
    padded = F.pad(IMAGES, [2] * 4)
    places = set()
    for step in range(20):
        for image, whole in zip(Augment(crop=2).train(IMAGES, 0, step), padded, strict=True):
            cuts = {(y, x): whole[:, y : y + 10, x : x + 12] for y in range(5) for x in range(5)}
            found = [place for place, cut in cuts.items() if torch.equal(cut, image)]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) == 25


@pytest.mark.parametrize("border", ["symmetric", "reflect"])
def test_a_border_mirrors_the_image(border):
    row = torch.arange(5, dtype=torch.uint8).view(1, 1, 1, 5).expand(1, 1, 5, 5)
    wanted = {"symmetric": [1, 0, 0, 1, 2, 3, 4, 4, 3], "reflect": [2, 1, 0, 1, 2, 3, 4, 3, 2]}[border]
    # TensorFlow's and torch's own words for the same
    assert np.pad(range(5), 2, mode=border).tolist() == wanted
    for images in (IMAGES, IMAGES / 255, row):
        height, width = images.shape[2:]
        padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode=border))
        for image, whole in zip(Augment(crop=2, border=border).train(images, 0, 3), padded, strict=True):
            cuts = [whole[:, y : y + height, x : x + width] for y in range(5) for x in range(5)]
            assert any(torch.equal(cut, image) for cut in cuts)
            assert image.dtype == images.dtype


def test_a_border_that_the_image_is_too_small_for():
    Augment(crop=8, border="symmetric").check([3, 8, 9])
    Augment(crop=9).check([3, 8, 9])
    for border, most in (("reflect", 7), ("symmetric", 8)):
        with pytest.raises(
            RegrowValueError,
            match=rf"`augment.crop` must be at most {most} where `augment.border` is {border} and images are 8 x 9, "
            rf"got {most + 1}",
        ):
            Augment(crop=most + 1, border=border).check([3, 8, 9])


def test_about_half_are_mirrored():
    mirrored = 0
    for step in range(20):
        for image, before in zip(Augment(flip=True).train(IMAGES, 0, step), IMAGES, strict=True):
            assert torch.equal(image, before) != torch.equal(image, before.flip(2))
            mirrored += torch.equal(image, before.flip(2))
    assert 560 < mirrored < 720  # 640 are expected, with a deviation of 18


def test_resized_crop_of_everything_is_the_image_itself():
    square = IMAGES[:, :, :, :10]
    augment = Augment(resized_crop=10, scale=[1, 1], ratio=[1, 1])
    assert torch.equal(augment.train(square, 0, 0), square)


def test_resized_crop_is_within_the_image_and_as_large_as_asked():
    # a ramp tells where each pixel comes from
    ramp = torch.arange(100.0).expand(512, 2, 50, 100).clone()
    ramp[:, 1] = torch.arange(50.0)[:, None]
    cut = Augment(resized_crop=20, scale=[0.1, 0.5], ratio=[0.5, 2]).train(ramp, 0, 0)
    left, right = cut[:, 0, 0, 0], cut[:, 0, 0, -1]
    top, bottom = cut[:, 1, 0, 0], cut[:, 1, -1, 0]
    # the pixels' centres are half a pixel of the cut inside its edges
    width, height = (right - left) * 20 / 19, (bottom - top) * 20 / 19
    assert bool(
        (left >= -0.01).all() and (right <= 99.01).all() and (top >= -0.01).all() and (bottom <= 49.01).all()
    )
    inside = (left > 2) & (right < 97) & (top > 2) & (bottom < 47) & (height < 45)
    area, ratio = (width * height / 5000)[inside], (width / height)[inside]
    assert inside.sum() > 100
    assert 0.09 < float(area.min()) < 0.15
    assert 0.4 < float(area.max()) < 0.51
    assert 0.49 < float(ratio.min()) < 0.6
    assert 1.7 < float(ratio.max()) < 2.05  # sides are whole pixels


def test_a_part_that_never_fits_is_the_largest_in_the_middle():
    """As torchvision's RandomResizedCrop: after ten attempts, with the nearest ratio that is allowed."""
    ramp = torch.arange(100.0).expand(4, 1, 10, 100).clone()
    for images, axis in ((ramp, 3), (ramp.transpose(2, 3), 2)):
        cut = Augment(resized_crop=8, scale=[0.9, 1]).train(images, 0, 0)
        # 13 of 100 from the 43rd on, in eight pixels
        wanted = 43 + (torch.arange(8) + 0.5) * 13 / 8 - 0.5
        torch.testing.assert_close(
            cut, wanted.view([1, 1, 8, 1] if axis == 2 else [1, 1, 1, 8]).expand(4, 1, 8, 8)
        )


def test_a_part_is_another_draw_where_one_does_not_fit():
    augment = Augment(resized_crop=4, scale=[0.08, 1])
    part = augment._parts(2000, torch.Generator().manual_seed(0))
    parts = torch.tensor([part(number, 30, 60) for number in range(2000)])
    top, left, height, width = parts.T
    assert bool((top >= 0).all() and (left >= 0).all())
    assert bool((top + height <= 30).all() and (left + width <= 60).all())
    assert int((top + height == 30).sum()) > 20  # every place comes, up to the last row
    assert 0.7 < float((width / height).min()) < 0.8  # 3 / 4, in whole pixels
    assert 1.25 < float((width / height).max()) < 1.43
    # a square of more than half of the image would not fit: it is drawn again, not made flat
    assert float((height * width).max()) <= 30 * 40


def test_the_centre_is_tested():
    assert torch.equal(Augment(resized_crop=6).test(IMAGES), IMAGES[:, :, 2:8, 3:9])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop": -1}, r"`augment.crop` must be a whole number of at least 0, got -1"),
        ({"crop": True}, r"`augment.crop` must be a whole number"),
        ({"resized_crop": 0}, r"`augment.resized_crop` must be a whole number of at least 1, got 0"),
        (
            {"border": "mirror"},
            r"`augment.border` must be one of zeros, reflect, symmetric, got 'mirror'",
        ),
        ({"flip": 1}, r"`augment.flip` must be true or false, got 1"),
        (
            {"scale": [0.5, 1.5]},
            r"`augment.scale` must be two numbers above 0, the smaller first, at most 1, got \[0.5, 1.5\]",
        ),
        ({"scale": [0, 1]}, r"`augment.scale` must be"),
        ({"scale": 0.5}, r"`augment.scale` must be"),
        ({"scale": ["a", "b"]}, r"`augment.scale` must be"),
        ({"ratio": [2, 1]}, r"`augment.ratio` must be two numbers above 0, the smaller first, got \[2, 1\]"),
        ({"ratio": [1, 2, 3]}, r"`augment.ratio` must be"),
    ],
)
def test_options_that_are_refused(options, text):
    with pytest.raises(RegrowValueError, match=text):
        Augment(**options)


def test_examples_that_do_not_fit():
    with pytest.raises(
        RegrowValueError, match=r"`augment` is for images \[C, H, W\], got examples of shape \[128\]"
    ):
        Augment(flip=True).check([128])
    with pytest.raises(
        RegrowValueError, match=r"`augment.resized_crop` must be at most the images' size, 10, got 11"
    ):
        Augment(resized_crop=11).check([3, 10, 12])
    Augment().check([128])
