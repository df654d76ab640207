"""The ticket loop: what is pruned, what a ticket begins with, and when its mask has settled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import data, mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import regrow
from regrow.sparsity.distributions import connections, distribute
from regrow.tickets import EarlyTicket, Gradient, lottery, pruned, rewound, sparsities
from regrow.weights import sparse_weights

SIZES = {"0.weight": 120, "3.weight": 40}
CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: "magnitude",
    "normalised": lambda: "normalised",
    "gradient": lambda: Gradient(F.cross_entropy, data()),
    "snip": lambda: regrow.SNIP(F.cross_entropy, data()),
    "grasp": lambda: regrow.GraSP(F.cross_entropy, data()),
    "synflow": lambda: regrow.SynFlow(rounds=5),
    "own": lambda: lambda model, shapes: {n: torch.arange(SIZES[n]).view(s) % 7.0 for n, s in shapes.items()},
}


class Training:
    """A user's training; remembers each call, and the weights with which it began and ended."""

    def __init__(self, rate: float = 0.1, method: bool = False) -> None:
        self.rate, self.method = rate, method
        self.calls: list[tuple[int, int]] = []
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []

    def __call__(self, network: nn.Module, start: int, stop: int) -> float:
        assert network.training
        self.calls.append((start, stop))
        self.before.append(copy.deepcopy(regrow.dense_state_dict(network)))
        optimizer = SGD(network.parameters(), lr=self.rate, momentum=0.9)
        if self.method and regrow.is_sparse(network):
            regrow.SET(network, optimizer, total_steps=stop - start, update_every=3, stop_fraction=1.0)
        x, y = data()
        loss = torch.zeros(())
        for _ in range(start, stop):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
        self.after.append(copy.deepcopy(regrow.dense_state_dict(network)))
        return float(loss.detach())


def by_hand(*rows: list[float]) -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(len(row), 1, bias=False) for row in rows))
    with torch.no_grad():
        for layer, row in zip(model, rows, strict=True):
            layer.weight.copy_(torch.tensor([row]))
    return model


def listed(kept: dict[str, Tensor]) -> list[list[int]]:
    return [positions.tolist() for positions in kept.values()]


# --- what is pruned


def test_layer_normalised_magnitudes_by_hand() -> None:
    """Scores 0.5, 1.5 and 0.5, 0.5, 0.5, 2.5: half of six are three, where a strict threshold leaves two."""
    model = by_hand([1, -3], [10, -10, 10, 50])
    assert listed(pruned(model, 0.5, score="normalised")) == [[0, 1], [3]]
    assert listed(pruned(model, 0.6, score="normalised")) == [[0, 1], [3]]  # floor(3.6) go
    assert listed(pruned(model, 0.67, score="normalised")) == [[1], [3]]
    with pytest.raises(
        regrow.RegrowError, match=r"leaves no connection at all in \['0.weight'\]\nGive a lower"
    ):
        pruned(model, 0.5)
    assert listed(pruned(model, 0.5, distribution="uniform", include="*")) == [[1], [0, 3]]


def test_the_mean_of_a_layer_is_that_of_its_connections() -> None:
    """1, 3 of mean 2 and 10, 50 of mean 30: 0.5, 1.5 and 0.33, 1.67; with the zeros the mean would be 15."""
    model = by_hand([1, 3], [10, 7, 8, 50])
    sparse = rewound(model, {"0.weight": torch.tensor([0, 1]), "1.weight": torch.tensor([0, 3])})
    assert listed(pruned(sparse, 0.5, score="normalised")) == [[0, 1], [3]]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("score", CRITERIA)
@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_counts_are_exact_and_nothing_comes_back(score: str, distribution: str, storage: str) -> None:
    how = {"score": CRITERIA[score](), "distribution": distribution}
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    names = ["3.weight"] if distribution == "uniform" else list(SIZES)
    first = pruned(model, 0.3, **how)
    second = pruned(rewound(model, first, storage), 0.55, **how)
    for kept, share in ((first, 0.3), (second, 0.55)):
        shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
        if distribution == "global":
            expected = connections((160,), share)
        else:
            spread = distribute(distribution, shapes, share)
            expected = sum(connections(shapes[name], own) for name, own in spread.items())
        assert (list(kept), sum(map(len, kept.values()))) == (names, expected)
    for name in names:
        assert set(second[name].tolist()) < set(first[name].tolist())
        assert second[name].tolist() == sorted(second[name].tolist())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not regrow.is_sparse(model)


