"""Sup-tickets in training: what is superposed, what is left alone, and how it goes on."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

import regrow
from regrow.testing import batch
from regrow.tickets import Phases, superpose
from regrow.weights import sparse_weights, stamp

START, CYCLES, LENGTH = 20, 3, 7
END = START + CYCLES * LENGTH
methods = pytest.mark.parametrize("cls", [regrow.RigL, regrow.SET], ids=lambda cls: cls.__name__)


def mlp(storage: str = "masked", *, norms: bool = True, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.BatchNorm1d(48)] if norms else []
    second = [nn.BatchNorm1d(24)] if norms else []
    layers = [nn.Flatten(), nn.Linear(36, 48), *first, nn.ReLU(), nn.Dropout(dropout)]
    layers += [nn.Linear(48, 24), *second, nn.ReLU(), nn.Linear(24, 5)]
    return regrow.sparsify(nn.Sequential(*layers).double(), 0.8, storage=storage)


def cnn(storage: str) -> nn.Module:
    """A convolutional network; compressed, its activations stay in batch tiles and batch norms are fused."""
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    second = [nn.Conv2d(12, 18, 3, 2, padding=1), nn.BatchNorm2d(18), nn.ReLU(), nn.MaxPool2d(3)]
    model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(18, 5)).double()
    regrow.sparsify(model, 0.8, include=["0", "3", "8"], storage=storage)
    return regrow.fuse(model) if storage == "compressed" else model


DATA = [batch(step, torch.float64) for step in range(4)]


class Training:
    """An MLP with everything that drives it."""

    def __init__(
        self,
        storage: str = "masked",
        cls: Any = regrow.RigL,
        *,
        attach: bool = True,
        norms: bool = True,
        dropout: float = 0.0,
        model: nn.Module | None = None,
        **options: Any,
    ) -> None:
        self.model = mlp(storage, norms=norms, dropout=dropout) if model is None else model
        self.optimizer: Optimizer = SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.method = cls(self.model, self.optimizer, total_steps=START, update_every=5)
        if attach:
            arguments = {"cycles": CYCLES, "cycle_steps": LENGTH, "lr": (0.02, 0.1), **options}
            self.tickets = regrow.SupTickets(self.method, start=START, **arguments)

    def step(self) -> None:
        x, y = batch(self.method.step, torch.float64)
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def run(self, stop: int = END, loader: Any = DATA) -> Iterator[int]:
        """Steps up to `stop`, collecting where a ticket is due; yields after each."""
        while self.method.step < stop:
            self.step()
            if self.tickets.ready:
                self.tickets.collect(loader)
            yield self.method.step

    def finish(self) -> Training:
        for _ in self.run():
            pass
        return self

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self.model, self.optimizer, self.tickets)], file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> Training:
        model, optimizer, tickets = torch.load(file, weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.tickets.load_state_dict(tickets)
        return self


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Equal but for the stamps, whose clocks tell how many copies were made."""
    end = {name: -stamp.SIZE if name.endswith("_values") else tensor.numel() for name, tensor in one.items()}
    return one.keys() == two.keys() and all(
        torch.equal(one[name].flatten()[: end[name]], two[name].flatten()[: end[name]]) for name in one
    )


def dense(model: nn.Module) -> list[Tensor]:
    return [weight.to_dense() for weight in sparse_weights(model)]


def connections(model: nn.Module) -> list[int]:
    return [weight.nnz for weight in sparse_weights(model)]


# --- what is superposed


@pytest.mark.parametrize("network", [mlp, cnn])
@methods
def test_masked_and_compressed_runs_give_the_same_network(cls: Any, network: Any) -> None:
    one, two = (Training(cls=cls, model=network(storage)).finish() for storage in ("masked", "compressed"))
    for a, b in zip(*(sparse_weights(run.tickets.model) for run in (one, two)), strict=True):
        assert (a.storage, b.storage) == ("masked", "compressed")
        assert torch.equal(a.mask(), b.mask())
        torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=1e-9, atol=1e-12)
    x, _ = DATA[0]
    torch.testing.assert_close(one.tickets.model(x), two.tickets.model(x), rtol=1e-8, atol=1e-10)
    assert one.tickets.count == CYCLES + 1


