import json

import numpy as np
import pytest
import torch

from regrow.data import Vocabulary, text
from regrow.data.vocabulary import UNKNOWN, numbered, with_vocabulary
from regrow.errors import RegrowValueError


def test_bytes_are_themselves():
    vocabulary = Vocabulary()
    assert len(vocabulary) == 256
    assert vocabulary.encode("aé\n").tolist() == [97, 0xC3, 0xA9, 10]
    assert vocabulary.decode(torch.tensor([97, 0xC3, 0xA9, 10, 0xC3])) == "aé\n\ufffd"


def test_characters_are_those_of_all_parts_the_most_frequent_first():
    symbols, parts = numbered(["abba é", "a", "bz𝄞"], "characters")
    vocabulary, numbers = with_vocabulary("characters", symbols, parts, None)
    # a and b twice where it trains, then those seen once in the order of their codes, then those seen elsewhere
    assert vocabulary.symbols == ("a", "b", " ", "é", "z", "𝄞")
    assert [vocabulary.decode(part) for part in numbers] == ["abba é", "a", "bz𝄞"]
    assert numbers[0].dtype == torch.uint8
    assert torch.equal(vocabulary.encode("bz𝄞"), numbers[2].long())


def test_rare_characters_are_unknown_where_the_vocabulary_is_small():
    symbols, parts = numbered(["aaabbc", "cz", "a"], "characters")
    vocabulary, numbers = with_vocabulary("characters", symbols, parts, 3)
    assert vocabulary.symbols == ("a", "b", UNKNOWN)
    assert [part.tolist() for part in numbers] == [[0, 0, 0, 1, 1, 2], [2, 2], [0]]
    assert vocabulary.decode(numbers[0]) == "aaabb\ufffd"
    assert with_vocabulary("characters", symbols, parts, 4)[0].symbols == ("a", "b", "c", "z")


def test_words_are_those_of_the_training_part():
    texts = ["the cat saw\n\nthe dog ", "the bird\n", "cat"]
    symbols, parts = numbered(texts, "words")
    vocabulary, numbers = with_vocabulary("words", symbols, parts, None)
    assert vocabulary.symbols == ("<eos>", "the", "cat", "dog", "saw", UNKNOWN)
    assert vocabulary.decode(numbers[0]) == "the cat saw\n\nthe dog"
    assert vocabulary.decode(numbers[1]) == "the <unk>\n"
    assert torch.equal(vocabulary.encode("the  bird\n"), numbers[1].long())
    small, numbers = with_vocabulary("words", symbols, parts, 3)
    assert small.symbols == ("<eos>", "the", UNKNOWN)
    assert numbers[0].tolist() == [1, 2, 2, 0, 0, 1, 2]


def test_a_text_with_its_own_unknown_words_gets_no_further_one():
    symbols, parts = numbered(["<unk> <unk> a b\n", "c\n", "a\n"], "words")
    vocabulary, numbers = with_vocabulary("words", symbols, parts, None)
    assert vocabulary.symbols == ("<unk>", "<eos>", "a", "b")
    assert numbers[1].tolist() == [0, 1]


def test_many_words_need_more_than_a_byte():
    symbols, parts = numbered([" ".join(map(str, range(300))), "1", "2"], "words")
    vocabulary, numbers = with_vocabulary("words", symbols, parts, None)
    assert len(vocabulary) == 301
    assert numbers[0].dtype == torch.int32
    assert np.unique(numbers[0].numpy()).size == 300


def test_a_vocabulary_is_plain_values_and_back():
    vocabulary = Vocabulary("words", ("a", "é", UNKNOWN))
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary
    assert Vocabulary.from_dict(Vocabulary().to_dict()) == Vocabulary()


def test_what_is_not_in_a_vocabulary_is_refused():
    with pytest.raises(
        RegrowValueError,
        match=r"`samples.prompt` has 'c', allowed are the 2 characters of the vocabulary\nLeave it",
    ):
        Vocabulary("characters", ("a", "b")).encode("abc", "samples.prompt")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"caf\xe9 " * 40, {"unit": "characters"}, r"text a.txt is not UTF-8: byte 3 is 0xe9\nConvert it"),
        (b"caf\xe9 " * 40, {"unit": "words"}, r"or read it with `data.unit=bytes`"),
        (
            b"a b " * 40,
            {"unit": "letters"},
            r"`data.unit` must be one of bytes, characters, words, got 'letters'",
        ),
        (
            b"a b " * 40,
            {"unit": "words", "vocabulary": 1},
            r"`data.vocabulary` must be a whole number of at least 2",
        ),
        (
            b"a b " * 40,
            {"vocabulary": 9},
            r"`data.vocabulary` is 9, but `data.unit` is bytes, which are always 256",
        ),
        (b"a b " * 40, {"unit": "words"}, r"the text has 80 words, allowed are at least 180 for examples of"),
        (b"a b " * 99, {"unit": "words", "streams": 1}, r"`data.streams` must be true or false, got 1"),
    ],
)
def test_texts_that_are_refused(tmp_path, content, options, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(RegrowValueError, match=message):
        text(str(tmp_path / "a.txt"), length=8, **options)
