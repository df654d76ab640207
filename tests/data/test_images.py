import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import write_images
from tiny import ENVIRONMENT

from regrow.data import image_folder
from regrow.data.images import require_room
from regrow.errors import RegrowRuntimeError, RegrowValueError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "animals"


def arrays(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "regrow" / "images"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_what_is_in_the_files(root, tmp_path):
    written = write_images(root)
    data = image_folder(str(root))
    assert (data.name, data.classes) == ("animals", 3)
    assert data.train_inputs.shape == (12, 3, 8, 8)
    assert data.test_inputs.shape == (6, 3, 8, 8)
    assert data.train_inputs.dtype == torch.uint8
    assert data.train_targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.test_targets.tolist() == [0, 0, 1, 1, 2, 2]
    pixels = torch.from_numpy(written["train/dog/0002.png"]).permute(2, 0, 1)
    assert torch.equal(data.train_inputs[6], pixels)  # PNG keeps each value
    with Image.open(root / "test" / "eel" / "0001.JPEG") as jpeg:
        assert torch.equal(data.test_inputs[5], torch.from_numpy(np.array(jpeg)).permute(2, 0, 1))
    assert data.mean == pytest.approx((data.train_inputs.double() / 255).mean((0, 2, 3)).tolist(), abs=1e-6)
    batch = data.prepare(data.train_inputs)
    assert batch.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert batch.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_decoded_once_and_again_where_anything_changed(root, tmp_path):
    written = write_images(root, test_name="val")
    first = image_folder(str(root))
    (array,) = arrays(tmp_path)
    stamp = array.stat().st_mtime_ns
    assert torch.equal(image_folder(str(root)).train_inputs, first.train_inputs)
    assert array.stat().st_mtime_ns == stamp
    first.train_inputs.zero_()  # what is written to the tensor does not reach the file
    again = image_folder(str(root))
    assert torch.equal(
        again.train_inputs[0], torch.from_numpy(written["train/cat/0000.png"]).permute(2, 0, 1)
    )
    path = root / "train" / "cat" / "0000.png"
    Image.fromarray(255 - written["train/cat/0000.png"]).save(path)
    changed = image_folder(str(root))
    assert torch.equal(changed.train_inputs[0], 255 - again.train_inputs[0])
    image_folder(str(root), size=4)
    image_folder(str(root), channels=1)
    assert len(arrays(tmp_path)) == 4
    image_folder(str(root), cache=str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_size_and_channels(root):
    write_images(root, sizes=[(20, 10), (9, 14), (8, 8)], train=6)
    data = image_folder(str(root), size=8)
    assert data.train_inputs.shape == (18, 3, 8, 8)
    with Image.open(root / "train" / "cat" / "0000.png") as image:  # 20 x 10: to 16 x 8, and the middle 8
        small = np.array(image.resize((16, 8), Image.Resampling.BILINEAR))[:, 4:12]
    assert torch.equal(data.train_inputs[0], torch.from_numpy(small).permute(2, 0, 1))
    grey = image_folder(str(root), size=8, channels=1)
    assert grey.train_inputs.shape == (18, 1, 8, 8)


def test_limit_takes_of_every_class(root):
    write_images(root)
    data = image_folder(str(root), limit=6)
    assert data.train_targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(data.test_inputs) == 6
    assert len(image_folder(str(root), limit=1000).train_inputs) == 12


def test_hidden_and_other_files_are_passed_over(root):
    write_images(root)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / "._0000.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    assert len(image_folder(str(root)).train_inputs) == 12


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (
            lambda root: os.rename(root / "train", root / "training"),
            r"has no folders `train` and `test` \(or `val`\)\n",
        ),
        (lambda root: os.rename(root / "test", root / "tests"), r"has no folders `train` and `test`"),
        (lambda root: (root / "val").mkdir(), r"has both `test` and `val`, allowed is one"),
        (
            lambda root: (root / "train" / "fox").mkdir(),
            r"fox has no images, allowed are files .png, .jpg, .jpeg",
        ),
        (
            lambda root: (root / "test" / "fox").mkdir(),
            r"test has the class `fox`, which .*train has not\nIts classes are: cat, dog, eel",
        ),
        (
            lambda root: (root / "train" / "dog" / "0002.png").write_bytes(b"\x89PNG\r\n\x1a\nxx"),
            r"dog/0002.png cannot be decoded: .*\nFetch the file again",
        ),
        (
            lambda root: (root / "test" / "eel" / "0001.JPEG").write_bytes(
                (root / "test" / "eel" / "0001.JPEG").read_bytes()[:-60]
            ),
            r"0001.JPEG cannot be decoded: .*truncated",
        ),
        (
            lambda root: Image.new("RGB", (9, 8)).save(root / "train" / "dog" / "0002.png"),
            r"dog/0002.png has 9x8 pixels, .*cat/0000.png 8x8, allowed is one size\n.*data.size=8",
        ),
    ],
)
def test_folders_that_are_refused_leave_nothing(root, tmp_path, break_it, text):
    write_images(root)
    break_it(root)
    with pytest.raises(RegrowValueError, match=text):
        image_folder(str(root))
    assert arrays(tmp_path) == []


