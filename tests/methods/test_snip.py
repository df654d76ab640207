"""SNIP: what it scores, in which mode, and what scoring leaves as it was."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from runs import data, mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import regrow
from regrow.weights import paused, sparse_weights


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_snip_keeps_the_largest_gradient_times_weight(mode: str) -> None:
    model, (x, y) = mlp(), data()
    with torch.no_grad():
        model[1].running_mean.fill_(0.3)
        model[1].running_var.copy_(torch.linspace(0.1, 3, 10))
    weight, gradient = model[3].weight, None
    reference = copy.deepcopy(model).train(mode == "train")
    F.cross_entropy(reference(x), y).backward()
    gradient = reference[3].weight.grad
    assert gradient is not None
    best = (gradient * weight).abs().detach().view(-1).sort(descending=True).indices[:12].sort().values
    before = copy.deepcopy(model.state_dict())
    regrow.sparsify(
        model, 0.7, "uniform", include=["0", "3"], init=regrow.SNIP(F.cross_entropy, (x, y), mode=mode)
    )
    assert torch.equal(sparse_weights(model)[1].positions(), best)
    assert [w.nnz for w in sparse_weights(model)] == [36, 12]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model[1], name), before[f"1.{name}"])
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_each_source_has_its_own_default() -> None:
    """RigL's comparison scores in training mode, layer by layer; the original in evaluation mode, all together."""
    ours, theirs = regrow.SNIP(F.cross_entropy, data()), regrow.SNIP.original(F.cross_entropy, data())
    assert (ours.mode, ours.per_layer) == ("train", True)
    assert (theirs.mode, theirs.per_layer) == ("eval", False)
    shapes = {"0.weight": (10, 12), "3.weight": (4, 10)}
    scores = [criterion(mlp(), shapes) for criterion in (ours, theirs)]
    assert not torch.equal(scores[0]["0.weight"], scores[1]["0.weight"])
    with pytest.raises(
        regrow.RegrowError, match="`mode` must be one of train, eval, got 'evaluate', did you mean `eval`"
    ):
        regrow.SNIP(F.cross_entropy, data(), mode="evaluate")


def test_modes_and_buffers_are_as_before_whatever_they_were_also_after_an_error() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1  # another tensor in the buffer's place
            return x

    model = nn.Sequential(*mlp(), Counts())
    model[1].eval()
    seen = model[4].seen

    def fails(output: Tensor, target: Tensor) -> Tensor:
        raise ZeroDivisionError

    for loss_fn in (F.cross_entropy, fails):
        try:
            regrow.SNIP(loss_fn, data())(model, {"0.weight": (10, 12)})
        except ZeroDivisionError:
            assert loss_fn is fails
        assert [module.training for module in model] == [True, False, True, True, True]
        assert model[4].seen is seen
        assert float(seen) == 0
        assert int(model[1].num_batches_tracked) == 0


