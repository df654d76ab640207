from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from regrow.data import Dataset, check_dataset, order, streams
from regrow.errors import RegrowValueError

GOOD = Dataset(
    "good",
    torch.zeros(6, 3),
    torch.arange(6) % 2,
    torch.zeros(4, 3),
    torch.zeros(4, dtype=torch.int64),
    classes=2,
)


def test_order_is_a_pure_function_of_seed_and_epoch():
    first = order(0, 0, 1000)
    assert first.sort().values.tolist() == list(range(1000))
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(first, order(0, 0, 1000))
    assert not torch.equal(first, order(0, 1, 1000))
    assert not torch.equal(first, order(1, 0, 1000))


def test_anything_with_the_five_attributes_is_data():
    own = SimpleNamespace(**vars(GOOD))
    assert check_dataset(own, "own:data") is own


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"train_targets": torch.zeros(5, dtype=torch.int64)}, r"equally many and at least one, got 6 and 5"),
        (
            {"test_inputs": torch.zeros(0, 3), "test_targets": torch.zeros(0).long()},
            r"at least one, got 0 and 0",
        ),
        (
            {"train_targets": torch.zeros(6)},
            r"`train_targets` must be int64 .* got torch.float32 of shape \[6\]",
        ),
        ({"classes": 1}, r"`train_targets` must be in 0 .. 0, got 0 .. 1"),
        ({"test_targets": torch.full((4,), -1)}, r"`test_targets` must be in 0 .. 1, got -1 .. -1"),
    ],
)
def test_data_that_does_not_fit(change, text):
    with pytest.raises(RegrowValueError, match=text):
        check_dataset(replace(GOOD, **change), "own:data")


def test_something_else_is_no_data():
    with pytest.raises(RegrowValueError, match=r"`data` own:data returned a tuple without train_inputs"):
        check_dataset((1, 2), "own:data")


@pytest.mark.parametrize(("size", "count"), [(12, 4), (13, 4), (7, 7), (9, 1)])
def test_streams_go_on_from_batch_to_batch(size, count):
    for epoch in range(4):
        found = streams(5, epoch, size, count)
        assert found.tolist() == streams(5, epoch, size, count).tolist()
        assert len(found.unique()) == len(found) == size // count * count
        batches = found.view(-1, count)
        assert torch.equal(batches[1:], (batches[:-1] + 1) % size)
    firsts = {int(streams(seed, epoch, size, count)[0]) for seed in (0, 1) for epoch in range(20)}
    assert firsts == set(range(size))
