"""State of every kind and place: what moves with the connections, and what is refused when a method is attached."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import regrow
from regrow.methods.probe import probe
from regrow.methods.state import companions, leaves
from regrow.weights import SparseWeight, hook_of, sparse_weights, stamp


def two(storage: str = "masked", width: int = 20) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)).double()
    return regrow.sparsify(model, 0.8, "uniform", include="*", storage=storage)  # type: ignore[return-value]


def train(model: nn.Module, optimizer: Any, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(8, 20, generator=generator, dtype=torch.float64)).square().mean().backward()
        optimizer.step()


def strays(weight: SparseWeight) -> int:
    """Values outside of the topology."""
    return int((weight.parameter.detach()[~weight.mask()] != 0).sum()) if weight.storage == "masked" else 0


class Nests(SGD):
    """Keeps momentum as AggMo, AdaShift and others do; `kind` says in what."""

    kind = "dict"

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    self.make(state, torch.zeros_like(p))
                buffer = next(tensor for _, tensor, _ in leaves(state["buffers"], ""))
                p.data.sub_(buffer.mul_(0.9).add_(p.grad), alpha=group["lr"])
        return None

    def make(self, state: dict[str, Any], zero: Tensor) -> None:
        made: dict[str, Callable[[], Any]] = {
            "dict": lambda: {0.9: zero},
            "list": lambda: [zero, 3],
            "deque": lambda: deque([zero, zero], maxlen=2),  # twice the same: it must move once
            "tuple": lambda: (zero,),
            "nested": lambda: {"a": [({"b": zero},)]},
            "object": lambda: types.SimpleNamespace(moment=zero),
        }
        state["buffers"] = made[self.kind]()


@pytest.mark.parametrize("kind", ["dict", "list", "deque", "tuple", "nested"])
def test_state_in_containers_moves_as_momentum_does(kind: str) -> None:
    runs = []
    for cls in (type("Own", (Nests,), {"kind": kind}), SGD):
        for storage in ("masked", "compressed"):
            model = two(storage)
            options = {} if issubclass(cls, Nests) else {"momentum": 0.9}
            optimizer = cls(model.parameters(), lr=0.1, **options)
            regrow.RigL(model, optimizer, total_steps=100, update_every=3)
            train(model, optimizer, 20)
            assert not any(strays(weight) for weight in sparse_weights(model))
            runs.append([weight.to_dense() for weight in sparse_weights(model)])
    for other in runs[:-1]:
        for one, two_ in zip(other, runs[-1], strict=True):
            torch.testing.assert_close(one, two_)


def test_state_in_an_unknown_object_is_refused_with_its_key() -> None:
    model = two()
    optimizer = type("Objects", (Nests,), {"kind": "object"})(model.parameters(), lr=0.1)
    with pytest.raises(regrow.RegrowError, match=r"Objects cannot .*`buffers.moment` is inside an object"):
        regrow.RigL(model, optimizer, total_steps=100, update_every=5)


class Quantised(Tensor):
    """Stands for the state of torchao's optimizers: a subclass with the parameter's shape."""


class EightBit(SGD):
    """Quantises the state of large weights only, as torchao and bitsandbytes do."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    large = p.numel() >= 4096 and p.numel() % 256 == 0
                    zero = torch.zeros_like(p.detach())
                    self.state[p]["exp_avg"] = zero.as_subclass(Quantised) if large else zero
        return super().step(closure)


@pytest.mark.parametrize(("width", "storage"), [(64, "masked"), (256, "compressed"), (512, "masked")])
def test_state_of_large_weights_is_looked_at(width: int, storage: str) -> None:
    model = nn.Sequential(nn.Linear(width, width))
    spare = stamp.SIZE / width**2 if storage == "compressed" else 0.0  # entries as are quantised
    regrow.sparsify(model, 0.75 + spare, storage=storage)
    message = "EightBit cannot train sparse weights: its state `exp_avg` is of type Quantised"
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.SET(model, EightBit(model.parameters(), lr=0.1), total_steps=10, update_every=5)
    small = two()
    regrow.SET(small, EightBit(small.parameters(), lr=0.1), total_steps=10, update_every=5)


def test_state_that_comes_with_a_checkpoint_is_looked_at_too() -> None:
    model = two()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrow.SET(model, optimizer, total_steps=10, update_every=5)
    weight = sparse_weights(model)[0]
    optimizer.state[weight.parameter]["exp_avg"] = torch.zeros(20, 20).as_subclass(Quantised)
    with pytest.raises(regrow.RegrowError, match=r"state `exp_avg` of `0.weight` is of type Quantised"):
        companions(optimizer, weight)