def test_one_class_or_one_colour(root, tmp_path):
    write_images(root, classes=["cat"])
    with pytest.raises(RegrowValueError, match=r"train has 1 class folders, allowed are at least 2"):
        image_folder(str(root))
    write_images(root, classes=["cat", "dog"], train=1)
    for name in ("cat", "dog"):
        Image.new("RGB", (8, 8), (9, 9, 9)).save(root / "train" / name / "0000.png")
        for path in (root / "train" / name).glob("*.JPEG"):
            path.unlink()
        for path in sorted((root / "train" / name).glob("*.png"))[1:]:
            path.unlink()
    with pytest.raises(
        RegrowValueError, match=r"animals: all pixels of the training images have the same value"
    ):
        image_folder(str(root))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, r"`data.size` must be a whole number of at least 1, got 0"),
        ({"channels": 2}, r"`data.channels` must be 1 \(grey\) or 3 \(colour\), got 2"),
        ({"limit": 0}, r"`data.limit` must be a whole number of at least 1, got 0"),
    ],
)
def test_options_that_are_refused(root, options, text):
    write_images(root)
    with pytest.raises(RegrowValueError, match=text):
        image_folder(str(root), **options)


def test_a_disk_without_room(tmp_path):
    text = r"the decoded images take 1,000,000,000.0 GB, but .* has .* GB free\n.*`data.cache`"
    with pytest.raises(RegrowRuntimeError, match=text):
        require_room(tmp_path, 10**18)


def test_a_cache_that_cannot_be_written_or_read(root, tmp_path):
    write_images(root)
    (tmp_path / "file").write_text("")
    with pytest.raises(RegrowRuntimeError, match=r"cannot write .*\nName another folder with `data.cache`"):
        image_folder(str(root), cache=str(tmp_path / "file"))
    image_folder(str(root))
    (array,) = arrays(tmp_path)
    array.write_bytes(array.read_bytes()[:-50])
    with pytest.raises(RegrowRuntimeError, match=r"cannot read .*npy: .*\nDelete the file; it is made again"):
        image_folder(str(root))


def test_killed_while_decoding_leaves_nothing_half_written(root, tmp_path):
    write_images(root)
    program = f"""
import time
from regrow.data import image_folder, images
decode = images.decode
images.decode = lambda path, *rest: time.sleep(60) if path.name == "0001.JPEG" else decode(path, *rest)
image_folder({str(root)!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    )
    try:
        while not arrays(tmp_path):
            assert process.poll() is None
            time.sleep(0.01)
        (partial,) = arrays(tmp_path)
        assert partial.name.endswith(f".{process.pid}.part")
        write_images(tmp_path / "other")
        image_folder(str(tmp_path / "other"))  # another set leaves alone what a living process is writing
        assert partial in arrays(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    data = image_folder(str(root))
    assert len(data.test_inputs) == 6
    assert [path.suffix for path in arrays(tmp_path)] == [".npy", ".npy"]


def test_progress_is_told_on_standard_error(capsys):
    from regrow.data.waiting import waiting

    assert list(waiting(range(3), 3, "decoding", every=0)) == [0, 1, 2]
    assert "decoding: 2 of 3, " in capsys.readouterr().err
    assert list(waiting(range(3), 3, "decoding")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
