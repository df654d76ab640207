"""A core and the whole network in turn: by hand, what rests, norms, and the core as a network of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import recurrent
import torch
from runs import data, mlp
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

import regrow
from regrow.methods.state import companions
from regrow.nn import LowRankLinear
from regrow.tickets import core_of, narrow_core, narrower
from regrow.weights import sparse_weights


class Quadratic(nn.Module):
    """f(x) = 0.5 |x - a|^2 at a = (1, 2), from x = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.x.weight)

    def forward(self) -> Tensor:
        return 0.5 * (self.x.weight - torch.tensor([[1.0, 2.0]])).square().sum()


def quadratic(momentum: float = 0.0, **options: Any) -> Iterator[list[float]]:
    """x after each step, where the core is its first entry."""
    model = regrow.sparsify(Quadratic(), 0.0, storage="masked", rescale=False)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=momentum)
    core = {"x.weight": torch.tensor([[True, False]])}
    method = regrow.PartiallyMasked(model, optimizer, total_steps=100, core=core, **options)
    while method.step < 100:
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        yield model.x.weight.tolist()[0]


def after(count: int, **options: Any) -> list[list[float]]:
    steps = quadratic(**options)
    return [pytest.approx(next(steps), abs=1e-6) for _ in range(count)]


def test_a_quadratic_by_hand() -> None:
    assert after(2) == [[0.1, 0.0], [0.19, 0.2]]
    assert after(2, full_update="complement") == [[0.1, 0.0], [0.1, 0.2]]


def test_two_steps_of_the_whole_network_behind_each_of_the_core() -> None:
    assert after(4, full_steps=2) == [[0.1, 0.0], [0.19, 0.2], [0.271, 0.38], [0.3439, 0.38]]


def test_one_momentum_for_both_or_one_each() -> None:
    assert after(3, momentum=0.9) == [[0.1, 0.0], [0.28, 0.2], [0.514, 0.2]]
    assert after(3, momentum=0.9, moments="apart") == [[0.1, 0.0], [0.19, 0.2], [0.361, 0.2]]


# --- a small network

X, Y = data()
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Run:
    """A network with a norm, in training."""

    def __init__(
        self, optimizer: str = "sgd", network: nn.Module | None = None, x: Tensor = X, **options: Any
    ) -> None:
        self.x = x
        self.model = regrow.sparsify(mlp() if network is None else network, 0.0, storage="masked")
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.options = {
            "total_steps": 20,
            **({} if "core" in options else {"final_sparsity": 0.8}),
            **options,
        }
        self.attach()

    def attach(self) -> None:
        self.method = regrow.PartiallyMasked(self.model, self.optimizer, **self.options)

    def train(self, steps: int, before: Callable[[], None] = lambda: None) -> None:
        self.model.train()
        for _ in range(steps):
            before()
            self.optimizer.zero_grad()
            functional.cross_entropy(self.model(self.x), Y).backward()
            self.optimizer.step()

    def core_outputs(self) -> Tensor:
        self.model.eval()
        with torch.no_grad(), self.method.core():
            found: Tensor = self.model(self.x)
        self.model.train()
        return found

    def tensors(self) -> list[dict[str, Tensor]]:
        """Each weight, and the optimizer's state of its shape (copies)."""
        found = []
        for weight in sparse_weights(self.model):
            state = companions(self.optimizer, weight, gradient=False)
            found.append({"": weight.to_dense()} | {key: tensor.clone() for key, tensor in state.items()})
        return found


@optimizers
@pytest.mark.parametrize("rule", ["all", "complement"])
def test_what_is_not_trained_in_a_step_rests_in_value_and_state(optimizer: str, rule: str) -> None:
    run = Run(optimizer, full_update=rule)
    cores = [run.method.core_of(weight) for weight in run.method.weights]
    before = run.tensors()
    for step in range(6):
        bias = run.model[0].bias.detach().clone()
        run.train(1)
        now = run.tensors()
        for core, old, new in zip(cores, before, now, strict=True):
            rests = ~core if step % 2 == 0 else core if rule == "complement" else torch.zeros_like(core)
            for key, tensor in new.items():
                was = old.get(key, torch.zeros_like(tensor))
                assert torch.equal(tensor[rests], was[rests]), (step, key)
                assert not torch.equal(tensor[~rests], was[~rests]), (step, key)
        assert torch.equal(bias, run.model[0].bias) == (rule == "complement" and step % 2 == 1)
        before = now


def test_a_core_has_statistics_of_its_own() -> None:
    run = Run()
    masked = run.model[0].weight.detach() * run.method.core_of(run.method.weights[0])
    expected = 0.1 * (X @ masked.T + run.model[0].bias.detach()).mean(0)
    run.train(1)  # a step of the core
    norm, (mean, _, batches) = run.model[1], run.method.statistics["1"]
    torch.testing.assert_close(mean, expected)
    assert int(batches) == 1
    assert not norm.running_mean.any()
    assert int(norm.num_batches_tracked) == 0
    run.train(1)  # and of the whole network
    assert torch.equal(run.method.statistics["1"][0], mean)
    assert (int(batches), int(norm.num_batches_tracked)) == (1, 1)