# --- kept outside of the state


class KeepsAttribute(SGD):
    """Slow weights in an attribute."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}


class MakesLater(SGD):
    """Slow weights in an attribute, from the second step on."""

    count = 0

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        self.count += 1
        if self.count == 2:
            self.kept = [p.detach().clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


SLOW: dict[Tensor, Tensor] = {}


class KeepsElsewhere(SGD):
    """Slow weights where nobody can find them."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        result = super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            slow = SLOW.setdefault(p, p.detach().clone())
            slow.lerp_(p.detach(), 0.5)
            p.data.copy_(slow)
        return result


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (KeepsAttribute, r"KeepsAttribute keeps a tensor of a sparse weight's shape in `slow"),
        (MakesLater, r"MakesLater keeps a tensor of a sparse weight's shape in `kept\[0\]`"),
        (
            KeepsElsewhere,
            "KeepsElsewhere cannot train sparse weights: it brings back connections that are gone",
        ),
    ],
)
def test_weights_kept_outside_of_the_state_are_refused(cls: type[Optimizer], message: str) -> None:
    SLOW.clear()
    model = two()
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.RigL(model, cls(model.parameters(), lr=0.1), total_steps=100, update_every=5)  # type: ignore[call-arg]
    assert all(hook.driver is None for w in sparse_weights(model) if (hook := hook_of(w.parameter)))


def test_weights_kept_in_a_closure_or_in_a_group_are_refused() -> None:
    model = two()
    optimizer = SGD(model.parameters(), lr=0.1)
    slow, step = [p.detach().clone() for p in model.parameters()], optimizer.step

    def averaging(closure: Any = None) -> Any:
        step(closure)
        for p, q in zip(model.parameters(), slow, strict=True):
            q.lerp_(p.detach(), 0.5)

    optimizer.step = averaging  # type: ignore[assignment,method-assign]
    with pytest.raises(regrow.RegrowError, match=r"shape in `step.slow\[0\]`"):
        regrow.RigL(model, optimizer, total_steps=100, update_every=5)
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["before"] = slow
    with pytest.raises(regrow.RegrowError, match=r"shape in `param_groups\[0\]\['before'\]\[0\]`"):
        regrow.RigL(model, optimizer, total_steps=100, update_every=5)


def test_a_scheduler_that_patches_the_step_is_no_obstacle() -> None:
    model = two()
    optimizer = SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    optimizer.zero_grad()
    model(torch.randn(2, 20, dtype=torch.float64)).sum().backward()  # gradients are no slow weights
    regrow.RigL(model, optimizer, total_steps=100, update_every=5)


# --- optimizers around optimizers


class Lookahead:
    """As pytorch_optimizer's, which has the same attribute."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


class ScheduleFreeWrapper(Optimizer):
    """As facebookresearch/schedule_free's: an optimizer itself."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base = base


