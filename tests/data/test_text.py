import gzip

import pytest
import torch

from regrow.data import gcide, python_source, text
from regrow.errors import RegrowValueError

WORDS = bytes(range(32, 127)) * 40  # 3,800 bytes


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.dict.dz"])
def test_windows_of_a_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WORDS if name == "a.txt" else gzip.compress(WORDS))
    data = text(str(path), length=8)
    train, test = WORDS[:3420], WORDS[3610:]
    assert data.classes == 256
    assert data.train_inputs.shape == data.train_targets.shape == (len(train[:-1]) // 8, 8)
    assert bytes(data.train_inputs.flatten().tolist()) == train[: 8 * len(data.train_inputs)]
    assert bytes(data.train_targets.flatten().tolist()) == train[1 : 1 + 8 * len(data.train_inputs)]
    assert bytes(data.test_inputs[1].tolist()) == test[8:16]
    assert bytes(data.test_targets[1].tolist()) == test[9:17]
    # both are views of the text
    assert data.train_inputs.untyped_storage().data_ptr() == data.train_targets.untyped_storage().data_ptr()
    assert data.prepare(data.train_inputs[:2]).dtype == torch.int64


def test_folder_of_texts(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(WORDS)
    (tmp_path / "b" / "c.txt").write_bytes(WORDS[::-1])
    (tmp_path / "b" / "c.md").write_bytes(b"#" * 999)
    data = text(str(tmp_path), length=8, pattern="*.txt")
    assert (
        bytes(data.train_inputs.flatten().tolist())
        == (WORDS + WORDS[::-1])[:6840][: data.train_inputs.numel()]
    )
    assert len(text(str(tmp_path), length=8, limit=2000).train_inputs) == 1799 // 8


def test_python_s_own_source():
    data = python_source(length=128, limit=400_000)
    assert data.train_inputs.shape == (2812, 128)
    assert b"import " in bytes(data.train_inputs.flatten().tolist())


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            WORDS,
            {"length": 200},
            r"the text has 3,800 bytes, allowed are at least 4,020 for examples of `data.length` 200",
        ),
        (WORDS, {"length": 0}, r"`data.length` must be a whole number of at least 1, got 0"),
        (WORDS, {"limit": 0}, r"`data.limit` must be a whole number of at least 1, got 0"),
        (b"", {}, r"the text has 0 bytes"),
    ],
)
def test_texts_that_are_refused(tmp_path, content, options, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(RegrowValueError, match=message):
        text(str(path), **options)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(
        RegrowValueError, match=r"`data.path` .*nothing is neither a file nor a folder with files \*"
    ):
        text(str(tmp_path / "nothing"))
    with pytest.raises(
        RegrowValueError, match=r"is neither a file nor a folder with files \*.txt\nName a text"
    ):
        text(str(tmp_path), pattern="*.txt")
    (tmp_path / "a.gz").write_bytes(gzip.compress(WORDS)[:-9])
    with pytest.raises(RegrowValueError, match=r"a.gz is cut short: .*\nFetch the file again"):
        text(str(tmp_path / "a.gz"))


def test_gcide_is_found_and_else_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(RegrowValueError) as error:
        gcide(folder=str(tmp_path))
    for word in (str(tmp_path), "apt-get install dict-gcide", "dpkg-deb -x", "`data.folder`"):
        assert word in str(error.value)
    (tmp_path / "gcide.dict.dz").write_bytes(gzip.compress(WORDS))
    assert gcide(folder=str(tmp_path), length=8).name == "gcide"
