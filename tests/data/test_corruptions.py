import colorsys
import math
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from tiny import ENVIRONMENT, NEEDS_FASHION_MNIST

from regrow.data import CORRUPTIONS, MISSING, Dataset, corrupt, corrupted
from regrow.data import corruption_formulas as formulas
from regrow.data.corruption_formulas import FORMULAS, Draws
from regrow.data.corruption_tables import LARGE, SMALL
from regrow.errors import RegrowValueError

NAMES = [name for name in CORRUPTIONS if name not in MISSING]
RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "fog",
    "elastic_transform",
}

# transcribed from hendrycks/robustness, make_cifar_c.py and make_imagenet_c.py, severity 1 to 5
PUBLISHED = {
    "gaussian_noise": ("0.04 0.06 .08 .09 .10", ".08 .12 0.18 0.26 0.38"),
    "shot_noise": ("500 250 100 75 50", "60 25 12 5 3"),
    "impulse_noise": (".01 .02 .03 .05 .07", ".03 .06 .09 0.17 0.27"),
    "defocus_blur": ("0.3,0.4 0.4,0.5 0.5,0.6 1,0.2 1.5,0.1", "3,0.1 4,0.5 6,0.5 8,0.5 10,0.5"),
    "glass_blur": ("0.05,1,1 0.25,1,1 0.4,1,1 0.25,1,2 0.4,1,2", "0.7,1,2 0.9,2,1 1,2,3 1.1,3,2 1.5,4,2"),
    "motion_blur": ("6,1 6,1.5 6,2 8,2 9,2.5", "10,3 15,5 15,8 15,12 20,15"),
    "zoom_blur": (
        "1.06,.01 1.11,.01 1.16,.01 1.21,.01 1.26,.01",
        "1.11,.01 1.16,.01 1.21,.02 1.26,.02 1.31,.03",
    ),
    "snow": (
        "0.1,0.2,1,0.6,8,3,0.95 0.1,0.2,1,0.5,10,4,0.9 0.15,0.3,1.75,0.55,10,4,0.9 0.25,0.3,2.25,0.6,12,6,0.85 "
        "0.3,0.3,1.25,0.65,14,12,0.8",
        "0.1,0.3,3,0.5,10,4,0.8 0.2,0.3,2,0.5,12,4,0.7 0.55,0.3,4,0.9,12,8,0.7 0.55,0.3,4.5,0.85,12,8,0.65 "
        "0.55,0.3,2.5,0.85,12,12,0.55",
    ),
    "fog": (".2,3 .5,3 0.75,2.5 1,2 1.5,1.75", "1.5,2 2,2 2.5,1.7 2.5,1.5 3,1.4"),
    "brightness": (".05 .1 .15 .2 .3", ".1 .2 .3 .4 .5"),
    "contrast": (".75 .5 .4 .3 0.15", "0.4 .3 .2 .1 .05"),
    "elastic_transform": (
        "0,0,0.08 0.05,0.2,0.07 0.08,0.06,0.06 0.1,0.04,0.05 0.1,0.03,0.03",
        "2,0.7,0.1 2,0.08,0.2 0.05,0.01,0.02 0.07,0.01,0.02 0.12,0.01,0.02",  # of 244
    ),
    "pixelate": ("0.95 0.9 0.85 0.75 0.65", "0.6 0.5 0.4 0.3 0.25"),
    "jpeg_compression": ("80 65 58 50 40", "25 18 15 10 7"),
}