def test_the_lowest_of_all_layers_go() -> None:
    model = mlp()
    kept = pruned(model, 0.75)
    everything = torch.cat([model[0].weight.view(-1), model[3].weight.view(-1)]).abs()
    assert [*kept["0.weight"].tolist(), *(120 + kept["3.weight"]).tolist()] == (
        everything.sort(descending=True).indices[:40].sort().values.tolist()
    )


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_criteria_see_a_sparse_network_as_a_dense_one_with_zeros(storage: str) -> None:
    first = pruned(mlp(), 0.5)
    sparse = rewound(mlp(), first, storage)
    dense = regrow.densify(copy.deepcopy(sparse))
    shapes = {"0.weight": (10, 12), "3.weight": (4, 10)}
    for criterion in (regrow.SNIP(F.cross_entropy, data()), Gradient(F.cross_entropy, data())):
        scores = criterion(dense, shapes)
        flat = torch.cat([scores[name].view(-1)[first[name]] for name in shapes])
        best = set(flat.sort(descending=True, stable=True).indices[:20].tolist())
        own = pruned(sparse, 0.875, score=criterion)
        at = torch.cat([first["0.weight"], 120 + first["3.weight"]])
        found = {*own["0.weight"].tolist(), *(120 + own["3.weight"]).tolist()}
        assert found == {int(at[index]) for index in best}


# --- the loop


def test_each_round_keeps_the_same_share() -> None:
    assert sparsities(0.9, 3) == pytest.approx([1 - 0.1 ** (1 / 3), 1 - 0.1 ** (2 / 3), 0.9])
    assert sparsities(0.75, 2) == [0.5, 0.75]
    assert sparsities(0.9, 1) == [0.9]


def begun(training: Training, place: int, source: dict[str, Tensor], model: nn.Module) -> None:
    """Check that call `place` began with the weights `source` on the connections of `model`, zero elsewhere."""
    masks = regrow.masks(model)
    for name, value in training.before[place].items():
        expected = source[name] * masks[name] if name in masks else source[name]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_tickets_begin_with_the_initial_weights(storage: str) -> None:
    model, training = mlp(), Training()
    initial = copy.deepcopy(model.state_dict())
    rounds = []
    for found in lottery(model, training, 0.8, steps=12, rounds=3, storage=storage):
        rounds.append((found.number, round(found.sparsity, 3)))
        assert isinstance(found.result, float)
        if found.number:
            begun(training, found.number, initial, found.model)
            assert sum(w.nnz for w in sparse_weights(found.model)) == connections((160,), found.sparsity)
            assert {w.storage for w in sparse_weights(found.model)} == {storage}
        else:
            assert not regrow.is_sparse(found.model)
    assert rounds == [(0, 0.0), (1, 0.415), (2, 0.658), (3, 0.8)]
    assert training.calls == [(0, 12)] * 4
    assert all(torch.equal(value, initial[name]) for name, value in model.state_dict().items())


def test_tickets_begin_with_the_weights_after_some_steps() -> None:
    training = Training()
    for found in lottery(mlp(), training, [0.5, 0.75], steps=12, rewind=4):
        if found.number:
            begun(training, 1 + found.number, training.after[0], found.model)
    assert training.calls == [(0, 4), (4, 12), (4, 12), (4, 12)]
    for name, value in training.before[1].items():
        assert torch.equal(value, training.after[0][name])


def test_only_the_learning_rate_is_rewound() -> None:
    training = Training()
    for found in lottery(mlp(), training, [0.5, 0.75], steps=12, rewind="rate"):
        if found.number:
            begun(training, found.number, training.after[found.number - 1], found.model)


def test_tickets_begin_with_new_weights() -> None:
    training, seeds = Training(), iter([5, 6])
    for found in lottery(mlp(), training, [0.5, 0.75], steps=12, rewind=lambda: mlp(next(seeds))):
        if found.number:
            begun(training, found.number, mlp(4 + found.number).state_dict(), found.model)


def test_connections_that_a_method_has_moved_are_those_that_are_pruned() -> None:
    training, moved = Training(method=True), []
    last: dict[str, Tensor] = {}
    for found in lottery(mlp(), training, [0.5, 0.75], steps=12):
        masks = regrow.masks(found.model) if found.number else {}
        if found.number == 2:
            start = {name: training.before[2][name] != 0 for name in masks}
            assert all(bool((last[name] | ~start[name]).all()) for name in masks)
        moved.append(masks)
        last = masks
    assert not all(torch.equal(training.before[1][n] != 0, mask) for n, mask in moved[1].items())


def test_masked_and_compressed_find_the_same_tickets() -> None:
    found = [
        list(lottery(mlp(), Training(), 0.8, steps=8, rounds=2, storage=s)) for s in ("masked", "compressed")
    ]
    for one, other in zip(*found, strict=True):
        left, right = (regrow.dense_state_dict(round.model) for round in (one, other))
        if one.number:
            masks = regrow.masks(other.model)
            assert all(torch.equal(mask, masks[name]) for name, mask in regrow.masks(one.model).items())
        assert all(torch.allclose(value, right[name], rtol=0, atol=1e-12) for name, value in left.items())