@storages
@methods
def test_running_superposition_step_by_step(cls: Any, storage: str) -> None:
    """Against the definition on dense tensors: average, prune back globally, and the next average begins there."""
    run = Training(storage, cls, norms=False)
    expected: Tensor | None = None
    for step in run.run():
        if step < START or (step - START) % LENGTH:
            continue
        ticket = torch.cat([weight.view(-1) for weight in dense(run.model)])
        m = (step - START) // LENGTH
        expected = ticket if expected is None else expected * m / (m + 1) + ticket / (m + 1)
        kept = expected.abs().topk(sum(connections(run.model))).indices
        expected = torch.zeros_like(expected).index_copy(0, kept, expected[kept])
        found = torch.cat([weight.view(-1) for weight in dense(run.tickets.model)])
        torch.testing.assert_close(found, expected)
        assert sum(connections(run.tickets.model)) == sum(connections(run.model))
    assert connections(run.tickets.model) != connections(run.model)  # the global threshold moved some


def test_once_and_by_layer_and_to_another_density() -> None:
    run = Training(norms=False, rule="once", scope="layer", density=0.1)
    before: list[nn.Module] = []
    budget = None
    for step in run.run():
        if step >= START and (step - START) % LENGTH == 0:
            before.append(copy.deepcopy(run.model))
            total = sum(weight.numel for weight in sparse_weights(run.model))
            budget = budget or connections(run.tickets.model)
            assert connections(run.tickets.model) == budget
            assert sum(budget) == total // 10
    whole = superpose(before)
    for weight, average, count in zip(dense(run.tickets.model), dense(whole), budget or [], strict=True):
        kept = average.view(-1).abs().topk(count).indices
        torch.testing.assert_close(weight.view(-1)[kept], average.view(-1)[kept])
        assert int(weight.count_nonzero()) == count


def test_the_statistics_are_those_of_the_pruned_network_without_dropout() -> None:
    run = Training(dropout=0.4).finish()
    model: Any = run.tickets.model
    first, norm, _, _, second, other, *_ = list(model)[1:]
    means: list[list[Tensor]] = [[], []]
    variances: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for x, _ in DATA:
            h = functional.linear(x.flatten(1), first.weight, first.bias)
            normed = functional.batch_norm(h, None, None, norm.weight, norm.bias, training=True)
            g = functional.linear(normed.relu(), second.weight, second.bias)
            for place, values in enumerate((h, g)):
                means[place].append(values.mean(0))
                variances[place].append(values.var(0, unbiased=True))
    for place, module in enumerate((norm, other)):
        torch.testing.assert_close(module.running_mean, torch.stack(means[place]).mean(0))
        torch.testing.assert_close(module.running_var, torch.stack(variances[place]).mean(0))
        assert int(module.num_batches_tracked) == len(DATA)
        assert module.momentum == 0.1


def test_ticket_0_is_the_trained_network_as_it_is() -> None:
    run = Training()
    for _ in run.run(START):
        pass
    assert same(tensors(run.tickets.model), tensors(run.model))
    assert run.tickets.count == 1


# --- what is left alone


