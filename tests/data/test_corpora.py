"""WikiText and Penn Treebank, from small files in the format of the published ones."""

import pytest
import torch

from regrow.data import penn_treebank, text, wikitext2, wikitext103
from regrow.errors import RegrowValueError

# each sentence between blanks, lower case, numbers as N, rare words as <unk>
PTB = (
    " aer banknote berlitz calloway centrust cluett fromstein gitano guterman \n"
    " pierre <unk> N years old will join the board as a nonexecutive director nov. N \n"
    " mr. <unk> is chairman of <unk> n.v. the dutch publishing group \n"
)
PTB_VALID = " consumers may want to join the board \n no it was n't black monday \n"
PTB_TEST = " the board will join N \n the group is old \n"
# a blank between characters, _ for a blank, each sentence a line that begins with a blank
CHARACTERS = " a e r _ b a n k n o t e _ < u n k >\n p i e r r e _ N _ y e a r s _ o l d\n"
# headings between equals signs, an empty line before and after, every line between blanks
WIKITEXT = (
    " \n = Robert <unk> = \n \n"
    " Robert <unk> is an English film , television and theatre actor . He had a guest @-@ starring role in 2000 . \n \n"
)
RAW = (
    " \n = Robert Boulter = \n \n"
    " Robert Boulter is an English film , television and theatre actor . Café – 2000 . \n"
)


def write(folder, names, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return str(folder)


def ptb(folder):
    return write(
        folder,
        ["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"],
        [PTB, PTB_VALID, PTB_TEST],
    )


def words(contents):
    return [word for line in contents.splitlines() for word in [*line.split(), "<eos>"]]


def flat(data, name):
    inputs, targets = getattr(data, f"{name}_inputs"), getattr(data, f"{name}_targets")
    return [data.vocabulary.symbols[n] for n in [*inputs.flatten().tolist(), int(targets[-1, -1])]]


def test_penn_treebank_by_words(tmp_path):
    data = penn_treebank(ptb(tmp_path / "data"), length=4, streams=True)
    known = set(words(PTB))
    assert data.classes == len(data.vocabulary) == len(known)  # <unk> is one of them
    assert data.streams
    assert data.vocabulary.unit == "words"
    for name, content in (("train", PTB), ("validation", PTB_VALID), ("test", PTB_TEST)):
        there = [word if word in known else "<unk>" for word in words(content)]
        found = flat(data, name)
        assert found == there[: len(found)]
        assert len(there) - len(found) < 4
    assert data.unknown()["validation"] > 0.3
    assert data.prepare(data.test_inputs[:1]).dtype == torch.int64


def test_penn_treebank_by_characters(tmp_path):
    names = ["ptb.char.train.txt", "ptb.char.valid.txt", "ptb.char.test.txt"]
    folder = write(tmp_path, names, [CHARACTERS] * 3)
    data = penn_treebank(folder, length=5, unit="characters")
    wanted = "aer banknote <unk>\npierre N years old\n"
    # as many symbols as the file has between blanks, and one for each end of a line
    assert len(CHARACTERS.split()) + 2 == len(wanted)
    found = data.vocabulary.decode(data.train_inputs.flatten())
    assert found == wanted[: len(found)]
    assert data.classes == len(set(wanted))
    assert not any(data.unknown().values())


def test_wikitext(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"]
    for load, name in ((wikitext2, "wikitext-2"), (wikitext103, "wikitext-103")):
        write(tmp_path / "regrow" / name, names, [WIKITEXT] * 3)
        data = load(length=6)
        assert data.name == name
        found = flat(data, "train")
        assert found == words(WIKITEXT)[: len(found)]
        assert found[:4] == ["<eos>", "=", "Robert", "<unk>"]  # an empty line is an end of line
        assert data.classes == len(set(words(WIKITEXT)))
        assert load(length=6, limit=14).train_inputs.shape == (2, 6)


def test_raw_wikitext_by_characters_and_bytes(tmp_path):
    folder = write(tmp_path, ["wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"], [RAW] * 3)
    data = wikitext2(folder, length=10, unit="characters")
    assert data.vocabulary.decode(data.test_inputs.flatten()) == RAW[: data.test_inputs.numel()]
    assert data.classes == len(set(RAW))
    data = wikitext103(folder, length=10, unit="bytes")
    assert bytes(data.test_inputs.flatten().tolist()) == RAW.encode()[: data.test_inputs.numel()]
    assert data.classes == 256


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(RegrowValueError) as error:
        penn_treebank(str(tmp_path))
    for word in ("Penn Treebank is not in", "simple-examples.tgz", "ptb.valid.txt", "`data.folder`"):
        assert word in str(error.value)
    with pytest.raises(
        RegrowValueError, match=r"(?s)wikitext-2 is not in .*wikitext-2-raw-v1.zip .*wiki.train.raw"
    ):
        wikitext2(str(tmp_path), unit="bytes")
    with pytest.raises(RegrowValueError, match=r"`data.unit` must be one of words, characters, got 'bytes'"):
        penn_treebank(str(tmp_path), unit="bytes")


def test_a_part_that_is_too_short(tmp_path):
    with pytest.raises(
        RegrowValueError,
        match=r"the test part of ptb has 11 words, allowed are at least 13 for examples of `data.length` 12\nGive",
    ):
        penn_treebank(ptb(tmp_path), length=12)


def test_any_text_by_characters_and_words(tmp_path):
    content = "".join(f"Zeile {n} – größer, größer!\n" for n in range(200))
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    data = text(str(tmp_path), unit="characters", length=20)
    count = len(content)
    for name, part in (
        ("train", content[: count * 9 // 10]),
        ("validation", content[count * 9 // 10 : count * 19 // 20]),
        ("test", content[count * 19 // 20 :]),
    ):
        found = data.vocabulary.decode(getattr(data, f"{name}_inputs").flatten())
        assert found == part[: len(found)]
        assert len(part) - len(found) <= 20
    data = text(str(tmp_path), unit="words", length=5, limit=600, vocabulary=12)
    assert (len(data.vocabulary), data.vocabulary.symbols[-1]) == (12, "<unk>")
    assert data.vocabulary.decode(data.train_inputs[0]) == "Zeile 0 – größer, größer!"