def test_statistics_that_are_shared_see_both() -> None:
    run = Run(statistics="shared")
    run.train(3)
    assert int(run.model[1].num_batches_tracked) == 3
    assert run.method.statistics == {}
    torch.testing.assert_close(core_of(run.method)(X), run.core_outputs(), rtol=0, atol=1e-12)


def test_the_weights_are_whole_outside_of_a_call() -> None:
    run = Run()
    run.train(2)
    parameter = run.model[0].weight
    seen = []
    run.model[2].register_forward_hook(lambda *_: seen.append(run.model[0].weight is parameter))
    run.train(2)
    assert seen == [False, True]  # the core's turn, the network's
    assert run.model[0].weight is parameter
    assert int((parameter != 0).sum()) == parameter.numel()
    with pytest.raises(ZeroDivisionError):
        run.model[2].register_forward_hook(lambda *_: 1 / 0)
        run.train(1)
    assert run.model[0].weight is parameter


def test_a_random_core_is_the_topology_that_sparsify_draws() -> None:
    run = Run(seed=3)
    alone = regrow.sparsify(mlp(), 0.8, "uniform", include=["0", "3"], seed=3, rescale=False)
    masks = regrow.masks(alone)
    for weight in run.method.weights:
        assert torch.equal(run.method.core_of(weight), masks[weight.name])


def test_the_largest_at_the_beginning() -> None:
    run = Run(core="magnitude", final_sparsity=0.8)
    weight = run.model[0].weight.detach().abs().flatten()
    expected = set(weight.argsort(descending=True)[:24].tolist())
    run.train(5)
    assert set(run.method.core_of(run.method.weights[0]).flatten().nonzero().view(-1).tolist()) == expected


# --- the core as a network of its own


@optimizers
def test_the_core_computes_alone_what_it_computes_in_the_network(optimizer: str) -> None:
    run = Run(optimizer)
    run.train(7)
    core = core_of(run.method)
    assert int(sum(mask.sum() for mask in regrow.masks(core).values())) == 24 + 8
    torch.testing.assert_close(core(X), run.core_outputs(), rtol=0, atol=1e-12)
    torch.testing.assert_close(regrow.compress(core)(X), run.core_outputs(), rtol=0, atol=1e-12)
    whole = run.model.eval()(X)
    assert float((whole.detach() - run.core_outputs()).abs().max()) > 0.1
    run.train(1)
    assert float((core(X).detach() - run.core_outputs()).abs().max()) > 1e-3  # it shares nothing


def test_the_last_step_splits_the_core_off() -> None:
    run = Run()
    run.train(20)
    outputs = run.core_outputs()
    assert {w.name: w.nnz for w in sparse_weights(run.model)} == {"0.weight": 24, "3.weight": 8}
    torch.testing.assert_close(run.model.eval()(X), outputs, rtol=0, atol=0)
    torch.testing.assert_close(core_of(run.method)(X), outputs, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="past total_steps=20"):
        run.train(2)
    stays = Run(split=False)
    stays.train(20)
    assert sum(w.nnz for w in sparse_weights(stays.model)) == 160
    torch.testing.assert_close(stays.core_outputs(), outputs, rtol=0, atol=1e-12)


def conv(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * width, 2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, 4),
    ).double()


