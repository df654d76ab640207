"""Methods under a pattern: what they drop and grow keeps to it, and none of them knows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow.errors import RegrowValueError
from regrow.methods import criteria
from regrow.sparsity.distributions import connections
from regrow.testing import Case, Run, check_method, checks, contract
from regrow.weights import SparseWeight, sparse_weights
from regrow.weights.gates import parts

PATTERNS: list[Any] = ["fan-in", "2:4", (1, 4), (4, 2)]
STORAGES = ["masked", "compressed"]
both = pytest.mark.parametrize("storage", STORAGES)

# --- by hand


def by_hand(
    pattern: Any, storage: str, values: Tensor, gradient: Tensor, method: Any = regrow.RigL, **options: Any
) -> nn.Module:
    """A layer after one update, by which half of its connections go: those that are not 0 at first."""
    rows, columns = values.shape
    model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(values)
    regrow.sparsify(model, init={"0.weight": values != 0}, pattern=pattern, storage=storage)
    optimizer = SGD(model.parameters(), lr=1e-30)
    options = {"drop_fraction": 0.5, "schedule": "constant", **options}
    driver = method(model, optimizer, total_steps=9, update_every=1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.eye(columns)) * gradient.T).sum().backward()  # so that dL/dw is `gradient`
        optimizer.step()
    driver.detach()
    return model


def mask_of(model: nn.Module) -> list[list[int]]:
    return regrow.masks(model)["0.weight"].int().tolist()


@both
def test_a_row_gets_back_as_many_as_it_loses(storage: str) -> None:
    values = torch.tensor([[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 5.0]])
    gradient = torch.tensor([[0.1, 0.2, 3.0, -5.0], [7.0, 9.0, 8.0, 8.0]])
    # 1 and -2 are the smallest; 9 and 7 would come without the pattern
    model = by_hand("fan-in", storage, values, gradient)
    assert mask_of(model) == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert sparse_weights(model)[0].to_dense().tolist() == [[0, 0, 0, 0], [0, 0, 4, 5]]
    assert mask_of(by_hand(None, storage, values, gradient)) == [[0, 0, 0, 0], [1, 1, 1, 1]]


@both
def test_two_of_each_four_stay_two(storage: str) -> None:
    values = torch.tensor([[3.0, 1.0, 0.0, 0.0, 0.0, 5.0, -2.0, 0.0]])
    gradient = torch.tensor([[0.0, 0.0, 4.0, -6.0, 1.0, 0.0, 0.5, 0.1]])
    model = by_hand("2:4", storage, values, gradient)  # 1 and -2 go; -6 comes, and 1, not 4
    assert mask_of(model) == [[1, 0, 0, 1, 1, 1, 0, 0]]
    assert mask_of(by_hand(None, storage, values, gradient)) == [[1, 0, 1, 1, 0, 1, 0, 0]]


@both
def test_blocks_come_and_go_whole(storage: str) -> None:
    values = torch.tensor([[3.0, -1.0, 0.0, 0.0, 2.5, 0.5, 0.0, 0.0]])
    gradient = torch.tensor([[9.0, 9.0, 1.0, -4.0, 0.0, 0.0, 3.0, -3.0]])
    # means 2 and 1.5: the second goes; of means 2.5, 0 and 3 the last comes
    model = by_hand((1, 2), storage, values, gradient)
    assert mask_of(model) == [[1, 1, 0, 0, 0, 0, 1, 1]]
    assert sparse_weights(model)[0].to_dense().tolist() == [[3, -1, 0, 0, 0, 0, 0, 0]]


@both
def test_blocks_of_several_rows(storage: str) -> None:
    values = torch.tensor([[1.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    gradient = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 9.0], [2.0, 0.0, 3.0], [2.0, 0.0, -3.0]])
    # |w| 2.5 and 2; |dL/dw| 0, 2.5, 4.5 above and 2, 0, 3 below
    model = by_hand((2, 1), storage, values, gradient)
    assert mask_of(model) == [[1, 0, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]]


@both
def test_what_grows_at_random_keeps_to_the_pattern(storage: str) -> None:
    values = torch.tensor([[1.0, -2.0, 0.0, 0.0], [0.0, 0.0, 4.0, 5.0]])
    seen = set()
    for seed in range(40):
        model = by_hand("fan-in", storage, values, torch.zeros_like(values), regrow.SET, seed=seed)
        mask = mask_of(model)
        assert mask[1] == [0, 0, 1, 1]
        assert sum(mask[0]) == 2
        seen.add(tuple(mask[0]))
    assert len(seen) == 6, "all pairs of four"


# --- in training

KEEP: dict[str, tuple[type[regrow.Method], dict[str, Any]]] = {
    "rigl": (regrow.RigL, {}),
    "set": (regrow.SET, {"per_sign": True, "grow_init": "normal"}),
    "itop-set": (regrow.SetITOP, {}),
    "snfs": (regrow.SNFS, {"redistribution": False}),
    "srigl": (regrow.SRigL, {}),
}
FEWER: dict[str, tuple[type[regrow.Method], dict[str, Any]]] = {
    "granet": (regrow.GraNet, {}),
    "pruning": (regrow.Pruning, {}),
}


def has_pattern(weight: SparseWeight) -> bool:
    pattern = weight.record.pattern
    return pattern is not None and pattern.holds(weight.shape, weight.positions())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("name", KEEP)
def test_every_update_keeps_pattern_and_counts_in_both_storages(name: str, pattern: Any) -> None:
    method, options = KEEP[name]
    if method.pattern not in (None, pattern):
        return
    runs = [Run(Case(method, storage, options, pattern)) for storage in Case(method).storages]
    before = [weight.nnz for weight in runs[0].weights]
    topologies = set()
    for steps in zip(*(run.train(0, 41) for run in runs), strict=True):
        for run in runs:
            assert [weight.nnz for weight in run.weights] == before, steps
            assert all(has_pattern(weight) for weight in run.weights), steps
            assert run.topology() == runs[0].topology(), steps
        topologies.add(tuple(runs[0].topology()))
    for one, other in zip(runs[0].dense(), runs[-1].dense(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-9)
    assert len(topologies) > 4


@pytest.mark.parametrize("name", FEWER)
@pytest.mark.parametrize("pattern", [(1, 4)], ids=str)
def test_methods_that_change_counts_keep_blocks(name: str, pattern: Any) -> None:
    method, options = FEWER[name]
    run = Run(Case(method, "masked", options, pattern))
    before = [weight.nnz for weight in run.weights]
    for step in run.train(0, 200):
        assert all(has_pattern(weight) for weight in run.weights), step
    after, blocks = [weight.nnz for weight in run.weights], [w.numel // pattern[1] for w in run.weights]
    assert after != before
    if name == "pruning":
        assert after == [pattern[1] * connections((count,), 0.9) for count in blocks]
    else:
        assert sum(after) == pattern[1] * connections((sum(blocks),), 0.9)


def test_blocks_move_from_layer_to_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 8))
    regrow.sparsify(model, 0.7, "uniform", include=["0", "2"], pattern=(2, 4), storage="masked")
    weights = sparse_weights(model)
    before = [weight.nnz for weight in weights]
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = regrow.SNFS(model, optimizer, total_steps=40, update_every=4)
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 36, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        assert all(has_pattern(weight) for weight in weights)
    assert [weight.nnz for weight in weights] != before
    assert sum(weight.nnz for weight in weights) == sum(before)
    driver.detach()


@pytest.mark.parametrize("check", [checks.check_resume, contract.check_counts])
@pytest.mark.parametrize("pattern", ["2:4", (1, 4)], ids=str)
def test_the_common_suite_takes_a_pattern(pattern: Any, check: Any) -> None:
    """`check_method(RigL, pattern=...)` and its like pass whole; these are two checks that a pattern could fail."""
    check(Case(regrow.RigL, "compressed", {}, pattern))


def test_a_convolution_keeps_its_pattern() -> None:
    topologies = []
    for storage in STORAGES:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 2), nn.Flatten()).double()
        regrow.sparsify(model, pattern="1:4", storage=storage)
        optimizer = SGD(model.parameters(), lr=0.1)
        driver = regrow.RigL(model, optimizer, total_steps=40, update_every=2)
        for step in range(20):
            own = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 4, 6, 6, generator=own, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
            for mask in regrow.masks(model).values():
                assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) == 1).all()
        topologies.append([weight.fingerprint() for weight in sparse_weights(model)])
        driver.detach()
    assert topologies[0] == topologies[1]


def test_the_search_for_blocks_is_exact_beyond_a_tile() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1030, 1026))
    regrow.sparsify(model, 0.9, include="1", storage="compressed", pattern=(2, 5))
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = regrow.RigL(model, optimizer, total_steps=9, update_every=1)
    for step in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 1030)).square().sum().backward()
        if not step:
            optimizer.step()
    (weight,) = sparse_weights(model)
    dense = torch.cat([tile.clone() for _, tile in weight.dense_gradient().tiles()])
    pooled = dense.abs().view(513, 2, 206, 5).mean((1, 3)).view(-1)
    (view,) = parts([weight])
    assert (view.shape, view.nnz) == ((513, 206), weight.nnz // 10)
    pooled[view.positions()] = -1
    found = view.best(300, view.positions(), criteria.gradient_magnitude)
    assert torch.equal(found, pooled.topk(300).indices.sort().values)
    driver.detach()


# --- what cannot be


@pytest.mark.parametrize(
    ("method", "options", "pattern", "text"),
    [
        (
            regrow.SNFS,
            {},
            "2:4",
            "SNFS cannot keep the pattern 2:4 of `3.weight`: it moves connections from weight to",
        ),
        (regrow.GraNet, {"final_sparsity": 0.9}, "fan-in", "pattern fan-in .*: its connections become fewer"),
        (regrow.Pruning, {"final_sparsity": 0.9}, "2:4", "its connections become fewer"),
        (regrow.SoftMEST, {"final_sparsity": 0.9}, "fan-in", "its connections become fewer"),
        (regrow.RST, {"final_sparsity": 0.9}, "2:4", "its connections become fewer"),
        (regrow.TopKAST, {"final_sparsity": 0.9}, "2:4", "its connections become fewer"),
        (regrow.RigL, {"grow_columns": 4}, "fan-in", "`grow_columns` searches some columns"),
        (regrow.RigL, {"grow_columns": 0.5}, (1, 4), "`grow_columns` searches some columns"),
        (
            regrow.SRigL,
            {},
            "2:4",
            "SRigL needs weights with the pattern fan-in, and `3.weight` has 2:4.\nUse regrow",
        ),
        (regrow.SRigL, {}, None, "SRigL needs weights with the pattern fan-in, and `0.weight` has none"),
    ],
)
def test_methods_that_cannot_keep_a_pattern_are_refused(
    method: Any, options: Any, pattern: Any, text: str
) -> None:
    model = Case(regrow.RigL, "masked", {}, pattern).network()
    with pytest.raises(RegrowValueError, match=text):
        method(model, SGD(model.parameters(), lr=0.1), total_steps=20, update_every=2, **options)
    assert all(weight.driver() is None for weight in sparse_weights(model))


def test_blocks_of_several_sizes_are_not_counted_together() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    regrow.sparsify(model, 0.5, include="0", pattern=(1, 4), storage="masked")
    regrow.sparsify(model, 0.5, include="1", storage="masked")
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        RegrowValueError, match="SNFS counts weights together, .* of several sizes, 1x4, None"
    ):
        regrow.SNFS(model, optimizer, total_steps=20, update_every=2)
    regrow.RigL(model, optimizer, total_steps=20, update_every=2).detach()


class Stubborn(regrow.Dynamic):
    """A method of one's own that grows wherever it likes."""

    def grow(self, weight: SparseWeight, count: int, survivors: Tensor, generator: Any) -> Tensor:
        free = torch.ones(weight.numel, dtype=torch.bool)
        free[survivors] = False
        return free.nonzero().view(-1)[:count]


class Whole(regrow.Method):
    """A method of one's own with moves of whole weights."""

    def update(self, step: int, weights: list[SparseWeight]) -> None:
        """Would move whole weights."""


def test_a_method_of_ones_own_that_breaks_a_pattern_is_noticed_before_anything_moves() -> None:
    run = Run(Case(Stubborn, "masked", {}, "2:4"))
    before = run.topology()
    with pytest.raises(
        RegrowValueError, match="`3.weight` has the pattern 2:4, and would lose it by what is dropped"
    ):
        for _ in run.train(0, 20):
            pass
    assert run.topology() == before
    model = Case(regrow.RigL, "masked", {}, "2:4").network()
    with pytest.raises(
        RegrowValueError, match="Whole cannot keep the pattern 2:4 .*: it moves weights as a whole"
    ):
        Whole(model, SGD(model.parameters(), lr=0.1))
    regrow.Static(model, SGD(model.parameters(), lr=0.1)).detach()


def test_check_method_says_what_a_pattern_loses() -> None:
    with pytest.raises(RegrowValueError, match="would lose it"):
        check_method(Stubborn, pattern="2:4")
