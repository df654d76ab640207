"""SNIP, SNFS, Pruning, SET's original form and the options of RigL's ablations, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import regrow
from regrow import schedules
from regrow.methods.snfs import apportion
from regrow.testing import Case, Run
from regrow.weights import sparse_weights


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 4)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 12, generator=generator, dtype=torch.float64), torch.arange(20) % 4


# --- SNIP


def test_snip_keeps_the_largest_gradient_times_weight() -> None:
    model, (x, y) = mlp(), data()
    weight, gradient = model[3].weight, None
    reference = copy.deepcopy(model).eval()
    nn.functional.cross_entropy(reference(x), y).backward()
    gradient = reference[3].weight.grad
    assert gradient is not None
    best = (gradient * weight).abs().detach().view(-1).sort(descending=True).indices[:12].sort().values
    before = copy.deepcopy(model.state_dict())
    regrow.sparsify(
        model, 0.7, "uniform", include=["0", "3"], init=regrow.SNIP(nn.functional.cross_entropy, (x, y))
    )
    assert torch.equal(sparse_weights(model)[1].positions(), best)
    assert [w.nnz for w in sparse_weights(model)] == [36, 12]
    assert torch.equal(model[1].running_mean, before["1.running_mean"])  # norms in evaluation mode
    assert model.training
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("per_layer", [True, False])
def test_snip_does_not_depend_on_the_scale_of_the_loss(per_layer: bool) -> None:
    topologies = []
    for scale in (1.0, 37.0):
        model = mlp()
        criterion = regrow.SNIP(
            lambda out, y, by=scale: by * nn.functional.cross_entropy(out, y), data(), per_layer=per_layer
        )
        regrow.sparsify(model, 0.8, init=criterion)
        topologies.append([w.positions().tolist() for w in sparse_weights(model)])
    assert topologies[0] == topologies[1]


def test_global_snip_keeps_the_best_of_all_layers_together() -> None:
    model = mlp()
    criterion = regrow.SNIP(nn.functional.cross_entropy, data(), per_layer=False)
    scores = criterion(model, {"0.weight": (10, 12), "3.weight": (4, 10)})
    regrow.sparsify(model, 0.8, "uniform", include=["0", "3"], init=criterion)
    kept = torch.cat([scores[w.name].view(-1)[w.positions()] for w in sparse_weights(model)])
    everything = torch.cat([s.view(-1) for s in scores.values()])
    assert len(kept) == 32
    assert kept.min() == everything.sort(descending=True).values[31]


def test_a_criterion_that_leaves_a_layer_empty_warns() -> None:
    class First:
        per_layer = False

        def __call__(self, model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
            return {name: torch.full(shape, float(name == "0.weight")) for name, shape in shapes.items()}

    model = mlp()
    with pytest.warns(UserWarning, match=r"leaves no connection at all in \['3.weight'\]"):
        regrow.sparsify(model, 0.5, "uniform", include=["0", "3"], init=First())
    assert [w.nnz for w in sparse_weights(model)] == [80, 0]


# --- SNFS


def two_layers() -> nn.Sequential:
    """Two layers of four positions, two of them active, on inputs that make gradients easy to write down."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 4, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
        model[1].weight.copy_(torch.tensor([[1.0], [2.0], [0.0], [0.0]]))
    first = torch.tensor([[True, True, False, False]])
    return regrow.sparsify(model, init={"0.weight": first, "1.weight": first.t()})


def test_snfs_grows_by_the_running_average() -> None:
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.SNFS(
        model,
        optimizer,
        total_steps=10,
        update_every=2,
        drop_fraction=0.5,
        schedule="constant",
        redistribution=False,
        momentum=0.5,
    )
    inputs = [torch.tensor([[0.0, 0.0, 8.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 1.0]])]
    averages = []
    for step in range(3):
        optimizer.zero_grad()
        model(inputs[min(step, 1)].double()).sum().backward()
        optimizer.step()
        averages.append(optimizer.state[model[0].weight]["regrow_average"].clone())
    # d sum(output) / d weight of the first layer is 3 x: 24 at position 2, then twice 3 at position 3
    assert averages[0].tolist() == [[0, 0, 24, 0]]
    assert averages[1].tolist() == [[0, 0, 12, 1.5]]
    assert averages[2].tolist() == [[0, 0, 6, 2.25]]
    assert sparse_weights(model)[0].positions().tolist() == [1, 2]  # RigL would have grown position 3
    assert method.step == 3