class Both:
    """Steps two optimizers, one for each kind of weight."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.each = list(optimizers)


@pytest.mark.parametrize(
    ("wrap", "place"),
    [(Lookahead, "optimizer"), (ScheduleFreeWrapper, "base"), (Both, "each")],
)
def test_optimizers_around_optimizers_are_refused(wrap: Any, place: str) -> None:
    model = two()
    message = (
        rf"`optimizer` is a {wrap.__name__} around SGD: what it keeps.*\n.*Use SGD alone.*`optimizer.{place}`"
    )
    with pytest.raises(regrow.RegrowError, match=f"(?s){message}"):
        regrow.RigL(model, wrap(SGD(model.parameters(), lr=0.1)), total_steps=100, update_every=5)


def _module(name: str, cls: type) -> type:
    return type(cls.__name__, (cls,), {"__module__": name, "__qualname__": cls.__qualname__})


class AcceleratedOptimizer(Lookahead):
    """The name, and with `_module` the home, of a wrapper that keeps nothing."""


def test_only_wrappers_that_are_known_to_keep_nothing_are_seen_through() -> None:
    known = _module("accelerate.optimizer", AcceleratedOptimizer)
    ours = type("Ours", (known,), {"__module__": "train"})  # a subclass of it
    for cls in (known, ours):
        model = two()
        inner = SGD(model.parameters(), lr=0.1)
        assert regrow.RigL(model, cls(inner), total_steps=100, update_every=5).optimizer is inner
        model = two()
        with pytest.raises(regrow.RegrowError, match="is a Lookahead around SGD"):
            regrow.RigL(
                model, cls(Lookahead(SGD(model.parameters(), lr=0.1))), total_steps=100, update_every=5
            )
    model = two()
    with pytest.raises(regrow.RegrowError, match="is a AcceleratedOptimizer around SGD"):
        regrow.RigL(
            model, AcceleratedOptimizer(SGD(model.parameters(), lr=0.1)), total_steps=100, update_every=5
        )


def test_lightnings_own_wrappers() -> None:
    from lightning.fabric.wrappers import _FabricOptimizer
    from lightning.pytorch.core.optimizer import LightningOptimizer

    for wrap in (LightningOptimizer, _strategy(_FabricOptimizer)):
        model = two()
        inner = SGD(model.parameters(), lr=0.1)
        assert regrow.RigL(model, wrap(inner), total_steps=100, update_every=5).optimizer is inner


def _strategy(cls: Any) -> Callable[[Optimizer], Any]:
    from lightning.fabric.strategies import SingleDeviceStrategy

    return lambda optimizer: cls(optimizer, SingleDeviceStrategy(torch.device("cpu")))


class SAM(Optimizer):
    """As davda54/sam: two passes a step, the second at the perturbed weights."""

    def __init__(self, params: Any, base_optimizer: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old_p"] = p.detach().clone()
            p.add_(p.grad * 0.05 / norm)
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for p in held:
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()


def test_sam_says_where_to_attach() -> None:
    model = two()
    with pytest.raises(
        regrow.RegrowError, match=r"is a SAM around SGD.*\n.*optimizer.base_optimizer, \.\.\."
    ):
        regrow.RigL(model, SAM(model.parameters(), SGD, lr=0.1), total_steps=100, update_every=5)


@storages
def test_the_gradient_of_sams_second_pass_decides(storage: str) -> None:
    model = two(storage)
    optimizer = SAM(model.parameters(), SGD, lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer.base_optimizer, total_steps=100, update_every=2, drop_fraction=0.2)
    x = [torch.randn(8, 20, generator=torch.Generator().manual_seed(i)).double() for i in range(9)]
    for i in range(9):
        weight = sparse_weights(model)[0]
        before, seen = set(weight.positions().tolist()), []
        values = weight.magnitudes()

        def closure(i: int = i, weight: SparseWeight = weight, seen: list[Tensor] = seen) -> None:
            model(x[i]).square().mean().backward()
            w = weight.to_dense().requires_grad_()
            y = torch.relu(x[i] @ w.T + model[0].bias.detach())
            other = sparse_weights(model)[1].to_dense()
            (gradient,) = torch.autograd.grad((y @ other.T + model[2].bias.detach()).square().mean(), w)
            seen.append(gradient)

        optimizer.zero_grad()
        closure()
        optimizer.step(closure)
        if method.is_update(i):
            count = int(method.fraction(i) * len(values))
            positions = torch.tensor(sorted(before))
            stay = set(positions[values.argsort(stable=True)[count:]].tolist())
            score = seen[-1].abs().view(-1)
            score[list(stay)] = -1
            assert set(weight.positions().tolist()) == stay | set(score.topk(count).indices.tolist())
    assert method.step == 9


# --- schedule-free


class ScheduleFree(SGD):
    """facebookresearch/schedule_free's SGD, in its order of operations, without warmup."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(train_mode=False, k=0)

    def train(self) -> None:
        self._move(1 - 0.9, True)

    def eval(self) -> None:
        self._move(1 - 1 / 0.9, False)

    @torch.no_grad()
    def _move(self, share: float, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not mode:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], share)
            group["train_mode"] = mode

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if not self.param_groups[0]["train_mode"]:
            raise Exception("Optimizer was not in train mode when step is called.")
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    z = self.state[p].setdefault("z", p.detach().clone())
                    share = 1 / (group["k"] + 1)
                    p.lerp_(z, share).add_(p.grad, alpha=group["lr"] * (0.9 * (1 - share) - 1))
                    z.sub_(p.grad, alpha=group["lr"])
            group["k"] += 1


@pytest.mark.parametrize("grow_init", ["zeros", "normal"])
def test_schedule_free_works_in_both_storages(grow_init: str) -> None:
    runs = []
    for storage in ("masked", "compressed"):
        model = two(storage)
        optimizer = ScheduleFree(model.parameters())
        method = regrow.RigL(model, optimizer, total_steps=100, update_every=3, grow_init=grow_init)
        optimizer.train()
        train(model, optimizer, 20)
        for weight in sparse_weights(model):
            z = optimizer.state[weight.parameter]["z"]
            assert [t.data_ptr() for t in method.copies_of(weight)] == [z.data_ptr()]
        optimizer.eval()
        assert not any(strays(weight) for weight in sparse_weights(model))
        runs.append([weight.to_dense() for weight in sparse_weights(model)])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)