@storages
def test_training_goes_on_as_though_nothing_had_been_collected(storage: str) -> None:
    """Dropout and a shuffled loader draw random numbers in both; collecting must not draw any of theirs."""
    x, y = (torch.cat(parts) for parts in zip(*DATA, strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    run = Training(storage, dropout=0.3)
    for _ in run.run(loader=loader):
        assert run.model.training
    alone = Training(storage, attach=False, dropout=0.3)
    low, high = run.tickets.lr
    triangle = regrow.tickets.triangular
    options: dict[str, Any] = {
        "start": START,
        "count": CYCLES,
        "length": LENGTH,
        "explore": 0.5,
        "evolve": 0.0,
    }
    Phases(alone.method, rate=lambda progress: triangle(progress, low, high), **options)
    while alone.method.step < END:
        alone.step()
    assert same(tensors(run.model), tensors(alone.model))
    held = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.model.parameters()}


@storages
def test_the_superposed_network_is_a_network_of_its_own(storage: str, tmp_path: Any) -> None:
    run = Training(storage)
    kept: list[tuple[nn.Module, dict[str, Tensor]]] = []
    for _ in run.run():
        if run.tickets.count > len(kept):
            model = run.tickets.model
            kept.append((model, tensors(model)))
    everything = [[*m.parameters(), *m.buffers()] for m in (run.model, *(model for model, _ in kept))]
    places = [{t.data_ptr() for t in one if t.numel()} for one in everything]
    assert all(a.isdisjoint(b) for i, a in enumerate(places) for b in places[:i])
    assert all(same(tensors(model), before) for model, before in kept)  # later tickets left them alone

    superposed = run.tickets.model
    file = regrow.save(superposed, tmp_path / "superposed.safetensors")
    loaded = regrow.load(file, into=mlp(storage)).eval()
    x, y = DATA[0]
    assert torch.equal(loaded(x), superposed(x))

    counts, working = connections(superposed), tensors(run.model)
    optimizer = SGD(superposed.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(superposed, optimizer, total_steps=30, update_every=5)
    superposed.train()
    losses, masks = [], regrow.masks(superposed)
    for _ in range(30):
        optimizer.zero_grad()
        loss = functional.cross_entropy(superposed(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert connections(superposed) == counts
    assert any(not torch.equal(mask, masks[name]) for name, mask in regrow.masks(superposed).items())
    assert method.step == 30
    assert same(tensors(run.model), working)


def test_training_the_superposed_network_does_not_enter_the_next_average() -> None:
    run, other = Training(), Training().finish()
    for _ in run.run():
        with torch.no_grad():
            if run.tickets.count and not run.tickets.done:
                for parameter in run.tickets.model.parameters():
                    parameter.mul_(7)
    assert same(tensors(run.tickets.model), tensors(other.tickets.model))


def test_the_costs_are_those_of_the_new_layer_densities() -> None:
    run = Training().finish()
    example = torch.zeros(1, 1, 6, 6).double()
    found = regrow.costs(run.tickets.model, example)
    assert [layer.connections for layer in found.layers] == connections(run.tickets.model)
    assert connections(run.tickets.model) != connections(run.model)
    assert found.multiply_adds["sparse"] == sum(connections(run.model))
    assert [w.record.asked for w in sparse_weights(run.tickets.model)] == [
        w.density for w in sparse_weights(run.tickets.model)
    ]


# --- exploration


def test_exploring_goes_by_the_gradient_of_its_own_step() -> None:
    run = Training(norms=False)
    for _ in run.run(START):
        pass
    plain = regrow.densify(copy.deepcopy(run.model))
    weights = sparse_weights(run.model)
    values, masks = dense(run.model), [weight.mask() for weight in weights]
    x, y = batch(START, torch.float64)
    functional.cross_entropy(plain(x), y).backward()
    gradients = [module.weight.grad for module in plain if isinstance(module, nn.Linear)]  # type: ignore[attr-defined]
    run.optimizer.zero_grad(set_to_none=True)  # no gradient of an earlier batch is left to go by
    run.step()
    for weight, value, mask, gradient in zip(weights, values, masks, gradients, strict=True):
        count = int(mask.sum()) // 2
        ranked = torch.where(mask, value.abs(), float("inf")).view(-1)
        survivors = mask.view(-1).clone()
        survivors[ranked.topk(count, largest=False).indices] = False
        grown = gradient.abs().view(-1).masked_fill(survivors, -1.0).topk(count).indices
        expected = survivors.index_fill(0, grown, True)
        assert torch.equal(weight.mask().view(-1), expected)


@methods
def test_random_growth_ignores_the_gradient_and_gradient_growth_does_not(cls: Any) -> None:
    topologies = []
    for other in (False, True):
        run = Training(cls=cls, norms=False, lr=(1e-12, 1e-12))
        for _ in run.run(START):
            pass
        x, y = batch(99 if other else START, torch.float64)
        run.optimizer.zero_grad()
        run.optimizer.state.clear()  # momentum would move the weights
        functional.cross_entropy(run.model(x), y).backward()
        run.optimizer.step()
        topologies.append([weight.fingerprint() for weight in sparse_weights(run.model)])
    assert (topologies[0] == topologies[1]) == (cls is regrow.SET)


# --- checkpoints


@storages
@pytest.mark.parametrize("options", [{}, {"rule": "once", "divide": "holders"}], ids=["running", "once"])
@pytest.mark.parametrize("stop", [START - 1, START, START + 3, START + LENGTH, END])
def test_resuming_is_exact(stop: int, options: dict[str, Any], storage: str) -> None:
    through = Training(storage, **options)
    for _ in through.run(stop):
        pass
    file = through.save()
    resumed = Training(storage, **options).load(file)
    assert repr(resumed.tickets) == repr(through.tickets)
    if through.tickets.count:
        assert same(tensors(resumed.tickets.model), tensors(through.tickets.model))
    for run in (through, resumed):
        run.finish()
    assert same(tensors(resumed.model), tensors(through.model))
    assert same(tensors(resumed.tickets.model), tensors(through.tickets.model))
    assert (resumed.tickets.count, resumed.tickets.done) == (CYCLES + 1, True)


def test_a_checkpoint_between_a_step_and_its_collecting() -> None:
    through = Training()
    for _ in through.run(START + LENGTH - 1):
        pass
    through.step()
    resumed = Training().load(through.save())
    assert resumed.tickets.ready
    resumed.tickets.collect(DATA)
    assert same(tensors(resumed.finish().tickets.model), tensors(Training().finish().tickets.model))


def test_a_state_that_does_not_fit() -> None:
    state = Training().finish().tickets.state_dict()
    with pytest.raises(
        regrow.RegrowError, match="`state` was made with {'rule': 'running'}, and this is {'rule': 'once'}"
    ):
        Training(rule="once").tickets.load_state_dict(state)
    with pytest.raises(regrow.RegrowError, match=r"`state` is of another architecture: \['2\.bias', "):
        Training(norms=False).tickets.load_state_dict(state)


# --- bad input


def test_a_ticket_that_was_not_collected_stops_training_before_anything_moves() -> None:
    run = Training()
    for _ in run.run(START + LENGTH - 1):
        pass
    run.step()
    assert run.tickets.ready
    before, state = tensors(run.model), copy.deepcopy(run.optimizer.state_dict())
    x, y = batch(run.method.step, torch.float64)
    run.optimizer.zero_grad()
    run.model.eval()  # batch norm would count this pass
    functional.cross_entropy(run.model(x), y).backward()
    run.model.train()
    with pytest.raises(
        regrow.RegrowError, match="ticket 1 was due at step 27 and is not collected; this is step 27"
    ):
        run.optimizer.step()
    assert same(tensors(run.model), before)
    assert repr(state) == repr(run.optimizer.state_dict())
    run.tickets.collect(DATA)
    assert same(tensors(run.finish().tickets.model), tensors(Training().finish().tickets.model))


def test_a_run_resumed_without_its_tickets_is_told_so() -> None:
    through = Training().finish()
    resumed = Training(attach=False)
    resumed.model.load_state_dict(through.model.state_dict())
    resumed.optimizer.load_state_dict(through.optimizer.state_dict())
    regrow.SupTickets(resumed.method, start=START, cycles=9, cycle_steps=LENGTH)
    with pytest.raises(regrow.RegrowError, match="after resuming, call load_state_dict first"):
        resumed.step()


def test_collecting_at_a_wrong_time() -> None:
    run = Training()
    with pytest.raises(
        regrow.RegrowError, match="no ticket has been collected yet; the next is due at step 20, this is 0"
    ):
        run.tickets.model
    with pytest.raises(regrow.RegrowError, match="no ticket is due at step 0: the next is due at step 20"):
        run.tickets.collect(DATA)
    for _ in run.run(START):
        pass
    with pytest.raises(regrow.RegrowError, match=r"no ticket is due at step 20: the next is due at step 27"):
        run.tickets.collect(DATA)  # a second time
    run.finish()
    with pytest.raises(regrow.RegrowError, match="no ticket is due at step 41: all are collected"):
        run.tickets.collect(DATA)
    run.step()  # past the last ticket training is free


@pytest.mark.parametrize("loader", [None, []], ids=["none", "used up"])
def test_batch_norms_need_a_loader_and_nothing_is_collected_without(loader: Any) -> None:
    run = Training()
    for _ in run.run(START, loader=None):  # ticket 0 has its own statistics
        pass
    while not run.tickets.ready:
        run.step()
    with pytest.raises(regrow.RegrowError, match="`loader` "):
        run.tickets.collect(loader)
    run.tickets.collect(DATA)
    assert same(tensors(run.finish().tickets.model), tensors(Training().finish().tickets.model))
    for _ in (free := Training(norms=False)).run(loader=None):
        pass
    assert free.tickets.done


@pytest.mark.parametrize(("number", "value"), [(0, float("nan")), (2, float("inf"))])
def test_a_ticket_that_is_not_finite_is_left_out_and_the_run_goes_on(number: int, value: float) -> None:
    run, reference = Training(norms=False), Training(norms=False)
    found = []
    for training, poisoned in ((run, True), (reference, False)):
        while not training.tickets.done:
            training.step()
            if not training.tickets.ready:
                continue
            if not poisoned:
                found.append(copy.deepcopy(training.model))
                training.tickets.collect()
            elif training.method.step == START + number * LENGTH:
                bias: Tensor = training.model[1].bias.detach()  # type: ignore[index,union-attr]
                own = bias[0].clone()
                bias[0] = value
                with pytest.warns(UserWarning, match=f"ticket {number} holds inf or nan and is left out"):
                    result = training.tickets.collect()
                assert (result is None) == (number == 0)
                bias[0] = own
            else:
                training.tickets.collect()
    assert (run.tickets.left_out, run.tickets.count) == ([number], CYCLES)
    del found[number]
    expected: Tensor | None = None
    for place, model in enumerate(found):
        ticket = torch.cat([weight.view(-1) for weight in dense(model)])
        expected = ticket if expected is None else expected * place / (place + 1) + ticket / (place + 1)
        kept = expected.abs().topk(sum(connections(model))).indices
        expected = torch.zeros_like(expected).index_copy(0, kept, expected[kept])
    torch.testing.assert_close(torch.cat([w.view(-1) for w in dense(run.tickets.model)]), expected)


def test_no_cycle_at_all_leaves_the_trained_network() -> None:
    run = Training(cycles=0)
    for _ in run.run(START):
        pass
    assert (run.tickets.count, run.tickets.done) == (1, True)
    with pytest.warns(UserWarning, match="past total_steps=20 the topology rests"):
        run.step()
    assert run.optimizer.param_groups[0]["lr"] == 0.1


def test_a_method_that_cannot_explore() -> None:
    network = mlp()
    optimizer = SGD(network.parameters(), lr=0.1)
    method = regrow.Static(network, optimizer)
    with pytest.raises(regrow.RegrowError, match=r"such as RigL or SET, got Static\nGive explore=None"):
        regrow.SupTickets(method, start=5, cycle_steps=2)
    tickets = regrow.SupTickets(method, start=5, cycle_steps=2, explore=None)
    assert (
        repr(tickets)
        == "SupTickets(step 0 of 11, 3 cycles of 2 steps from step 5, 0 tickets in, ticket 0 due at step 5)"
    )


def test_a_density_that_the_model_falls_below() -> None:
    network = mlp(norms=False)
    optimizer = SGD(network.parameters(), lr=0.1)
    method = regrow.GraNet(network, optimizer, total_steps=8, update_every=2, final_sparsity=0.9)
    tickets = regrow.SupTickets(method, start=8, cycles=1, cycle_steps=2, density=0.15)
    for step in range(8):
        x, y = batch(step, torch.float64)
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    with pytest.raises(
        regrow.RegrowError, match=r"`density` 0.15 asks for \d+ connections, but the model is down to"
    ):
        tickets.collect()


def test_detaching_gives_learning_rate_and_topology_back() -> None:
    run = Training()
    for _ in run.run(START + 1):
        pass
    run.tickets.detach()
    run.optimizer.param_groups[0]["lr"] = 0.3
    for _ in range(LENGTH + 1):
        run.step()
    assert run.optimizer.param_groups[0]["lr"] == 0.3
    assert run.tickets.count == 1
