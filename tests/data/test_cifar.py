import pickle
import shutil

import numpy as np
import pytest
import torch
from published import binary, cifar_images, cifar_labels, python2_pickle, write_cifar10, write_cifar100

from regrow import _places as places
from regrow.data import cifar, cifar10, cifar100
from regrow.data.cifar import read_binary, read_python
from regrow.errors import RegrowValueError

IMAGES, LABELS = cifar_images(7), cifar_labels(7, 10)
FINE = cifar_labels(7, 100, seed=1)


def batch(**changes):
    """A batch of CIFAR-10's Python version, with the keys in the published order."""
    content = {
        "batch_label": "training batch 1 of 5",
        "labels": LABELS.tolist(),
        "data": IMAGES,
        "filenames": [f"{i}.png" for i in range(7)],
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def test_binary_of_ten_and_of_a_hundred_classes(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(binary(IMAGES, LABELS))
    assert path.stat().st_size == 7 * 3073
    labels, images = read_binary(path, 1, 7)
    np.testing.assert_array_equal(labels[:, 0], LABELS)
    np.testing.assert_array_equal(images.flatten(1), IMAGES)
    assert images[2, 1, 3, 4] == IMAGES[2, 1024 + 3 * 32 + 4]  # green, row 3, column 4
    path.write_bytes(binary(IMAGES, LABELS, FINE))
    assert path.stat().st_size == 7 * 3074
    labels, images = read_binary(path, 2, 7)
    np.testing.assert_array_equal(labels, np.stack([LABELS, FINE], 1))
    np.testing.assert_array_equal(images.flatten(1), IMAGES)


@pytest.mark.parametrize("write", [python2_pickle, pickle.dumps, lambda content: pickle.dumps(content, 2)])
def test_python_as_published_and_as_python_3_writes_it(tmp_path, write):
    path = tmp_path / "data_batch_1"
    path.write_bytes(write(batch()))
    labels, images = read_python(path, ["labels"], 7)
    np.testing.assert_array_equal(labels[:, 0], LABELS)
    np.testing.assert_array_equal(images.flatten(1), IMAGES)
    images[0] = 0  # the memory is the tensor's own


def test_published_pickle_begins_as_published():
    # the first bytes of data_batch_1 of cifar-10-python.tar.gz
    content = python2_pickle({"batch_label": "training batch 1 of 5", "labels": [6, 9]})
    assert content.startswith(
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
    )
    assert pickle.loads(content, encoding="latin1") == {
        "batch_label": "training batch 1 of 5",
        "labels": [6, 9],
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            binary(IMAGES, LABELS)[:-5],
            r"x.bin is cut short by 5 bytes, allowed is 21,511 bytes, 7 records of 3,073",
        ),
        (binary(IMAGES[:6], LABELS[:6]), r"is cut short by 3,073 bytes, allowed is 21,511 bytes"),
        (binary(IMAGES, LABELS) + b"xyz", r"has 3 bytes to spare, allowed is 21,511 bytes"),
        (b"", r"is cut short by 21,511 bytes"),
    ],
)
def test_damaged_binary(tmp_path, content, text):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(RegrowValueError, match=text + r"(.|\n)*\nUnpack the published archive again"):
        read_binary(path, 1, 7)