def test_snfs_moves_connections_to_where_the_momentum_is() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False)).double()
    regrow.sparsify(model, 0.8, "uniform", include="*")
    optimizer = SGD(model.parameters(), lr=0.01)
    regrow.SNFS(model, optimizer, total_steps=40, update_every=2)
    before = [w.nnz for w in sparse_weights(model)]
    for step in range(20):
        optimizer.zero_grad()
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        (model(10 * x).square().mean() + 0).backward()
        optimizer.step()
    after = [w.nnz for w in sparse_weights(model)]
    assert sum(after) == sum(before) == 160
    assert after != before


@pytest.mark.parametrize(
    ("total", "shares", "room", "counts"),
    [
        (10, [1.0, 1.0], [20.0, 20.0], [5, 5]),
        (10, [3.0, 1.0], [20.0, 20.0], [8, 2]),  # 7.5 and 2.5: the remainder goes to the lower index
        (10, [3.0, 1.0], [4.0, 20.0], [4, 6]),  # what does not fit goes to the other
        (10, [0.0, 0.0], [20.0, 20.0], [5, 5]),
        (10, [1.0, 0.0], [4.0, 20.0], [4, 6]),
        (0, [1.0, 2.0], [5.0, 5.0], [0, 0]),
        (30, [1.0, 1.0], [4.0, 5.0], [4, 5]),  # more than there is room for
        (7, [1.0, 1.0, 1.0], [9.0, 9.0, 9.0], [3, 2, 2]),
    ],
)
def test_apportion(total: int, shares: list[float], room: list[float], counts: list[int]) -> None:
    assert apportion(total, torch.tensor(shares).double(), torch.tensor(room).double()) == counts


# --- Pruning


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_pruning_follows_the_cubic_schedule_exactly(storage: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 25)).double()
    regrow.sparsify(model, 0.0, storage=storage)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    method = regrow.Pruning(
        model,
        optimizer,
        total_steps=100,
        final_sparsity=0.8,
        update_every=10,
        start_fraction=0.2,
        stop_fraction=0.6,
    )
    (weight,) = sparse_weights(model)
    counts = []
    for step in range(100):
        before = weight.to_dense()
        optimizer.zero_grad()
        x = torch.randn(8, 40, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()
        counts.append(weight.nnz)
        if step == 20:  # progress 0
            assert counts[-1] == 1000
        if step in (30, 40, 50, 60):
            assert weight.mask().sum() == weight.nnz
            assert (before != 0).sum() > weight.nnz
    # s(t) = 0.8 (1 - (1 - p)^3) at p = 1/4, 1/2, 3/4, 1; the middle one is 0.875 of the final sparsity
    expected = {29: 1000, 30: 1000 - 462, 40: 1000 - 700, 50: 1000 - 787, 60: 200, 99: 200}
    assert {step: counts[step] for step in expected} == expected
    assert (method.next_update, method.last_update) == (None, 60)


def test_cubic() -> None:
    assert [schedules.cubic(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.875, 1.0]


def test_pruning_keeps_the_largest() -> None:
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -4.0, 3.0, 0.1, -2.0, 0.2, 1.0, -0.3]]))
    regrow.sparsify(model, 0.0)
    optimizer = SGD(model.parameters(), lr=0.0)
    regrow.Pruning(
        model,
        optimizer,
        total_steps=4,
        final_sparsity=0.5,
        update_every=1,
        start_fraction=0.25,
        stop_fraction=0.5,
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()
    assert sparse_weights(model)[0].positions().tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_sparsity": 1.0}, r"`final_sparsity` must be in \[0, 1\), got 1.0"),
        (
            {"final_sparsity": 0.2},
            "`final_sparsity` 0.2 of `0.weight` is below the sparsity that it has, 0.5",
        ),
        ({"final_sparsity": {"0": 0.9}}, r"`final_sparsity` must name exactly \['0.weight'\], got \['0'\]"),
        (
            {"start_fraction": 0.9, "stop_fraction": 0.5},
            "`start_fraction` must be at most `stop_fraction` 0.5, got 0.9",
        ),
        ({"update_every": 1000}, "`update_every` 1000 leaves no step to prune at between"),
    ],
)
def test_pruning_options_that_are_not_allowed(options: dict[str, object], message: str) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5)
    given = {"total_steps": 100, "final_sparsity": 0.9, "update_every": 10, **options}
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.Pruning(model, SGD(model.parameters(), lr=0.1), **given)  # type: ignore[arg-type]


