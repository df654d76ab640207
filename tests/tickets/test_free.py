"""FreeTickets: the best checkpoint of each window."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from runs import storages
from torch import Tensor
from torch.nn import functional

import regrow
from regrow.testing import Case, Run, batch
from regrow.weights import stamp

START, TICKETS, LENGTH = 8, 3, 6
END = START + TICKETS * LENGTH
# by step: window 1 never beats window 0, and window 0 never beats the exploration before it; ties keep the first
SCORES = {8: 0.9, 9: 0.5, 10: 0.7, 12: 0.7, 14: 0.6, 16: 0.2, 19: 0.3, 20: 0.1, 22: 0.4, 26: 0.8}
BEST = {10: 0.7, 19: 0.3, 26: 0.8}


class Free:
    """A run with free tickets."""

    def __init__(self, storage: str = "masked") -> None:
        run = Run(Case(regrow.RigL, storage, {"total_steps": END, "stop_fraction": 1.0, "update_every": 4}))
        assert run.method is not None
        self.run, self.model, self.optimizer, self.method = run, run.model, run.optimizer, run.method
        self.free = regrow.FreeTickets(run.method, start=START, tickets=TICKETS, ticket_steps=LENGTH)
        self.kept: dict[int, dict[str, Tensor]] = {}

    def train(self, stop: int = END) -> Free:
        """Steps up to `stop`, with a score after those in `SCORES`."""
        for step in range(self.method.step, stop):
            for _ in self.run.train(step, step + 1):
                score = SCORES.get(self.method.step)
                if score is not None and self.free.consider(score):
                    state = self.model.state_dict()
                    self.kept[self.method.step] = {name: tensor.clone() for name, tensor in state.items()}
        return self


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Equal but for the stamps, whose clocks tell how many copies were made."""
    end = {name: -stamp.SIZE if name.endswith("_values") else tensor.numel() for name, tensor in one.items()}
    return one.keys() == two.keys() and all(
        torch.equal(one[name].flatten()[: end[name]], two[name].flatten()[: end[name]]) for name in one
    )


@storages
def test_a_ticket_is_the_best_of_its_window_and_of_no_other(storage: str) -> None:
    run = Free(storage).train()
    assert list(run.kept) == [9, 10, 16, 19, 22, 26]  # 8 is before the windows
    assert run.free.scores == dict(enumerate(BEST.values()))
    for step, ticket in zip(BEST, run.free.tickets, strict=True):
        assert same(ticket.state_dict(), run.kept[step])
        assert not ticket.training
    everything = [run.model, *run.free.tickets]
    places = [{t.data_ptr() for t in [*m.parameters(), *m.buffers()] if t.numel()} for m in everything]
    assert all(a.isdisjoint(b) for i, a in enumerate(places) for b in places[:i])
    x, _ = batch(0, torch.float64)
    mean = torch.stack([ticket(x).softmax(-1) for ticket in run.free.tickets]).mean(0)
    torch.testing.assert_close(run.free.ensemble(x).exp(), mean)
    topologies = [tuple(regrow.masks(ticket)) for ticket in run.free.tickets]
    assert len(topologies) == TICKETS
    overlap = regrow.tickets.overlap(run.free.tickets)
    assert (overlap[~torch.eye(TICKETS, dtype=torch.bool)] < 0.8).all()  # escapes of 0.8 lie in between


@storages
@pytest.mark.parametrize("stop", [START + 3, START + LENGTH, END])
def test_resuming_is_exact(stop: int, storage: str) -> None:
    through = Free(storage).train(stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (through.model, through.optimizer, through.free)], file)
    file.seek(0)
    resumed = Free(storage)
    parts = (resumed.model, resumed.optimizer, resumed.free)
    for part, state in zip(parts, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert repr(resumed.free) == repr(through.free)
    for one, two in zip(resumed.train().free.tickets, through.train().free.tickets, strict=True):
        assert same(one.state_dict(), two.state_dict())
    assert same(resumed.model.state_dict(), through.model.state_dict())


def test_a_window_without_a_ticket_stops_training() -> None:
    run = Free()
    with pytest.raises(regrow.RegrowError, match=r"there is no ticket yet at step 0: call consider\(score\)"):
        run.free.ensemble
    for _ in run.run.train(0, START + LENGTH):
        pass
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    message = r"the windows \[0\] have ended by step 14 without a ticket(.|\n)*call consider\(score\)"
    with pytest.raises(regrow.RegrowError, match=message):
        next(run.run.train(START + LENGTH, END))
    assert same(run.model.state_dict(), before)
    assert run.free.consider(0.5)  # not too late: window 0 has ended with this step
    for _ in run.run.train(START + LENGTH, END - 1):
        run.free.consider(0.5)
    assert len(run.free.ensemble.members) == TICKETS


def test_a_window_that_ends_the_run_without_a_ticket() -> None:
    run = Free().train(END - LENGTH)
    for _ in run.run.train(END - LENGTH, END):
        pass
    assert run.free.done
    with pytest.raises(regrow.RegrowError, match=r"the windows \[2\] have ended by step 26 without a ticket"):
        run.free.ensemble


def test_what_is_not_finite_makes_no_ticket_and_the_run_goes_on() -> None:
    run = Free().train(START + LENGTH)
    for _ in run.run.train(START + LENGTH, START + 2 * LENGTH):
        pass
    with pytest.warns(UserWarning, match="step 20: score or model holds inf or nan"):
        assert not run.free.consider(float("nan"))
    bias: Any = run.model.get_submodule("3").bias
    own = bias.detach().clone()
    bias.detach().fill_(float("nan"))
    with pytest.warns(UserWarning, match="step 20: score or model holds inf or nan"):
        assert not run.free.consider(0.9)
    bias.detach().copy_(own)
    assert run.free.left_out == [1]
    run.train()
    assert len(run.free.ensemble.members) == 2


def test_an_ensemble_is_one_module_like_any_other(tmp_path: Any) -> None:
    run = Free().train()
    ensemble = run.free.ensemble
    x, y = batch(0, torch.float64)
    loss = functional.cross_entropy(ensemble(x), y).item()
    p, targets = regrow.tickets.probabilities(ensemble, [(x, y)])
    assert regrow.tickets.negative_log_likelihood(p, targets) == pytest.approx(loss)
    file = regrow.save(ensemble, tmp_path / "ensemble.safetensors")
    other = regrow.load(file, into=regrow.Ensemble(Free().model for _ in range(TICKETS)))
    assert torch.equal(other(x), ensemble(x))


def test_a_state_of_other_windows() -> None:
    run = Free().train()
    state = run.free.state_dict()
    run.free.detach()
    other = regrow.FreeTickets(run.method, start=START, tickets=2, ticket_steps=5)
    with pytest.raises(regrow.RegrowError, match=r"`state` was made with {'start': 8, 'ticket_steps': 6}"):
        other.load_state_dict(state)
