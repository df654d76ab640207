"""Data sets, each resident as tensors: one record per name, and the protocol of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regrow.data.augment import Augment
from regrow.data.cifar import cifar10, cifar100
from regrow.data.corpora import penn_treebank, wikitext2, wikitext103
from regrow.data.corruptions import CORRUPTIONS, MISSING, corrupt, corrupted
from regrow.data.dataset import (
    Dataset,
    Tensors,
    check_dataset,
    has_validation,
    order,
    prepared,
    spread,
    streams,
)
from regrow.data.idx import read_idx
from regrow.data.images import image_folder
from regrow.data.mnist import fashion_mnist, idx
from regrow.data.samples import Samples
from regrow.data.text import Text, gcide, python_source, text
from regrow.data.vocabulary import Vocabulary
from regrow.data.whole import ImageFiles, in_files


@dataclass(frozen=True)
class DataRecord:
    """A data set by name: `load` takes the options a recipe may give and returns a `Dataset`."""

    name: str
    load: Callable[..., Dataset]
    source: str
    line: str
    examples: int | None = None
    """For training; None where that is the files' matter."""
    is_decoded: bool = False
    """Whether reading it decodes pictures, which may take hours: it is not read only to look at it."""
    is_text: bool = False
    """Whether its inputs are numbers of symbols, not pixels."""


_RECORDS = [
    DataRecord(
        "fashion-mnist",
        fashion_mnist,
        "Debian package dataset-fashion-mnist (MIT, Zalando SE 2017)",
        "60,000 + 10,000 grey 28x28 images of clothing, 10 classes",
        60_000,
    ),
    DataRecord("idx", idx, "any folder", "MNIST-format (IDX) files: MNIST itself, EMNIST, your own"),
    DataRecord(
        "cifar10",
        cifar10,
        "www.cs.toronto.edu/~kriz/cifar.html, binary or Python archive",
        "50,000 + 10,000 colour images 32x32, 10 classes",
        50_000,
    ),
    DataRecord(
        "cifar100",
        cifar100,
        "www.cs.toronto.edu/~kriz/cifar.html, binary or Python archive",
        "50,000 + 10,000 colour images 32x32, 100 classes or the 20 coarse ones",
        50_000,
    ),
    DataRecord(
        "image-folder",
        image_folder,
        "any folder",
        "train/<class>/*.png or *.jpg, test/<class>/... : ImageNet, your own",
        is_decoded=True,
    ),
    DataRecord(
        "text",
        text,
        "any file or folder",
        "bytes, characters or words of a text, the next of which is predicted",
        is_text=True,
    ),
    DataRecord(
        "python-source",
        python_source,
        "Python itself",
        "the standard library's source code, 11 million bytes",
        is_text=True,
    ),
    DataRecord(
        "gcide",
        gcide,
        "Debian package dict-gcide (GPL)",
        "Webster's dictionary, 40 million bytes of English",
        is_text=True,
    ),
    DataRecord(
        "wikitext-2",
        wikitext2,
        "Merity et al. 2016, arXiv 1609.07843",
        "2 million words of Wikipedia, 33,278 different ones; or their characters or bytes",
        is_text=True,
    ),
    DataRecord(
        "wikitext-103",
        wikitext103,
        "Merity et al. 2016, arXiv 1609.07843",
        "103 million words of Wikipedia, 267,735 different ones; or their characters or bytes",
        is_text=True,
    ),
    DataRecord(
        "ptb",
        penn_treebank,
        "Mikolov's simple-examples.tgz",
        "Penn Treebank: 0.9 million words, 10,000 different ones; or 5 million characters",
        is_text=True,
    ),
]


def datasets() -> dict[str, DataRecord]:
    """Return the built-in data sets by name."""
    return {record.name: record for record in _RECORDS}


__all__ = [
    "Augment",
    "CORRUPTIONS",
    "DataRecord",
    "Dataset",
    "ImageFiles",
    "MISSING",
    "Samples",
    "Tensors",
    "Text",
    "Vocabulary",
    "check_dataset",
    "cifar10",
    "cifar100",
    "corrupt",
    "corrupted",
    "datasets",
    "fashion_mnist",
    "gcide",
    "has_validation",
    "idx",
    "image_folder",
    "in_files",
    "order",
    "penn_treebank",
    "prepared",
    "python_source",
    "read_idx",
    "spread",
    "streams",
    "text",
    "wikitext103",
    "wikitext2",
]