class Evil:
    def __init__(self, function, *arguments):
        self.asks = function, arguments

    def __reduce__(self):
        return self.asks


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            python2_pickle(batch())[:-2000],
            r"is not a pickle of arrays: pickle data was truncated|is cut short",
        ),
        (b"", r"is cut short: its pickle has no end"),
        (python2_pickle(batch()) + b"x", r"has 1 bytes to spare after its pickle"),
        (b"not a pickle", r"is not a pickle of arrays"),
        (pickle.dumps([1]), r"holds a list, allowed is a dictionary"),
        (pickle.dumps(batch(labels=None)), r"has no `labels`, but batch_label, data, filenames"),
        (pickle.dumps(batch(data=None)), r"has no `data`"),
        (
            pickle.dumps(batch(data=IMAGES[:6])),
            r"has `data` uint8 of shape \[6, 3072\], allowed is uint8 of shape \[7, 3072\]",
        ),
        (pickle.dumps(batch(data=IMAGES.astype(np.int16))), r"has `data` int16 of shape \[7, 3072\]"),
        (pickle.dumps(batch(data="abc")), r"has `data` that is a str"),
        (pickle.dumps(batch(labels=LABELS.tolist()[:5])), r"has 5 `labels`, allowed is 7, one an image"),
        (pickle.dumps(batch(labels=["1"] * 7)), r"has `labels` that are no list of whole numbers"),
        (pickle.dumps(batch(labels=[2**70] * 7)), r"has `labels` of more than 64 bits"),
        (pickle.dumps(batch(data=np.array([{}]))), r"is not a pickle of arrays: an array of objects"),
        (pickle.dumps(Evil(print, "ran")), r"it asks for builtins.print, allowed are numpy arrays"),
        (pickle.dumps(Evil(shutil.rmtree, "/nowhere")), r"it asks for shutil.rmtree"),
        (b"cos\nsystem\n(S'echo ran'\ntR.", r"it asks for os.system"),
        (b"c_codecs\nencode\n(S'x'\nS'bz2'\ntR.", r"is not a pickle of arrays: the encoding 'bz2'"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntS'b'\ntR.",
            r"is not a pickle of arrays: an array of type",
        ),
    ],
)
def test_damaged_or_evil_pickle(tmp_path, capfd, content, text):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(
        RegrowValueError, match=rf"(?s)data_batch_1 (.*)({text}).*\nUnpack the published archive"
    ):
        read_python(path, ["labels"], 7)
    assert capfd.readouterr() == ("", "")  # nothing of it ran


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ten") / "cifar-10-batches-bin"
    yield folder, *write_cifar10(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hundred") / "cifar-100-python"
    yield folder, write_cifar100(folder)
    shutil.rmtree(folder)


def test_cifar10_whole(ten):
    folder, images, labels = ten
    data = cifar10(folder=str(folder))
    assert (data.name, data.classes) == ("cifar-10", 10)
    assert data.train_inputs.shape == (50_000, 3, 32, 32)
    assert data.test_inputs.shape == (10_000, 3, 32, 32)
    assert data.train_inputs.dtype == torch.uint8  # a quarter of float32's memory
    for number in range(5):
        part = slice(number * 10_000, (number + 1) * 10_000)
        assert torch.equal(data.train_inputs[part].flatten(1), torch.from_numpy(images[number]))
        assert data.train_targets[part].tolist() == labels[number].tolist()
    assert torch.equal(data.test_inputs.flatten(1), torch.from_numpy(images[5]))
    assert data.test_targets.tolist() == labels[5].tolist()
    # a file is 20 times the same 500 images
    pixels = (
        torch.from_numpy(np.concatenate([some[:500] for some in images[:5]])).view(-1, 3, 1024).double() / 255
    )
    assert data.mean == pytest.approx(pixels.mean((0, 2)).tolist(), abs=1e-9)
    assert data.std == pytest.approx(pixels.std((0, 2), correction=0).tolist(), abs=1e-9)
    batch = data.prepare(data.train_inputs[:100])
    assert batch.dtype == torch.float32
    expected = (pixels[:100] - pixels.mean((0, 2)).view(3, 1)) / pixels.std((0, 2)).view(3, 1)
    torch.testing.assert_close(batch.flatten(2), expected.float(), rtol=1e-4, atol=1e-4)


def test_cifar10_limit_and_the_folder_above(ten):
    folder = ten[0]
    data = cifar10(folder=str(folder.parent), limit=30)
    assert (len(data.train_inputs), len(data.train_targets), len(data.test_inputs)) == (30, 30, 10_000)
    with pytest.raises(RegrowValueError, match=r"`data.limit` must be a whole number of at least 1, got 0"):
        cifar10(folder=str(folder), limit=0)


def test_cifar10_with_a_file_that_is_missing_or_wrong(ten, tmp_path):
    for path in ten[0].iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(RegrowValueError, match=r"has no file data_batch_4.bin\nUnpack the published archive"):
        cifar10(folder=str(tmp_path))
    content = bytearray((ten[0] / "data_batch_4.bin").read_bytes())
    content[20 * 3073] = 10
    (tmp_path / "data_batch_4.bin").write_bytes(content)
    text = r"data_batch_4.bin has label 10 among the labels at position 20, allowed is 0 .. 9"
    with pytest.raises(RegrowValueError, match=text):
        cifar10(folder=str(tmp_path))
    (tmp_path / "data_batch_4.bin").write_bytes(content[:-3073])
    with pytest.raises(RegrowValueError, match=r"is cut short by 3,073 bytes, allowed is 30,730,000 bytes"):
        cifar10(folder=str(tmp_path))


def test_cifar100_whole(hundred):
    folder, written = hundred
    for coarse, key, classes in ((False, "fine_labels", 100), (True, "coarse_labels", 20)):
        data = cifar100(folder=str(folder), coarse=coarse)
        assert data.classes == classes
        assert data.train_targets.tolist() == written["train"][key]
        assert data.test_targets.tolist() == written["test"][key]
        assert torch.equal(data.train_inputs.flatten(1), torch.from_numpy(written["train"]["data"]))


def test_it_is_found_in_the_cache_and_else_says_how_to_get_it(ten, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(places, "SYSTEM", tmp_path / "system")
    for read, name in ((cifar10, "cifar-10"), (cifar100, "cifar-100")):
        with pytest.raises(RegrowValueError) as error:
            read()
        for word in (
            str(tmp_path / "system"),
            str(tmp_path / "regrow"),
            "www.cs.toronto.edu",
            f"{name}-binary.tar.gz",
        ):
            assert word in str(error.value)
        assert "`data.folder`" in str(error.value)
    (tmp_path / "regrow").mkdir()
    (tmp_path / "regrow" / "cifar-10-batches-bin").symlink_to(ten[0])
    assert len(cifar10(limit=5).train_inputs) == 5
    assert cifar.PIXELS == 3072
    with pytest.raises(RegrowValueError, match=r"CIFAR-10 is not in /nowhere\n"):
        cifar10(folder="/nowhere")
