"""Which optimizers fit, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adamax, Muon, Rprop

import regrow
from regrow.testing import Case, Run, network
from regrow.weights import hook_of, sparse_weights

# --- optimizers that do not fit


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (
            lambda p: Muon([q for q in p if q.dim() == 2]),
            "Muon cannot train sparse weights: it moves weights",
        ),
        (Rprop, "Rprop cannot train sparse weights: its state `step_size` is not zero for a fresh weight"),
        (Adamax, "Adamax cannot train sparse weights: its state `exp_inf` is not zero for a fresh weight"),
        (Adafactor, r"Adafactor cannot train sparse weights: its state `row_var` has shape"),
    ],
)
def test_optimizers_that_do_not_fit_are_refused(optimizer: Any, message: str) -> None:
    model = regrow.sparsify(
        nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False)), 0.5
    )
    with pytest.raises(regrow.RegrowError, match=message):
        regrow.RigL(model, optimizer(model.parameters()), total_steps=100, stop_fraction=0.0)
    assert all(hook.driver is None for w in sparse_weights(model) if (hook := hook_of(w.parameter)))


class Centralises(SGD):
    """Subtracts means of gradients where a flag says so, which its constructor does not name (Lion's use_gc)."""

    def __init__(self, params: Any, lr: float = 0.1, **flags: Any) -> None:
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(flags)
        self.defaults.update(flags)

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if group.get("use_gc") and p.grad is not None and p.dim() > 1:
                    p.grad.sub_(p.grad.mean(1, keepdim=True))
        super().step()


@storages
@pytest.mark.parametrize("one_group", [False, True])
def test_flags_that_no_constructor_names_are_tried(storage: str, one_group: bool) -> None:
    model = regrow.sparsify(
        nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), 0.5, storage=storage
    )
    regrow.RigL(model, Centralises(model.parameters()), total_steps=1000).detach()
    if one_group:
        optimizer = Centralises(
            [{"params": model[0].parameters(), "use_gc": True}, {"params": model[2].parameters()}]
        )
    else:
        optimizer = Centralises(model.parameters(), use_gc=True)
    with pytest.raises(regrow.RegrowError, match="Centralises cannot train sparse weights: it moves weights"):
        regrow.RigL(model, optimizer, total_steps=1000)


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "ASGD", "Adadelta"]
)
@pytest.mark.parametrize("foreach", [True, False])
def test_optimizers_that_fit_keep_inactive_weights_at_zero(name: str, foreach: bool) -> None:
    run = Run(Case(regrow.RigL), attach=False)
    run.optimizer = getattr(torch.optim, name)(
        run.model.parameters(), lr=0.01, weight_decay=0.01, foreach=foreach
    )
    run.method = run.case.method(run.model, run.optimizer)
    for _ in run.train(0, 20):
        for weight in run.weights:
            outside = ~weight.mask()
            assert not weight.parameter.detach()[outside].any()
            for key, value in run.optimizer.state[weight.parameter].items():
                if isinstance(value, Tensor) and value.shape == weight.shape and not key.startswith("regrow"):
                    assert not value[outside].any(), key


def test_a_scheduler_built_before_or_after_goes_on() -> None:
    run = Run(Case(regrow.RigL), attach=False)
    before = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
    run.method = run.case.method(run.model, run.optimizer)
    after = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
    for _ in run.train(0, 10):
        before.step()
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**10)
    assert run.method.step == 10
    assert after.last_epoch == 0


def test_an_optimizer_made_before_sparsify() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.sparsify(model, 0.5, storage="compressed")
    with pytest.raises(
        regrow.RegrowError, match=r"does not hold the sparse parameters \['0.weight', '2.weight'\].*made"
    ):
        regrow.RigL(model, optimizer, total_steps=10, stop_fraction=0.0)


def test_a_method_for_every_step_refuses_compressed_storage() -> None:
    class Momentum(regrow.RigL):
        needs_gradient = "always"

    model = network("compressed")
    with pytest.raises(
        regrow.RegrowError, match="needs the dense gradient at every step.*\n.*storage='masked'"
    ):
        Momentum(model, SGD(model.parameters(), lr=0.1), total_steps=10)
