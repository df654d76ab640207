"""Averaging and pruning back, by hand."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.tickets import copied, prune_back, superpose
from regrow.weights import hook_of, sparse_weights

NOTHING = None  # no connection, in the lists below


def layer(storage: str, values: list[float | None]) -> nn.Sequential:
    """One sparse layer of one row with these values; None where there is no connection."""
    model = nn.Sequential(nn.Linear(len(values), 1, bias=False)).double()
    mask = torch.tensor([[value is not None for value in values]])
    regrow.sparsify(model, init={"0.weight": mask}, storage=storage)
    put(model, values)
    return model


def put(model: nn.Module, values: list[float | None]) -> None:
    (weight,) = sparse_weights(model)
    positions = [place for place, value in enumerate(values) if value is not None]
    own = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    weight.assign(torch.tensor(positions), own)


def row(model: nn.Module) -> list[float | None]:
    (weight,) = sparse_weights(model)
    present = weight.mask().view(-1).tolist()
    return [
        value if on else NOTHING
        for value, on in zip(weight.to_dense().view(-1).tolist(), present, strict=True)
    ]


T0, T1, T2 = [4.0, None, 2.0, None], [2.0, 3.0, None, None], [3.0, None, 4.0, None]


def run(storage: str, tickets_values: list[list[float | None]], **options: Any) -> list[list[float | None]]:
    """What Sup-tickets superposes when the working model has these values at the boundaries."""
    model = layer(storage, tickets_values[0])
    optimizer = SGD(model.parameters(), lr=0.1)
    method = regrow.SET(model, optimizer, total_steps=1, stop_fraction=0.0)
    cycles = len(tickets_values) - 1
    tickets = regrow.SupTickets(method, start=1, cycles=cycles, cycle_steps=1, explore=None, **options)
    found = []
    for values in tickets_values:
        put(model, values)
        model(torch.zeros(1, len(values), dtype=torch.float64)).sum().backward()  # the gradient is zero
        optimizer.step()
        assert tickets.collect() is tickets.model
        found.append(row(tickets.model))
        assert row(model) == values
    return found


@storages
def test_running_and_once_differ(storage: str) -> None:
    assert row(superpose([layer(storage, T0), layer(storage, T1)])) == [3, 1.5, 1, None]
    first, second, third = run(storage, [T0, T1, T2])
    assert (first, second) == (T0, [3, 1.5, None, None])
    assert third == pytest.approx([3, None, 4 / 3, None])
    *_, once = run(storage, [T0, T1, T2], rule="once")
    assert once == pytest.approx([3, None, 2, None])


@storages
def test_division_by_the_holders_changes_the_ranking(storage: str) -> None:
    # holders: [(4 + 2 + 3) / 3, 3 / 1, (2 + 4) / 2]: all 3, and ties go to the lower position
    *_, once = run(storage, [T0, T1, T2], rule="once", divide="holders")
    assert once == pytest.approx([3, 3, None, None])
    # running: position 2 was pruned after T1, so T2 alone holds it
    _, second, third = run(storage, [T0, T1, T2], divide="holders")
    assert second == pytest.approx([3, 3, None, None])
    assert third == pytest.approx([3, None, 4, None])


@storages
def test_the_exponential_average(storage: str) -> None:
    *_, last = run(storage, [T0, T1, T2], average="exponential")  # .5 [3, 1.5, 0, 0] + .5 [3, 0, 4, 0]
    assert last == pytest.approx([3, None, 2, None])
    *_, last = run(storage, [T0, T1, T2], average="exponential", factor=0.1)
    # .9 T0 + .1 T1 = [3.8, .3, 1.8], kept [3.8, 1.8]; .9 of it + .1 T2
    assert last == pytest.approx([3.72, None, 2.02, None])


@storages
def test_the_factors_of_the_mean_give_each_of_four_tickets_a_quarter(storage: str) -> None:
    def one(place: int) -> list[float | None]:
        return [1.0 if i == place else 0.0 for i in range(4)] + [None] * 4

    found = run(storage, [one(place) for place in range(4)])
    assert found[1] == pytest.approx([1 / 2, 1 / 2, 0, 0] + [None] * 4)
    assert found[2] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0] + [None] * 4)
    assert found[3] == pytest.approx([1 / 4] * 4 + [None] * 4)


@storages
def test_a_live_connection_of_value_zero_is_one(storage: str, tmp_path: Any) -> None:
    values = [None, 0.0, 4.0, None]
    *_, superposed = run(storage, [values, values])
    assert superposed == values
    model = layer(storage, values)
    regrow.save(model, tmp_path / "model.safetensors")
    assert row(regrow.load(tmp_path / "model.safetensors", into=layer(storage, T0))) == values


def test_pruning_back_is_exact_with_ties_and_says_so_where_it_cannot_be() -> None:
    for storage in ("masked", "compressed"):
        values: list[float | None] = [1.0, -1.0, None, 1.0, 0.0, None, -1.0, 0.0]
        assert row(prune_back(layer(storage, values), 3)) == [1, -1, None, 1, None, None, None, None]
        assert row(prune_back(layer(storage, values), 5)) == [1, -1, None, 1, 0, None, -1, None]
        assert row(prune_back(layer(storage, values), density=0.3)) == [1, -1] + [None] * 6  # int(2.4)
        assert row(prune_back(layer(storage, values), 0)) == [None] * 8
        model = layer(storage, values)
        with pytest.raises(
            regrow.RegrowError, match=r"`connections` must be in \[0, 6\], the connections there are, got 7"
        ):
            prune_back(model, 7)
        with pytest.raises(regrow.RegrowError, match="give either `connections` or `density`"):
            prune_back(model, 3, density=0.5)
        with pytest.raises(regrow.RegrowError, match="`connections` must be a number for each of"):
            prune_back(model, {"weight": 3}, scope="layer")
        assert row(model) == values


def two_layers(storage: str, scale: float, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)).double()
    nn.init.normal_(model[1].weight, std=scale)
    return regrow.sparsify(model, 0.5, "uniform", include="*", storage=storage, seed=seed)  # type: ignore[return-value]


@storages
def test_the_global_threshold_moves_connections_between_layers(storage: str) -> None:
    pair = [two_layers(storage, 10, seed) for seed in (0, 1)]
    whole = superpose(pair)
    counts = [weight.nnz for weight in sparse_weights(whole)]
    pooled = torch.cat([w.to_dense().view(-1) for w in sparse_weights(whole)])
    pruned = prune_back(whole, 100)
    kept = [weight.nnz for weight in sparse_weights(pruned)]
    assert sum(kept) == 100
    assert kept[1] > 50 > kept[0]
    left = torch.cat([w.to_dense().view(-1) for w in sparse_weights(pruned)])
    assert torch.equal(left.nonzero().view(-1), pooled.abs().topk(100).indices.sort().values)
    assert counts == [
        int((a.mask() | b.mask()).sum()) for a, b in zip(*map(sparse_weights, pair), strict=True)
    ]
    by_layer = prune_back(superpose(pair), {"0.weight": 50, "1.weight": 50}, scope="layer")
    assert [weight.nnz for weight in sparse_weights(by_layer)] == [50, 50]
    # what it holds now is what it is said to be made for: a new method keeps to it
    assert [weight.record.asked for weight in sparse_weights(pruned)] == [count / 100 for count in kept]


class Tied(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)
        self.hidden = nn.Linear(4, 4)
        self.head.weight = self.embedding.weight
        self.scale: Tensor
        self.mask: Tensor
        self.seen: Tensor
        self.register_buffer("scale", torch.tensor([value]))
        self.register_buffer("mask", torch.tensor([*torch.arange(50) / 7, float("-inf")]))
        self.register_buffer("seen", torch.tensor(int(value)))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


def test_what_is_not_sparse_is_averaged_too_shared_parameters_once_and_counters_never() -> None:
    models = [regrow.sparsify(Tied(value), 0.5, include="hidden") for value in (1.0, 3.0, 8.0)]
    average: Any = superpose(models)
    assert average.head.weight is average.embedding.weight
    assert average.head.weight.unique().tolist() == [4.0]
    assert average.head.bias.unique().tolist() == [4.0]
    assert average.scale.tolist() == [4.0]
    assert torch.equal(average.mask, models[0].mask)  # what is constant stays what it is, to the last bit
    assert average.seen.item() == 8
    weighted: Any = superpose(models[:2], [3, 1])
    assert weighted.scale.tolist() == [1.5]


def test_storages_may_differ_and_the_last_ones_is_taken() -> None:
    average = superpose([layer("masked", T0), layer("compressed", T1)])
    assert row(average) == [3, 1.5, 1, None]
    assert sparse_weights(average)[0].storage == "compressed"


def test_an_average_of_low_precision_is_taken_in_higher() -> None:
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    models = [layer("masked", own.tolist()).bfloat16() for own in values]
    (weight,) = sparse_weights(superpose(models))
    torch.testing.assert_close(
        weight.values(), values.float().mean(0), rtol=2**-8, atol=0.0, check_dtype=False
    )


def test_networks_that_cannot_be_averaged() -> None:
    with pytest.raises(
        regrow.RegrowError,
        match=r"`models` must be of one architecture, but `0.weight` is sparse, \(1, 4\) in the first and sparse, "
        r"\(1, 5\) in number 2",
    ):
        superpose([layer("masked", T0), layer("masked", [*T0, 1.0])])
    with pytest.raises(
        regrow.RegrowError, match=r"`0.weight` is sparse, \(1, 4\) in the first and dense, \(1, 4\)"
    ):
        superpose([layer("masked", T0), regrow.densify(layer("masked", T0))])
    with pytest.raises(regrow.RegrowError, match="`models` must hold at least one network"):
        superpose([])
    with pytest.raises(regrow.RegrowError, match=r"`factors` must be 1 positive numbers, got \[0\]"):
        superpose([layer("masked", T0)], [0])


class Watcher:
    """Something that logs, and cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seen = 0

    def see(self, *_: Any) -> None:
        self.seen += 1


@storages
def test_a_copy_leaves_behind_what_watches_the_model_and_nothing_else(storage: str) -> None:
    model: Any = layer(storage, T0)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.method = method = regrow.RigL(
        model, optimizer, total_steps=10, stop_fraction=0.0
    )  # a reference that would drag all along
    watcher = Watcher()
    model[0].register_forward_hook(watcher.see)
    model.train()
    x = torch.ones(2, 4, dtype=torch.float64)
    model(x).sum().backward()
    copy: Any = copied(model, method)
    assert copy.method is method
    assert (copy.training, model.training) == (False, True)
    (own,), (weight,) = sparse_weights(copy), sparse_weights(model)
    assert own.parameter.grad is None
    assert own.parameter.data_ptr() != weight.parameter.data_ptr()
    copy(x).sum().backward()
    assert watcher.seen == 1
    hook = hook_of(own.parameter)
    assert hook is not None  # regrow's own hook is there, and nobody drives it
    assert hook.driver is None
    assert own.parameter.grad.count_nonzero() == 2
    assert torch.equal(own.restrict(own.parameter.grad), own.parameter.grad)
    before = row(copy)
    optimizer.step()
    assert row(copy) == before != row(model)