def structured(count, channels, height, width):
    """Gratings of random direction and colour with a bright and a dark rectangle, each image rolled at random."""
    random = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.rand(count, channels, 1, 1, 3, generator=random)
    images = 120 + 80 * torch.sin((waves[..., 0] * x + waves[..., 1] * y) / 2 + 6 * waves[..., 2])
    images[:, :, height // 4 : height // 2, width // 4 : 3 * width // 4] = 250
    images[:, 0, height // 2 : -3, 3 : width // 3] = 10
    by = torch.randint(0, height, (count, 2), generator=random).tolist()
    rolled = [image.roll(shift, (1, 2)) for image, shift in zip(images, by, strict=True)]
    return torch.stack(rolled).to(torch.uint8)


GREY, COLOUR = structured(24, 1, 28, 30), structured(24, 3, 32, 32)


def draws(count, seed=0):
    return Draws([torch.Generator().manual_seed(seed + i) for i in range(count)])


def damage(images, name, severity):
    return float((corrupt(images, name, severity).double() - images.double()).abs().mean())


def test_the_published_list_and_its_parameters():
    assert len(CORRUPTIONS) == 15
    assert list(SMALL) == list(LARGE) == list(FORMULAS) == list(PUBLISHED) == NAMES
    for name, texts in PUBLISHED.items():
        for table, text in zip((SMALL, LARGE), texts, strict=True):
            numbers = [[float(number) for number in level.split(",")] for level in text.split()]
            if table is LARGE and name == "elastic_transform":
                numbers = [[pytest.approx(244 * number / 224) for number in level] for level in numbers]
            assert [list(level) for level in table[name]] == numbers


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pure_function_image_by_image(name, images):
    before, state = images.clone(), torch.get_rng_state()
    whole = corrupt(images, name, 3, seed=5)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    parts = [corrupt(images[a:b], name, 3, 5, start=a) for a, b in ((0, 1), (1, 10), (10, 24))]
    assert torch.equal(torch.cat(parts), whole)
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(corrupt(strided, name, 3, seed=5), whole)
    assert torch.equal(corrupt(images, name, 3, seed=6), whole) == (name not in RANDOM)
    twins = corrupt(images[:1].expand(2, -1, -1, -1), name, 3)
    assert torch.equal(twins[0], twins[1]) == (name not in RANDOM)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_worked_on_in_pieces_and_an_empty_one(name, monkeypatch):
    whole = corrupt(GREY, name, 2)
    monkeypatch.setattr("regrow.data.corruptions._VALUES", 5 * 28 * 30)
    assert torch.equal(corrupt(GREY, name, 2), whole)
    assert corrupt(GREY[:0], name, 2).shape == (0, 1, 28, 30)


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", NAMES)
def test_severity_does_more_damage(name, images):
    levels = [damage(images, name, severity) for severity in range(1, 6)]
    assert levels[0] > 0.3
    if name == "elastic_transform":  # the parameters trade displacement for roughness
        assert min(levels) > 5
    elif name == "glass_blur":  # two rounds at 4 and 5, one before
        assert min(levels[3:]) > 1.2 * max(levels[:3])
    elif name == "motion_blur":  # 3 and 4 have one sigma
        assert levels[0] < levels[1] < levels[2] < levels[4]
        assert levels[3] == pytest.approx(levels[2], rel=0.1)
    else:
        assert levels == sorted(set(levels))


def test_larger_images_have_the_other_parameters():
    grey = torch.full((1, 1, 64, 80), 100, dtype=torch.uint8)
    assert corrupt(grey, "brightness", 1).unique().item() == 112  # + 0.05 of 255, cut off
    larger = torch.full((1, 1, 65, 80), 100, dtype=torch.uint8)
    assert corrupt(larger, "brightness", 1).unique().item() == 125


@pytest.mark.parametrize("name", NAMES)
def test_larger_images(name):
    images = structured(2, 3, 72, 66)
    for severity in (1, 5):
        out = corrupt(images, name, severity)
        assert out.shape == images.shape
        assert not torch.equal(out, images)


# noise


def test_gaussian_noise_has_its_deviation():
    grey = torch.full((40, 1, 50, 50), 128, dtype=torch.uint8)
    error = corrupt(grey, "gaussian_noise", 3).double() - 128
    assert float(error.std()) == pytest.approx(0.08 * 255, rel=0.01)
    assert float(error.mean()) == pytest.approx(-0.5, abs=0.3)  # cut off after the point


def test_shot_noise_is_poisson():
    grey = torch.full((40, 1, 50, 50), 51, dtype=torch.uint8)  # 0.2, of 100 photons 20
    counts = corrupt(grey, "shot_noise", 3).double() / 2.55
    assert float(counts.mean()) == pytest.approx(20, rel=0.02)
    assert float(counts.var()) == pytest.approx(20, rel=0.03)
    assert (counts - counts.round()).abs().max() < 0.4  # whole photons, cut off to bytes


def test_impulse_noise_is_as_much_salt_as_pepper_and_nothing_else():
    grey = torch.full((40, 3, 50, 50), 77, dtype=torch.uint8)
    values, counts = corrupt(grey, "impulse_noise", 5).unique(return_counts=True)
    assert values.tolist() == [0, 77, 255]
    shares = (counts / counts.sum()).tolist()
    assert shares == pytest.approx([0.035, 0.93, 0.035], rel=0.03)


# blur


def test_defocus_of_a_point_is_the_disk():
    point = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    point[0, 0, 4, 4] = 255
    # radius 1: a plus of five pixels; its edge is smoothed with deviation 0.2, hardly anything
    out = corrupt(point, "defocus_blur", 4)[0, 0, 3:6, 3:6]
    assert out.tolist() == [[0, 50, 0], [50, 51, 50], [0, 50, 0]]
    # radius 0.3 is one pixel, smoothed with deviation 0.4
    side = math.exp(-1 / (2 * 0.4**2))
    line = np.array([side, 1, side]) / (1 + 2 * side)
    out = corrupt(point, "defocus_blur", 1)[0, 0, 3:6, 3:6]
    assert out.tolist() == np.floor(255 * np.outer(line, line)).tolist()
    # radius 10 touches the edge of its square, at which it is mirrored: the sum is a little more than 1
    y, x = np.mgrid[-10:11, -10:11]
    disk = (y**2 + x**2 <= 100) / (y**2 + x**2 <= 100).sum()
    expected = ndimage.gaussian_filter(disk, 0.5, mode="mirror", radius=2)
    assert np.allclose(formulas._disk(10, 0.5), expected, atol=1e-12)


@pytest.mark.parametrize("delta", [1, 3])
def test_glass_blur_scatters_as_the_loop_of_the_publication(delta):
    pixels = structured(6, 3, 20, 23)
    shift = draws(6).integers(-delta, delta, 2, 20, 23)
    assert (int(shift.min()), int(shift.max())) == (-delta, delta - 1)
    expected = pixels.clone()
    for image, (down, right) in zip(expected, shift.tolist(), strict=True):
        for h in range(20 - delta, delta, -1):
            for w in range(23 - delta, delta, -1):
                image[:, h, w] = image[:, h + down[h][w], w + right[h][w]]
    assert torch.equal(formulas._scattered(pixels, draws(6), delta), expected)


def test_glass_blur_smooths_before_and_after():
    def smooth(images):
        return ndimage.gaussian_filter(
            images.double().numpy() / 255, (0, 0, 0.4, 0.4), mode="nearest", truncate=4
        )

    state = draws(24)
    pixels = torch.from_numpy((smooth(GREY) * 255 + 1e-6).astype(np.uint8))
    for _ in range(2):
        pixels = formulas._scattered(pixels, state, 1)
    assert np.allclose(
        formulas.glass_blur(GREY.double() / 255, draws(24), 0.4, 1, 2), smooth(pixels), atol=1e-12
    )


def test_motion_blur_is_half_a_gaussian_along_a_line():
    point = torch.zeros(3, 1, 15, 15, dtype=torch.float64)
    point[:, :, 7, 7] = 1
    out = formulas._streaked(point, torch.tensor([0.0, 45.0, -90.0], dtype=torch.float64), 2, 1.5)[:, 0]
    weights = torch.exp(-(torch.arange(5.0, dtype=torch.float64) ** 2) / 4.5)  # 2 * radius + 1 pixels
    weights /= weights.sum()
    expected = torch.zeros(3, 15, 15, dtype=torch.float64)
    for step, weight in enumerate(weights):
        diagonal = math.ceil(step * math.sqrt(0.5) - 0.5)
        expected[0, 7, 7 - step] += weight
        expected[1, 7 - diagonal, 7 - diagonal] += weight
        expected[2, 7 + step, 7] += weight
    assert torch.allclose(out, expected, atol=1e-12)
    points = torch.zeros(50, 1, 41, 41, dtype=torch.uint8)
    points[:, :, 20, 20] = 255
    _, _, down, right = (corrupt(points, "motion_blur", 5).nonzero() - 20).T
    assert bool((right <= 0).all())
    assert bool((down.abs() <= -right).all())  # any angle within 45 degrees
    assert int(down.min()) < -3
    assert int(down.max()) > 3
    flat = torch.full((4, 1, 9, 9), 90, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, "motion_blur", 5), flat)  # beyond the edge is the edge


def clipped_zoom(image, factor):
    """The published function, of a square image [H, H]."""
    height = len(image)
    part = math.ceil(height / factor)
    top = (height - part) // 2
    large = ndimage.zoom(image[top : top + part, top : top + part], factor, order=1)
    trim = (len(large) - height) // 2
    return large[trim : trim + height, trim : trim + height]


@pytest.mark.parametrize("severity", [1, 5])
def test_zoom_blur_is_the_mean_of_the_published_zooms(severity):
    image = structured(1, 1, 32, 32)
    end = SMALL["zoom_blur"][severity - 1][0]
    x = image[0, 0].numpy() / 255
    zooms = [clipped_zoom(x, factor) for factor in np.arange(1, end, 0.01)]
    assert len(zooms) == {1: 7, 5: 26}[severity]
    expected = np.floor(255 * (x + sum(zooms)) / (len(zooms) + 1) + 1e-6)
    assert np.array_equal(corrupt(image, "zoom_blur", severity)[0, 0].numpy(), expected)


@pytest.mark.parametrize(
    ("sigma", "truncate", "border"), [(0.4, 4, "nearest"), (6.4, 3, "reflect"), (40, 3, "reflect")]
)
def test_smoothing_and_sampling_are_those_of_scipy(sigma, truncate, border):
    random = np.random.default_rng(0)
    x = random.random((28, 33))
    images = torch.from_numpy(x)[None, None]
    expected = ndimage.gaussian_filter(x, sigma, mode=border, truncate=truncate)
    assert np.allclose(formulas._smooth(images, sigma, truncate, border)[0, 0], expected, atol=1e-12)
    places = random.uniform(-10, 45, (28, 33, 2))
    for at_pixel, mode in ((True, "mirror"), (False, "reflect")):
        out = formulas._sampled(images, torch.from_numpy(places)[None], at_pixel)[0, 0]
        at = (places[..., 1], places[..., 0])
        assert np.allclose(out, ndimage.map_coordinates(x, at, order=1, mode=mode), atol=1e-10)


# weather


def test_snow_bleaches_and_adds_flakes_and_their_mirror_image():
    black = torch.zeros(50, 1, 32, 32, dtype=torch.uint8)
    out = corrupt(black, "snow", 1).double()
    assert int(out.min()) == 6  # (1 - 0.95) * 0.5
    assert torch.allclose(out, out.flip(2, 3), atol=1)
    assert 0.01 < float((out > 6).double().mean()) < 0.2
    assert out.diff(dim=2).abs().sum() < 0.8 * out.diff(dim=3).abs().sum()  # they fall
    colour = torch.tensor([200, 100, 40], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    grey = (0.299 * 200 + 0.587 * 100 + 0.114 * 40) / 255
    low = [0.95 * c / 255 + 0.05 * max(c / 255, 1.5 * grey + 0.5) for c in (200, 100, 40)]
    x = formulas.snow(colour.double() / 255, draws(1), 0, 0, 1, 0.6, 8, 3, 0.95)
    assert x[0, :, 0, 0].tolist() == pytest.approx(low)


def diamond_square(noise, decay):
    """The algorithm of the publication pixel by pixel, on a torus."""
    size = len(noise)
    cloud, step, wibble = np.zeros((size, size)), size, 100.0
    while step >= 2:
        half = step // 2
        squares = [(y + half, x + half) for y in range(0, size, step) for x in range(0, size, step)]
        diamonds = [((y + half) % size, x) for y, x in squares] + [(y, (x + half) % size) for y, x in squares]
        for places, around in (
            (squares, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (diamonds, [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            for y, x in places:
                mean = sum(cloud[(y + dy) % size, (x + dx) % size] for dy, dx in around) / 4
                cloud[y, x] = mean + wibble * wibble * noise[y, x]
        step, wibble = half, wibble / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def test_fog_is_a_plasma_fractal():
    noise = draws(2).uniform(-1, 1, 16, 16)
    out = formulas._plasma(draws(2), 16, 2.5)
    for cloud, of in zip(out, noise, strict=True):
        assert np.allclose(cloud, diamond_square(of.numpy(), 2.5), atol=1e-12)
    image = structured(1, 3, 12, 15).double() / 255
    expected = (
        (image + 0.5 * formulas._plasma(draws(1), 16, 3)[:, None, :12, :15])
        * image.max()
        / (image.max() + 0.5)
    )
    assert torch.allclose(formulas.fog(image, draws(1), 0.5, 3), expected)
    black = torch.zeros(1, 1, 12, 15, dtype=torch.uint8)
    assert torch.equal(corrupt(black, "fog", 5), black)


def test_brightness():
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(corrupt(grey, "brightness", 4), (grey.int() + 51).clamp(max=255).to(torch.uint8))
    random = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (1, 3, 8, 8), generator=random, dtype=torch.uint8)
    colour[0, :, 0, 0] = 0
    out = corrupt(colour, "brightness", 2)[0].flatten(1).T.tolist()
    for before, after in zip(colour[0].flatten(1).T.tolist(), out, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in before))
        expected = [255 * c for c in colorsys.hsv_to_rgb(h, s, min(1, v + 0.1))]
        assert after == [math.floor(c + 1e-6) for c in expected]


# digital


def test_contrast():
    for images in (GREY, COLOUR):
        x = images.double()
        mean = x.mean((2, 3), keepdim=True)
        expected = ((x - mean) * 0.4 + mean + 1e-5).floor()
        assert torch.equal(corrupt(images, "contrast", 3).double(), expected)


def test_elastic_transform_moves_three_points_where_they_are_drawn():
    # on slopes the value is the place: x in one image, y in the other, 0.01 a pixel
    line = torch.arange(30, dtype=torch.float64) / 100
    slopes = torch.stack([line.expand(30, 30), line[:, None].expand(30, 30)])[:, None]
    moved = torch.tensor([[25.0, 25], [25, 5], [5, 5]]).double() + draws(2).uniform(-1.5, 1.5, 3, 2)
    out = formulas.elastic_transform(slopes, draws(2), 0, 0, 0.05)
    for axis in (0, 1):
        at = moved[axis].T.flip(0).numpy()  # rows, columns
        found = ndimage.map_coordinates(out[axis, 0].numpy(), at, order=1)
        assert found == pytest.approx(np.array([[0.25, 0.25, 0.05], [0.25, 0.05, 0.05]][axis]), abs=1e-9)
    # beyond the edge is the mirror image
    image = structured(1, 1, 30, 30).double() / 255
    back = np.linalg.solve(np.c_[moved[0].numpy(), np.ones(3)], [[25, 25], [25, 5], [5, 5]])
    rows, columns = np.mgrid[:30, :30]
    x, y = np.moveaxis(np.dstack([columns, rows, np.ones((30, 30))]) @ back, 2, 0)
    assert min(x.min(), y.min()) < -0.5
    expected = ndimage.map_coordinates(image[0, 0].numpy(), (y, x), order=1, mode="mirror")
    assert np.allclose(formulas.elastic_transform(image, draws(1), 0, 0, 0.05)[0, 0], expected, atol=1e-9)
    # then shifts: 0.1 of the side times smoothed noise
    shifted = formulas.elastic_transform(slopes, draws(2), 0.1, 0.1, 0.0)
    state = draws(2)
    state.uniform(0, 1, 3, 2)
    noise = state.uniform(-1, 1, 2, 30, 30)
    for axis in (0, 1):
        field = 3 * ndimage.gaussian_filter(noise[axis, axis].numpy(), 3, mode="reflect", truncate=3)
        inner = (slice(4, -4), slice(4, -4))
        assert np.allclose(shifted[axis, 0].numpy()[inner], (slopes[axis, 0].numpy() + field / 100)[inner])


def test_pixelate_of_a_multiple_is_the_mean_of_blocks():
    images = structured(3, 3, 96, 80)
    blocks = images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))  # severity 2: half of each side
    expected = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    error = corrupt(images, "pixelate", 2).double() - expected  # rounded along rows, then along columns
    assert error.abs().max() <= 1


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_jpeg_is_pillows_round_trip(images):
    out = corrupt(images, "jpeg_compression", 5)
    for image, after in zip(images, out, strict=True):
        file = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, "JPEG", quality=40)
        read = np.asarray(Image.open(file))
        assert np.array_equal(after.permute(1, 2, 0).squeeze(2).numpy(), read)


# all of them


def test_corrupted_goes_through_names_and_severities():
    found = list(corrupted(GREY[:3], [5, 1], ["fog", "contrast"], 4, start=7))
    assert [(name, severity) for name, severity, _ in found] == [
        ("fog", 5),
        ("fog", 1),
        ("contrast", 5),
        ("contrast", 1),
    ]
    for name, severity, images in found:
        assert torch.equal(images, corrupt(GREY[:3], name, severity, 4, start=7))
    every = [(name, severity) for name, severity, _ in corrupted(GREY[:1])]
    assert every == [(name, severity) for name in NAMES for severity in range(1, 6)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "gausian_noise"},
            "`name` must be a corruption, got 'gausian_noise', did you mean `gaussian_noise`?",
        ),
        ({"name": ["fog"]}, r"`name` must be a corruption, got \['fog'\]"),
        ({"name": "frost"}, "not 'frost': it lays photographs"),
        ({"severity": 0}, "`severity` must be a whole number from 1 to 5, got 0"),
        ({"severity": 6}, "got 6"),
        ({"severity": True}, "got True"),
        ({"severity": 2.5}, "got 2.5"),
        ({"images": GREY.float()}, "`images` must be a tensor of bytes, torch.uint8, got torch.float32"),
        ({"images": GREY.numpy()}, "got ndarray"),
        ({"images": GREY[0]}, r"must be of shape \[N, C, H, W\], .* got \[1, 28, 30\]"),
        ({"images": GREY.expand(-1, 2, -1, -1)}, r"got \[24, 2, 28, 30\]"),
        ({"images": GREY[:, :, :7]}, r"at least 8, got \[24, 1, 7, 30\]"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        ({"start": 0.5}, "`start` must be a whole number of at least 0, got 0.5"),
    ],
)
def test_refused(given, message):
    arguments = {"images": GREY, "name": "fog", "severity": 1, **given}
    with pytest.raises(RegrowValueError, match=message):
        corrupt(**arguments)
    images, name, severity = (arguments.pop(key) for key in ("images", "name", "severity"))
    with pytest.raises(RegrowValueError, match=message):  # at once, before the first is asked for
        corrupted(images, [severity], [name], **arguments)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": []}, r"`names` must be a list of at least one, got \[\]"),
        ({"names": "fog"}, "`names` must be a list of at least one, got 'fog'"),
        ({"severities": ()}, r"`severities` must be a list of at least one, got \(\)"),
        ({"severities": 3}, "`severities` must be a list of at least one, got 3"),
    ],
)
def test_refused_lists(given, message):
    with pytest.raises(RegrowValueError, match=message):
        corrupted(GREY, **given)


@NEEDS_FASHION_MNIST
def test_the_picture(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "studies" / "corruptions.py"
    command = [sys.executable, str(script), "--first", "20", "--out", str(tmp_path)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    for name in ("corruptions.png", "corruptions.pdf"):
        assert str(tmp_path / name) in ended.stdout
        assert (tmp_path / name).stat().st_size > 20_000


def test_images_that_are_kept_normalised_come_back_as_the_bytes_they_were() -> None:
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    data = Dataset("made", images, torch.zeros(5), images, torch.zeros(5), 2, mean=0.2861, std=0.3530)
    assert torch.equal(data.in_bytes(data.prepare(images)), images)
    assert data.in_bytes(images) is images