def does_nothing(network: nn.Module, start: int, stop: int) -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"sparsity": [0.5, 0.5]}, r"`sparsity` must ascend within \(0, 1\), got \[0.5, 0.5\]\nEach round"),
        ({"sparsity": [0.9, 0.5]}, r"`sparsity` must ascend within \(0, 1\), got \[0.9, 0.5\]"),
        ({"sparsity": [0.9, 1.0]}, r"`sparsity` must ascend within \(0, 1\)"),
        ({"sparsity": 0.0}, r"`sparsity` must be in \(0, 1\), got 0.0"),
        ({"sparsity": [0.9], "rounds": 2}, "`rounds` is 2, but `sparsity` gives the sparsity of each round"),
        ({"rewind": 12}, "`rewind` is step 12, and the run ends after 12\nGive an earlier step, or 'start'"),
        ({"rewind": "begin"}, "`rewind` must be one of start, rate, a step or a function, got 'begin'"),
        (
            {"score": "magnitud"},
            "`score` must be one of magnitude, normalised, or a criterion such as .* did you",
        ),
        ({"distribution": {"0": 0.5}}, "`distribution` must be one of uniform, er, erk, global"),
        ({"include": "9"}, "`include` matches nothing: '9'"),
        ({"train": lambda network: None}, r"`train` must be a function \(network, start, stop\)"),
        ({"model": regrow.sparsify(mlp(), 0.5)}, "`model` is sparse already\nGive the dense network"),
        ({"storage": "mask"}, "`storage` must be one of .*got 'mask'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(changes: dict[str, Any], text: str) -> None:
    training = Training()
    arguments = {"model": mlp(), "train": training, "sparsity": 0.5, "steps": 12, **changes}
    with pytest.raises(regrow.RegrowError, match=text):
        lottery(**arguments)
    assert training.calls == []


def test_a_training_that_trains_nothing_or_makes_the_ticket_dense_is_found_out() -> None:
    with pytest.raises(
        regrow.RegrowError, match="`train` has left the network that it was given as it was\nTrain"
    ):
        next(lottery(mlp(), does_nothing, 0.5, steps=12))
    with pytest.raises(
        regrow.RegrowError, match="the ticket of round 1 has been made dense.*\nChange a copy"
    ):
        for found in lottery(mlp(), Training(), [0.5, 0.75], steps=2):
            if found.number:
                regrow.densify(found.model)


def test_a_distribution_that_would_bring_connections_back() -> None:
    def turned(shapes: Any, sparsity: float) -> dict[str, float]:
        return {"0.weight": 0.9, "3.weight": 0.1} if sparsity < 0.6 else {"0.weight": 0.7, "3.weight": 0.9}

    training = Training()
    with pytest.raises(
        regrow.RegrowError,
        match=r"`sparsity` 0.7 would leave 36 connections in `0.weight`, and there are 12\n",
    ):
        list(lottery(mlp(), training, [0.5, 0.7], steps=2, distribution=turned))
    wrong = {"0.weight": torch.ones(2)}
    with pytest.raises(regrow.RegrowError, match="`score` must give one tensor for each of"):
        pruned(mlp(), 0.5, score=lambda model, shapes: wrong)


# --- early tickets


def test_masks_and_their_distances_by_hand() -> None:
    model = by_hand([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    early = EarlyTicket(model, 0.5, distance=0.2, masks=3)
    assert early.masks == {}
    assert not early.settled()
    assert early.masks["0.weight"].tolist() == [[True] * 5 + [False] * 5]
    with torch.no_grad():
        model[0].weight[0, :2] = 0.5  # two others come in: four positions differ
    assert not early.settled()
    assert early.distances == [0.4]
    assert not early.settled()
    assert early.distances == [0.4, 0.0]
    with torch.no_grad():
        model[0].weight[0, 0] = 9.0  # and one of them goes
    assert early.settled()  # of the last three, which the first is not among
    assert early.distances == [0.2, 0.2]
    regrow.sparsify(model, init=early.masks, include="0")
    assert sparse_weights(model)[0].positions().tolist() == [0, 2, 3, 4, 5]


def test_five_masks_that_agree_to_eight_percent_by_default() -> None:
    early = EarlyTicket(mlp(), 0.8)
    assert [early.settled() for _ in range(6)] == [False] * 4 + [True] * 2
    assert len(early.distances) == 4


def test_a_mask_that_leaves_a_layer_empty_for_now_stops_no_training() -> None:
    early = EarlyTicket(by_hand([1, -3], [10, -10, 10, 50]), 0.5, masks=2)
    assert [early.settled(), early.settled()] == [False, True]
    assert not early.masks["0.weight"].any()


def test_an_early_ticket_goes_on_from_its_state() -> None:
    model, training = mlp(), Training(rate=0.01)
    early = EarlyTicket(model, 0.8, masks=3, distance=0.0)
    for step in range(4):
        training(model, step, step + 1)
        early.settled()
    other = EarlyTicket(model, 0.8, masks=3, distance=0.0)
    other.load_state_dict(early.state_dict())
    assert (other.distances, other.settled()) == (early.distances, early.settled())
    with pytest.raises(
        regrow.RegrowError, match="`state` holds masks of 160 positions, and this network has 4"
    ):
        EarlyTicket(by_hand([1, 2, 3, 4]), 0.5).load_state_dict(early.state_dict())
