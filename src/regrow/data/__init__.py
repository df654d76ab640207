"""Data sets, each resident as tensors: one record per name, and the protocol of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regrow.data.dataset import Dataset, Tensors, check_dataset, order
from regrow.data.idx import read_idx
from regrow.data.mnist import fashion_mnist, idx


@dataclass(frozen=True)
class DataRecord:
    """A data set by name: `load` takes the options a recipe may give and returns a `Dataset`."""

    name: str
    load: Callable[..., Dataset]
    source: str
    line: str


_RECORDS = [
    DataRecord(
        "fashion-mnist",
        fashion_mnist,
        "Debian package dataset-fashion-mnist (MIT, Zalando SE 2017)",
        "60,000 + 10,000 grey 28x28 images of clothing, 10 classes",
    ),
    DataRecord("idx", idx, "any folder", "MNIST-format (IDX) files: MNIST itself, EMNIST, your own"),
]


def datasets() -> dict[str, DataRecord]:
    """The built-in data sets by name."""
    return {record.name: record for record in _RECORDS}


__all__ = [
    "DataRecord",
    "Dataset",
    "Tensors",
    "check_dataset",
    "datasets",
    "fashion_mnist",
    "idx",
    "order",
    "read_idx",
]