class Auxiliary(nn.Module):
    """A network with a head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.side = nn.Linear(12, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        out: Tensor = self.head(x) + self.side(x) if self.training else self.head(x)
        return out


def test_what_cannot_be_scored_is_named_and_nothing_is_changed() -> None:
    model, batch = Auxiliary().double(), data()
    regrow.SNIP(F.cross_entropy, batch)(model, {"side.weight": (4, 8)})
    with pytest.raises(
        regrow.RegrowError,
        match=r"SNIP cannot score \['side.weight'\], which its loss does not depend on in mode 'eval'",
    ):
        regrow.sparsify(model, 0.5, init=regrow.SNIP.original(F.cross_entropy, batch))
    assert not regrow.is_sparse(model)
    assert model.training
    model.body.requires_grad_(False)
    with pytest.raises(
        regrow.RegrowError, match=r"SNIP cannot score \['body.weight'\], which are frozen.*\n.*`exclude`"
    ):
        regrow.sparsify(model, 0.5, init=regrow.SNIP(F.cross_entropy, batch))
    regrow.sparsify(model, 0.5, init=regrow.SNIP(F.cross_entropy, batch), exclude="body")


# --- all layers together


def best(scores: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    """The positions of the `count` largest scores of all, by a plain sort."""
    everything = torch.cat([own.reshape(-1) for own in scores.values()])
    chosen = set(everything.sort(descending=True, stable=True).indices[:count].tolist())
    found, start = {}, 0
    for name, own in scores.items():
        found[name] = [i for i in range(own.numel()) if start + i in chosen]
        start += own.numel()
    return found


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("kind", ["magnitude", "snip", "own"])
def test_global_keeps_the_best_of_all_layers_whatever_scores_them(kind: str, storage: str) -> None:
    model, shapes = mlp(), {"0.weight": (10, 12), "3.weight": (4, 10)}
    weights = {name: model.get_parameter(name).detach().abs().clone() for name in shapes}
    criteria: dict[str, Any] = {
        "magnitude": "magnitude",
        "snip": regrow.SNIP(F.cross_entropy, data()),
        "own": lambda model, shapes: {name: (own - 0.15).abs() for name, own in weights.items()},
    }
    init = criteria[kind]
    scores = weights if kind == "magnitude" else init(model, shapes)
    regrow.sparsify(model, 0.81, "global", init=init, storage=storage)
    kept = {weight.name: weight.positions().tolist() for weight in sparse_weights(model)}
    assert kept == best(scores, 160 - 129)  # floor(0.81 * 160) are left out
    assert [row.asked for row in regrow.summary(model).rows] == [
        len(kept[n]) / scores[n].numel() for n in kept
    ]


def test_global_needs_scores() -> None:
    model = mlp()
    for init in (None, "random"):
        with pytest.raises(
            regrow.RegrowError,
            match=r"`distribution` 'global' keeps .*'random', which has no scores.\nGive init='magn",
        ):
            regrow.sparsify(model, 0.8, "global", init=init)
    with pytest.raises(
        regrow.RegrowError, match="one of uniform, er, erk, global, .*got 'globl', did you mean `global`"
    ):
        regrow.sparsify(model, 0.8, "globl")
    with pytest.raises(regrow.RegrowError, match=r"`sparsity` must be in \[0, 1\), got 1.0"):
        regrow.sparsify(model, 1.0, "global", init="magnitude")
    assert not regrow.is_sparse(model)


def test_global_may_leave_a_layer_empty_with_a_warning_or_whole() -> None:
    model = mlp()
    with torch.no_grad():
        model[3].weight.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"leaves no connection at all in \['3.weight'\]"):
        regrow.sparsify(model, 0.5, "global", init="magnitude")
    assert [weight.nnz for weight in sparse_weights(model)] == [80, 0]
    model = mlp()
    with torch.no_grad():
        model[3].weight.mul_(1e3)
    regrow.sparsify(model, 0.5, "global", init="magnitude")
    assert [weight.nnz for weight in sparse_weights(model)] == [40, 40]


# --- other models meanwhile


def test_scoring_one_model_leaves_the_gradients_of_another_sparse() -> None:
    torch.manual_seed(0)
    mine = regrow.sparsify(nn.Linear(16, 16), 0.5, storage="masked")
    inactive = ~regrow.masks(mine)["weight"]

    def meanwhile(output: Tensor, target: Tensor) -> Tensor:
        mine.zero_grad()
        mine(torch.randn(4, 16)).square().sum().backward()
        assert mine.weight.grad is not None
        assert not mine.weight.grad[inactive].any()
        return F.cross_entropy(output, target)

    regrow.sparsify(mlp(), 0.8, init=regrow.SNIP(meanwhile, data()))


def test_only_what_is_scored_is_paused_and_not_for_longer() -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)), 0.5, "uniform", include="*")
    weights = sparse_weights(model)
    inactive = [~weight.mask() for weight in weights]

    def leaks() -> list[bool]:
        model.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        return [bool(w.parameter.grad[i].any()) for w, i in zip(weights, inactive, strict=True)]

    with paused([weights[0].parameter]):
        assert leaks() == [True, False]
        with paused([weights[0].parameter, weights[1].parameter]):
            assert leaks() == [True, True]
        assert leaks() == [True, False]
    assert leaks() == [False, False]


def test_a_thread_that_scores_and_one_that_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    regrow.sparsify(model, 0.9, storage="masked")
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.Static(model, optimizer)
    stop, scored = threading.Event(), 0

    def score() -> None:
        nonlocal scored
        while not stop.is_set():
            batch = torch.randn(64, 64), torch.randint(10, (64,))
            regrow.SNIP(F.cross_entropy, batch)(
                nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10)), {"0.weight": (200, 64)}
            )
            scored += 1

    thread = threading.Thread(target=score)
    thread.start()
    try:
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(32, 64)).square().mean().backward()
            optimizer.step()
    finally:
        stop.set()
        thread.join()
    assert scored > 0
    for weight in sparse_weights(model):
        assert not weight.parameter[~weight.mask()].any()


# --- what it does not depend on


@pytest.mark.parametrize("per_layer", [True, False])
def test_snip_does_not_depend_on_the_scale_of_the_loss(per_layer: bool) -> None:
    topologies = []
    for scale in (1.0, 37.0):
        model = mlp()
        criterion = regrow.SNIP(
            lambda out, y, by=scale: by * F.cross_entropy(out, y), data(), per_layer=per_layer
        )
        regrow.sparsify(model, 0.8, init=criterion)
        topologies.append([w.positions().tolist() for w in sparse_weights(model)])
    assert topologies[0] == topologies[1]


def test_global_snip_keeps_the_best_of_all_layers_together() -> None:
    model = mlp()
    criterion = regrow.SNIP(F.cross_entropy, data(), per_layer=False)
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
