import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import NEEDS_FASHION_MNIST, idx_bytes, images, write_folder

from regrow.data import fashion_mnist, idx, mnist, read_idx
from regrow.errors import RegrowValueError

PIXELS, LABELS = images(6, seed=0)
WHOLE = idx_bytes(PIXELS)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reads_what_was_written(tmp_path, pack):
    path = tmp_path / "x"
    path.write_bytes(pack(WHOLE))
    read = read_idx(path, 3)
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read.numpy(), PIXELS)
    read[0] = 0  # the memory is the tensor's own


def test_published_header():
    # the first sixteen bytes of MNIST's train-images-idx3-ubyte, as published
    array = np.zeros((60000, 28, 28), dtype=np.uint8)
    assert idx_bytes(array)[:16] == bytes.fromhex("00000803 0000ea60 0000001c 0000001c")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"holds 0 bytes, allowed is an IDX header of at least 4"),
        (b"\x89PNG" + WHOLE, r"begins with bytes 89 50, allowed is an IDX file, which begins with 00 00"),
        (WHOLE[:2] + b"\x0d" + WHOLE[3:], r"values of type 0x0D \(float32\), allowed is 0x08 \(uint8\)"),
        (WHOLE[:2] + b"\x77" + WHOLE[3:], r"values of type 0x77 \(unknown\), allowed is 0x08"),
        (idx_bytes(LABELS), r"has 1 dimensions, allowed is 3"),
        (WHOLE[:9], r"cut short in its header, after 9 bytes, allowed is 16 bytes of header"),
        (struct.pack(">I3i", 0x803, 6, 0, 8), r"has shape \[6, 0, 8\], allowed is sizes of at least 1"),
        (struct.pack(">I3i", 0x803, -6, 8, 8), r"has shape \[-6, 8, 8\], allowed is sizes of at least 1"),
        (WHOLE[:-5], r"is cut short: 379 values, allowed is 384, for its shape \[6, 8, 8\]"),
        (WHOLE + b"xyz", r"has 3 bytes to spare, allowed is 384 values, for its shape \[6, 8, 8\]"),
        (struct.pack(">I3i", 0x803, 2**31 - 1, 2**31 - 1, 9), r"is cut short: 0 values"),
        (gzip.compress(WHOLE)[:-9], r"is cut short: its gzip stream has no end, allowed is a whole file"),
        (gzip.compress(WHOLE)[:-8] + b"\0" * 8, r"is damaged: CRC check failed"),
        (gzip.compress(WHOLE)[:10] + b"\xff" * 200, r"is damaged: .*invalid block type"),
    ],
)
def test_bad_file(tmp_path, content, text):
    path = tmp_path / "bad-images"
    path.write_bytes(content)
    with pytest.raises(RegrowValueError, match=text) as error:
        read_idx(path, 3)
    assert str(error.value).startswith(str(path))
    assert "`data.folder`" in str(error.value).splitlines()[-1]


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(RegrowValueError, match=r"cannot read .*nothing: No such file"):
        read_idx(tmp_path / "nothing", 3)


def test_folder(tmp_path):
    data = idx(str(write_folder(tmp_path / "four")), classes=4)
    pixels, labels = images(200, seed=1)
    assert data.name == "four"
    assert data.train_inputs.shape == (200, 1, 8, 8)
    assert data.train_inputs.dtype == torch.float32
    assert data.test_inputs.shape == (60, 1, 8, 8)
    assert data.train_targets.tolist() == labels.tolist()
    assert float(data.train_inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train_inputs.std()) == pytest.approx(1, abs=1e-5)
    back = data.train_inputs[:, 0] * data.std + data.mean
    torch.testing.assert_close(back, torch.from_numpy(pixels) / 255)


def test_names_with_a_dot(tmp_path):
    folder = write_folder(tmp_path)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert len(idx(str(folder), classes=4).train_inputs) == 200


def test_limit(tmp_path):
    folder = str(write_folder(tmp_path))
    limited = idx(folder, classes=4, limit=50)
    assert (len(limited.train_inputs), len(limited.train_targets), len(limited.test_inputs)) == (50, 50, 60)
    with pytest.raises(RegrowValueError, match=r"`data.limit` must be a whole number of at least 1, got 0"):
        idx(folder, classes=4, limit=0)


def _replace(folder: Path, name: str, content: bytes) -> None:
    for path in folder.glob(f"{name}*"):
        path.unlink()
    (folder / name).write_bytes(content)


def test_labels_that_do_not_fit(tmp_path):
    folder = write_folder(tmp_path)
    with pytest.raises(
        RegrowValueError, match=r"has label 3 at position \d+, allowed is 0 .. 2\n.*`data.classes`"
    ):
        idx(str(folder), classes=3)
    _replace(folder, "train-labels-idx1-ubyte", idx_bytes(LABELS))
    with pytest.raises(RegrowValueError, match=r"has 6 labels, allowed is 200, one for each image"):
        idx(str(folder), classes=4)


def test_images_of_two_sizes(tmp_path):
    folder = write_folder(tmp_path)
    _replace(folder, "t10k-images-idx3-ubyte", idx_bytes(images(60, seed=2, size=9)[0]))
    with pytest.raises(RegrowValueError, match=r"training images are \[8, 8\], test images \[9, 9\]"):
        idx(str(folder), classes=4)


def test_images_of_one_value(tmp_path):
    folder = write_folder(tmp_path)
    _replace(folder, "train-images-idx3-ubyte", idx_bytes(np.full((200, 8, 8), 7, dtype=np.uint8)))
    with pytest.raises(RegrowValueError, match=r"all pixels of the training images have the same value"):
        idx(str(folder), classes=4)


def test_folder_that_is_none(tmp_path):
    with pytest.raises(RegrowValueError, match=r"`data.folder` is not a folder: .*missing"):
        idx(str(tmp_path / "missing"))
    with pytest.raises(RegrowValueError, match=r"has no file train-images-idx3-ubyte\[.gz\]"):
        idx(str(tmp_path))


def test_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(RegrowValueError) as error:
        fashion_mnist(folder=str(tmp_path))
    for word in (str(tmp_path), "apt-get install dataset-fashion-mnist", "dpkg-deb -x", "`data.folder`"):
        assert word in str(error.value)


def test_fashion_mnist_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mnist, "_SYSTEM", tmp_path / "not installed")
    write_folder(tmp_path / "regrow" / "fashion-mnist")
    assert len(fashion_mnist().train_inputs) == 200


@NEEDS_FASHION_MNIST
def test_fashion_mnist_itself():
    data = fashion_mnist()
    assert data.train_inputs.shape == (60_000, 1, 28, 28)
    assert data.test_inputs.shape == (10_000, 1, 28, 28)
    assert data.train_targets[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert data.test_targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert data.train_targets.bincount().tolist() == [6000] * 10
    assert (round(data.mean, 5), round(data.std, 5)) == (0.28604, 0.35302)


def test_pixels_may_stay_as_they_are(tmp_path):
    data = idx(str(write_folder(tmp_path / "images")), classes=4, normalize=False)
    assert (float(data.train_inputs.min()), data.mean, data.std) == (0.0, 0.0, 1.0)
    assert 0.5 < float(data.train_inputs.max()) <= 1
    with pytest.raises(RegrowValueError, match=r"`data.normalize` must be true or false, got 'no'"):
        idx(str(tmp_path / "images"), classes=4, normalize="no")
