"""The corpora of papers on language models, from their published files: WikiText and Penn Treebank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from regrow._places import locate
from regrow.arguments import require_choice, require_count
from regrow.data.packed import read_packed
from regrow.data.text import Text, windows
from regrow.data.vocabulary import read_symbols, require_unit, with_vocabulary

_AGAIN = "Fetch the file again."


def wikitext2(
    folder: str | None = None,
    length: int = 35,
    limit: int | None = None,
    unit: str = "words",
    vocabulary: int | None = None,
    streams: bool = False,
) -> Text:
    """Load WikiText-2: two million words of Wikipedia, 33,278 different ones (Merity et al. 2016, arXiv 1609.07843).

    Args:
        folder: where ``wiki.train.tokens``, ``wiki.valid.tokens`` and ``wiki.test.tokens`` are, of words, or
            ``wiki.train.raw``, ..., of bytes and characters. Default: the folder wikitext-2 or wikitext-2-raw beside
            those of other data sets, then in the user's cache, ``$XDG_CACHE_HOME/regrow``.
        length: symbols of one example; in streams, those through which gradients go back.
        limit: take only so many symbols of the training part. Default: all.
        unit: ``words``, ``characters`` or ``bytes``.
        vocabulary: so many different symbols, as of `text`.
        streams: as of `text`.

    Raises:
        RegrowValueError: where it is in none of these, with how to get it.
    """
    return _wikitext("wikitext-2", folder, length, limit, unit, vocabulary, streams)


def wikitext103(
    folder: str | None = None,
    length: int = 35,
    limit: int | None = None,
    unit: str = "words",
    vocabulary: int | None = None,
    streams: bool = False,
) -> Text:
    """Load WikiText-103: 103 million words of Wikipedia, 267,735 different ones.

    Args:
        folder, length, limit, unit, vocabulary, streams: as of `wikitext2`, with folders wikitext-103 and
            wikitext-103-raw.
    """
    return _wikitext("wikitext-103", folder, length, limit, unit, vocabulary, streams)


def penn_treebank(
    folder: str | None = None,
    length: int = 35,
    limit: int | None = None,
    unit: str = "words",
    vocabulary: int | None = None,
    streams: bool = False,
) -> Text:
    """Load Penn Treebank as Mikolov et al. (2010, 2012) prepared it: 10,000 different words, or 50 characters.

    Args:
        folder: where ``ptb.train.txt``, ``ptb.valid.txt`` and ``ptb.test.txt`` are, of words, or
            ``ptb.char.train.txt``, ..., of characters. Default: the folder ptb or simple-examples/data beside those of
            other data sets, then in the user's cache, ``$XDG_CACHE_HOME/regrow``.
        length, limit, vocabulary, streams: as of `wikitext2`.
        unit: ``words`` or ``characters``.

    Raises:
        RegrowValueError: where it is in none of these, with how to get it.
    """
    require_choice("data.unit", unit, ("words", "characters"))
    stem = "ptb.char" if unit == "characters" else "ptb"
    files = [f"{stem}.{part}.txt" for part in ("train", "valid", "test")]
    names = ("ptb", "simple-examples/data")
    remedy = (
        "Get simple-examples.tgz of Mikolov's RNNLM toolkit (www.fit.vutbr.cz/~imikolov/rnnlm) and put the files "
        f"{', '.join(files)} of its folder data into {{cache}}"
    )
    paths, options = (
        _found("Penn Treebank", folder, names, files, remedy),
        (length, limit, unit, vocabulary, streams),
    )
    if unit == "words":
        return _corpus("ptb", paths, options)
    return _corpus("ptb", paths, options, _from_ptb_characters)


def _wikitext(
    name: str,
    folder: str | None,
    length: int,
    limit: int | None,
    unit: str,
    vocabulary: int | None,
    streams: bool,
) -> Text:
    require_unit(unit, vocabulary)
    kind, names, archive = ("tokens", (name, f"{name}-raw"), f"{name}-v1.zip")
    if unit != "words":
        kind, names, archive = "raw", names[::-1], f"{name}-raw-v1.zip"
    files = [f"wiki.{part}.{kind}" for part in ("train", "valid", "test")]
    remedy = f"Get {archive} of Merity et al. (arXiv 1609.07843) and put {', '.join(files)} into {{cache}}"
    paths = _found(name, folder, names, files, remedy)
    return _corpus(name, paths, (length, limit, unit, vocabulary, streams))


def _found(
    title: str, folder: str | None, names: Sequence[str], files: Sequence[str], remedy: str
) -> list[Path]:
    """Find the folder that holds all `files`, and return their paths."""
    place = locate(title, folder, names, lambda at: all((at / file).is_file() for file in files), remedy)
    return [place / file for file in files]


def _corpus(
    name: str,
    paths: Sequence[Path],
    options: tuple[int, int | None, str, int | None, bool],
    spelled: Callable[[str], str] = lambda text: text,
) -> Text:
    """Read the files that train, validate and test; `spelled` undoes their spelling."""
    length, limit, unit, vocabulary, streams = options
    require_unit(unit, vocabulary)
    most = None if limit is None else require_count("data.limit", limit)
    contents = [read_packed(path, _AGAIN, packed=False) for path in paths]
    symbols, parts = read_symbols(contents, [str(path) for path in paths], unit, spelled)
    parts[0] = parts[0][:most]
    return windows(name, *with_vocabulary(unit, symbols, parts, vocabulary), length, streams)


def _from_ptb_characters(text: str) -> str:
    """Return the text of a file that has a blank between characters, and ``_`` for a blank."""
    lines = text.split("\n")
    return "\n".join("".join(line.split()).replace("_", " ") for line in lines)