def test_a_narrower_network_as_a_core() -> None:
    wide, narrow, x = conv(6), conv(2), X.view(20, 1, 3, 4)
    run = Run(network=wide, x=x, core=narrower(wide, narrow))
    run.train(5)
    outputs = run.core_outputs()
    torch.testing.assert_close(narrow_core(run.method, narrow, x)(x), outputs, rtol=0, atol=1e-12)
    smaller = regrow.compact(core_of(run.method))
    assert smaller[0].out_channels == 2
    torch.testing.assert_close(smaller(x), outputs, rtol=0, atol=1e-12)
    random, other = Run(network=conv(6), x=x), conv(2)
    random.train(2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(regrow.RegrowError, match="`narrow` does not compute what the core computes"):
        narrow_core(random.method, other, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(regrow.RegrowError, match=r"`narrow` has `0.weight` of shape \(6, 1, 2, 2\), allowed"):
        narrower(conv(2), conv(6))
    with pytest.raises(regrow.RegrowError, match="`narrow` must have the parameters of `model`"):
        narrower(conv(2), mlp())
    with pytest.raises(regrow.RegrowError, match="`0.weight`, whose module LayerNorm is no linear layer"):
        narrower(nn.Sequential(nn.LayerNorm(6)), nn.Sequential(nn.LayerNorm(3)))


def test_a_part_of_low_rank_as_a_core() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(LowRankLinear(12, 16, 3), nn.ReLU(), nn.Linear(16, 4)).double()
    run = Run(network=network, final_sparsity=0.0)
    run.train(7)
    core = core_of(run.method)
    assert core[0].rest is None
    u, v, b = (run.model[0].expand.weight, run.model[0].reduce.weight, run.model[0].expand.bias)
    hidden = (X @ (u @ v).T + b).relu()
    expected = hidden @ run.model[2].weight.T + run.model[2].bias
    torch.testing.assert_close(core(X), expected)
    torch.testing.assert_close(run.core_outputs(), expected)
    assert int((run.model[0].rest.weight != 0).sum()) == 192
    run.train(13)
    assert {w.name: w.nnz for w in sparse_weights(run.model)}["0.rest.weight"] == 0


# --- going on


@optimizers
@pytest.mark.parametrize("options", [{}, {"moments": "apart", "core": "magnitude", "final_sparsity": 0.8}])
@pytest.mark.parametrize("attach", [True, False])
def test_resume_bit_for_bit(optimizer: str, options: dict[str, Any], attach: bool) -> None:
    whole, cut, resumed = (Run(optimizer, **options) for _ in range(3))
    whole.train(20)
    cut.train(7)
    saved = copy.deepcopy((cut.model.state_dict(), cut.optimizer.state_dict()))
    if not attach:
        resumed.method.detach()
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    if not attach:
        resumed.attach()
    resumed.train(13)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_copy_of_the_model_is_whole() -> None:
    run = Run()
    run.train(2)
    other = copy.deepcopy(run.model)
    assert torch.equal(other(X), copy.deepcopy(run.model)(X))
    run.method.detach()
    assert torch.equal(other(X), run.model(X))  # in training mode, where it would be the core's turn


# --- what is not allowed


def test_a_core_step_without_the_model_is_refused() -> None:
    run = Run()
    with pytest.raises(
        regrow.RegrowError, match="step 0 is one of the core alone, and `model` itself has not"
    ):
        run.train(1, lambda: run.model.eval())
    run.train(1)
    run.model.eval()
    run.optimizer.zero_grad()
    functional.cross_entropy(run.model(X), Y).backward()
    run.optimizer.step()  # of the whole network, whatever the mode
    assert run.method.step == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"final_sparsity": 0.0},
            "`final_sparsity` must give a core with fewer connections than the network's 160",
        ),
        ({"core": {"0.weight": torch.ones(10, 12).bool()}}, "`core` must give a core with fewer .* got 160"),
        (
            {"core": {"0.weight": torch.zeros(10, 12).bool(), "3.weight": torch.zeros(4, 10).bool()}},
            "`core` must give a core with .* one at least, got 0",
        ),
        (
            {"core": {"0.weight": torch.ones(10, 12)}},
            r"`core\['0.weight'\]` must be a boolean mask of one of",
        ),
        (
            {"core": {"0.weight": torch.ones(12, 10).bool()}},
            r"`core\['0.weight'\]` .* got torch.bool of shape",
        ),
        ({"core": {"9.weight": torch.ones(10, 12).bool()}}, r"`core\['9.weight'\]` must be a boolean mask"),
        ({"core": {}, "final_sparsity": 0.5}, "`final_sparsity` follows from `core`"),
        ({"core": "largest"}, "`core` must be one of random, magnitude or {weight name: boolean mask}"),
        ({"full_update": "core"}, "`full_update` must be one of all, complement"),
        ({"statistics": True}, "`statistics` must be one of shared, apart"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(regrow.RegrowError, match=message):
        Run(**options)


def test_what_a_run_costs() -> None:
    """A step of each in turn is (1 + d) / 2 of dense training."""
    run = Run()
    costs = regrow.costs(core_of(run.method), X[:1])
    d = costs.flops["sparse"] / costs.flops["dense"]
    assert costs.training_multiple["partially-masked"] == pytest.approx((1 + d) / 2)
    assert run.method.core_sizes == {"0.weight": 24, "3.weight": 8}
    assert [run.method.core_steps(n) for n in (1, 2, 3, 20)] == [1, 1, 2, 10]


@pytest.mark.parametrize("gates", ["together", "apart"])
def test_the_core_of_a_recurrent_network(gates: str) -> None:
    model = recurrent.network("lstm", gates=gates)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    method = regrow.PartiallyMasked(model, optimizer, total_steps=100, final_sparsity=0.9)
    recurrent.train(model, optimizer, 0, 5)
    x, _ = recurrent.batch(9)
    core = core_of(method)
    model.eval()
    whole = model(x)
    with method.core():
        alone = model(x)
    torch.testing.assert_close(core(x), alone, rtol=0, atol=1e-12)
    assert float((alone - whole).detach().abs().max()) > 1e-2
    assert [int(mask.sum()) for mask in regrow.masks(core).values()] == [24, 40]
    if gates == "apart":
        for weight in sparse_weights(core):
            assert recurrent.counts(weight, 4) == [weight.nnz // 4] * 4