@storages
def test_a_slow_copy_of_a_new_connection_starts_at_its_value(storage: str) -> None:
    model = two(storage)
    optimizer = ScheduleFree(model.parameters())
    optimizer.train()
    method = regrow.SET(model, optimizer, total_steps=100, update_every=3, grow_init="normal")
    train(model, optimizer, 3)
    before = [weight.mask() for weight in sparse_weights(model)]
    train(model, optimizer, 1, start=3)
    for weight, mask in zip(sparse_weights(model), before, strict=True):
        fresh = ~mask.view(-1)[weight.positions()]
        (z,) = method.copies_of(weight)
        assert fresh.any()
        assert weight.values()[fresh].all()
        assert torch.equal(weight.take(z)[fresh], weight.values()[fresh])


# --- a step without gradients


class NeedsGradients(SGD):
    """Takes a norm over all gradients, as LAMB does."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None])
        super().step()
        return loss


def test_an_optimizer_that_needs_gradients_at_each_step() -> None:
    model = two()
    optimizer = NeedsGradients(model.parameters(), lr=0.1)
    with pytest.raises(
        regrow.RegrowError, match=r"NeedsGradients cannot make a step without.*\n.*skip_step=False"
    ):
        regrow.RigL(model, optimizer, total_steps=100, update_every=3)
    method = regrow.RigL(model, optimizer, total_steps=100, update_every=3, skip_step=False)
    train(model, optimizer, 10)
    assert method.step == 10


# --- the trial itself


def options() -> Iterator[Any]:
    for cls in (torch.optim.SGD, torch.optim.AdamW):
        for flags in ({"foreach": True}, {"fused": True}, {"maximize": True}):
            yield pytest.param(cls, flags, id=f"{cls.__name__}-{next(iter(flags))}")
    yield pytest.param(torch.optim.AdamW, {"amsgrad": True, "weight_decay": 0.3}, id="AdamW-amsgrad")
    yield pytest.param(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}, id="SGD-decay")


@storages
@pytest.mark.parametrize(("cls", "flags"), list(options()))
def test_the_trial_leaves_no_trace_and_takes_no_momentum_for_a_copy(
    cls: Any, flags: Any, storage: str
) -> None:
    model = two(storage)
    optimizer = cls(model.parameters(), lr=torch.tensor(0.1) if "fused" in flags else 0.1, **flags)
    groups = [dict(group) for group in optimizer.param_groups]
    values = [p.detach().clone() for p in model.parameters()]
    found = probe(optimizer, sparse_weights(model), skips=True)
    assert not found.copies
    assert optimizer.param_groups == groups
    assert not optimizer.state
    for p, value in zip(model.parameters(), values, strict=True):
        assert p.grad is None
        assert torch.equal(p, value)


class TimmLookahead(Optimizer):
    """As timm's: its slow weights are in the state of the optimizer inside."""

    def __init__(self, base_optimizer: Optimizer) -> None:
        self._base_optimizer, self.count = base_optimizer, 0
        self.param_groups = base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._base_optimizer.step(closure)
        self.count += 1
        if self.count % 4 == 0:
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                slow = self._base_optimizer.state[p].setdefault("lookahead_slow_buff", p.detach().clone())
                slow.add_(p - slow, alpha=0.5)
                p.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._base_optimizer.zero_grad(set_to_none)


@pytest.mark.parametrize("grow_init", ["zeros", "normal"])
def test_timms_lookahead_works_inside(grow_init: str) -> None:
    cls = _module("timm.optim.lookahead", TimmLookahead)
    cls.__name__ = "Lookahead"
    runs = []
    for storage in ("masked", "compressed"):
        model = two(storage)
        optimizer = cls(SGD(model.parameters(), lr=0.1, momentum=0.9))
        with pytest.raises(
            regrow.RegrowError, match=r"Lookahead around SGD, in whose state.*\n.*_base_optimizer"
        ):
            regrow.RigL(model, optimizer, total_steps=100, update_every=5)
        regrow.RigL(model, optimizer._base_optimizer, total_steps=100, update_every=3, grow_init=grow_init)
        train(model, optimizer, 30)
        assert not any(strays(weight) for weight in sparse_weights(model))
        runs.append([weight.to_dense() for weight in sparse_weights(model)])
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other)