# --- SET as published, and options


def test_set_as_published_drops_each_sign_separately() -> None:
    model = nn.Sequential(nn.Linear(10, 1, bias=False))
    values = torch.tensor([[5.0, 1.0, 4.0, 3.0, -0.1, -0.2, -0.3, 0.0, 0.0, 0.0]])
    with torch.no_grad():
        model[0].weight.copy_(values)
    regrow.sparsify(model, init={"0.weight": values != 0})
    optimizer = SGD(model.parameters(), lr=0.0)
    method = regrow.SET.original(model, optimizer, total_steps=9, steps_per_epoch=3, drop_fraction=0.5)
    assert (method.next_update, method.last_update) == (3, 6)
    gone = method.drop(method.weights[0], 0.5).tolist()
    assert gone == [1, 3, 4]  # 1 and 3 of four positive ones, -0.1 of three negative ones
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
    weight = method.weights[0]
    assert weight.nnz == 7
    assert weight.mask()[0, [0, 2, 5, 6]].all()
    fresh = [p for p in weight.positions().tolist() if p not in range(7)]
    assert all(weight.to_dense()[0, p] != 0 for p in fresh)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_new_connections_may_start_otherwise_than_at_zero(storage: str, kind: str) -> None:
    case = Case(regrow.SET, storage, {"grow_init": kind, "grow_scale": 10.0, "skip_step": True})
    run = Run(case)
    before: list[Tensor] = []
    for _ in run.train(0, 8):
        before = [weight.mask() for weight in run.weights]
    next(run.train(8, 9))  # the update, without a weight step
    for weight, mask in zip(run.weights, before, strict=True):
        if mask.all():  # the last layer is at density 1 under ERK
            continue
        fresh = weight.to_dense()[weight.mask() & ~mask]
        assert len(fresh) > 0
        assert (fresh != 0).all()
        assert fresh.abs().max() < weight.values().abs().max()
        momentum = run.optimizer.state[weight.parameter]["momentum_buffer"]
        new = torch.isin(weight.positions(), (weight.mask() & ~mask).view(-1).nonzero().view(-1))
        assert not weight.take(momentum)[new].any()


def test_the_inverse_power_schedule() -> None:
    assert schedules.drop_schedule("inverse-power-3")(0.5) == 0.125
    assert schedules.drop_schedule("inverse-power-1")(0.25) == schedules.linear(0.25)
    for wrong in ("inverse-power-", "inverse-power-x"):
        with pytest.raises(regrow.RegrowError, match="`schedule` must be inverse-power-k with a number k"):
            schedules.drop_schedule(wrong)
    model = mlp()
    regrow.sparsify(model, 0.5)
    with pytest.raises(
        regrow.RegrowError, match="`grow_init` must be one of zeros, normal, uniform, got 'zero'.*`zeros`"
    ):
        regrow.RigL(
            model, SGD(model.parameters(), lr=0.1), total_steps=10, stop_fraction=0.0, grow_init="zero"
        )
