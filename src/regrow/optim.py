"""Optimizers of language models, which average the weights once the validation loss no longer falls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from regrow.arguments import number, require_count, require_positive, said
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.weights.hook import weight_of

AVERAGE, COUNT = "ax", "count"
DTYPES = (torch.float32, torch.float64)


class NTASGD(Optimizer):
    """SGD that averages the weights from when the validation loss no longer falls: NT-ASGD (arXiv 1708.02182).

    Until then it is plain SGD. `trigger` is told the validation loss of each epoch and decides; from then on steps stay
    as they are, and ``ax``, the mean of the weights from the second step on, stands beside them in the optimizer's
    state. It is what is to be evaluated and kept::

        loss = ...  # of the validation set, inside of `with optimizer.averaged():`
        optimizer.trigger(loss)

    A connection that is grown later counts as 0 in the steps before: `SNTASGD` counts from its growth.

    Args:
        params: parameters or groups of them, float32 or float64: bfloat16 has no digits for an average.
        lr: learning rate; the papers' are 15 to 40, with gradients clipped to norm 0.25.
        weight_decay: L2 penalty on the trained weights.
        nonmono: n, the validation losses that the trigger leaves out of what it compares with.

    Raises:
        RegrowValueError: an argument that is not allowed.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, nonmono: int = 5) -> None:
        defaults = {
            "lr": require_positive("lr", lr, zero=True),
            "weight_decay": require_positive("weight_decay", weight_decay, zero=True),
            "nonmono": require_count("nonmono", nonmono),
            # where the optimizer stands: in its first group, so that its state dict holds it
            "losses": (),
            "averages": False,
            "swapped": False,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Raises:
            RegrowValueError: a parameter of another type than float32 and float64.
        """
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in DTYPES:
                self.param_groups.pop()
                raise RegrowValueError(
                    f"`params` must be float32 or float64, got {parameter.dtype}: an average needs the digits\n"
                    "Train float32 parameters under torch.autocast."
                )

    @property
    def averages(self) -> bool:
        """Whether the weights are averaged by now."""
        return bool(self.param_groups[0]["averages"])

    def trigger(self, loss: float) -> bool:
        """Take in the validation loss of an epoch; averaging begins where it is no longer falling.

        That is where it is above the lowest of those that lie more than `nonmono` epochs back.

        Args:
            loss: of the weights now, once for each epoch.

        Returns:
            Whether the weights are averaged from now on.

        Raises:
            RegrowValueError: a loss that is no number.
        """
        found = number(loss)
        if found is None:
            raise RegrowValueError(f"`loss` must be a number, got {said(loss)}")
        group = self.param_groups[0]
        if not group["averages"]:
            earlier = group["losses"][: -group["nonmono"]]
            group["averages"] = bool(earlier) and found > min(earlier)
            group["losses"] = (*group["losses"], float(found))  # a new one: a state dict holds the old
        return self.averages

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of SGD; the weights that it leads to count in their average, where there is one.

        Args:
            closure: computes the loss and its gradients, and returns it.

        Raises:
            RegrowRuntimeError: the average is in the weights' place.
        """
        if self.param_groups[0]["swapped"]:
            raise RegrowRuntimeError(
                "the average is in the weights' place, which is not what is trained.\nCall swap_out first."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(parameter.grad, alpha=-group["lr"])
                if self.averages:
                    self._average(parameter)
        return loss

    def _average(self, parameter: Tensor) -> None:
        """Take the weights of this step into their average."""
        state, weight = self.state[parameter], weight_of(parameter)
        if AVERAGE not in state:
            state[AVERAGE], state[COUNT] = torch.zeros_like(parameter), self._count(parameter)
        average, count = state[AVERAGE], state[COUNT]
        count.add_(1)
        average.add_((parameter - average).div_((count - 1).clamp_(min=1)))  # the first step's is left out
        if weight is not None:
            weight.clean(average)
            if count.dim():
                weight.clean(count)

    def _count(self, parameter: Tensor) -> Tensor:
        """Make a count of the steps that are in the average: one for all entries of the parameter."""
        return parameter.new_zeros(())

    def swap_in(self) -> None:
        """Put the average in the weights' place until `swap_out`; before there is one, the weights stay.

        The trained weights are kept in the optimizer's state meanwhile, so that model and optimizer may be saved.

        Raises:
            RegrowRuntimeError: it is there already.
        """
        group = self.param_groups[0]
        if group["swapped"]:
            raise RegrowRuntimeError("the average is in the weights' place already.\nCall swap_out first.")
        if self.averages:
            self._swap()
            group["swapped"] = True

    def swap_out(self) -> None:
        """Put the trained weights back; nothing happens where they are there."""
        group = self.param_groups[0]
        if group["swapped"]:
            self._swap()
            group["swapped"] = False

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average in the weights' place for the time of a ``with`` block."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            average = self.state.get(parameter, {}).get(AVERAGE)
            if average is None:  # no gradient has reached it since
                continue
            weight = weight_of(parameter)
            if weight is None:
                kept = parameter.clone()
                parameter.copy_(average)
                average.copy_(kept)
            else:  # what else is in the parameter's memory (a stamp) stays
                positions, trained, mean = weight.positions(), weight.values(), weight.take(average)
                weight.fill(positions, mean)
                weight.fill(positions, trained, average)


class SNTASGD(NTASGD):
    """NT-ASGD for sparse weights whose connections move: SNT-ASGD (Selfish-RNN, arXiv 2101.09048).

    The average of each connection counts from its last growth on: a count of its own in the state of each sparse
    weight, of the parameter's shape, begins at 0 where a connection comes, as all state does. Where there is no
    connection, average and count are 0. Dense parameters are averaged as in `NTASGD`.

    Args:
        params: parameters or groups of them, float32 or float64, once the model is sparse.
        lr, weight_decay, nonmono: as for `NTASGD`.
    """

    def _count(self, parameter: Tensor) -> Tensor:
        return super()._count(parameter) if weight_of(parameter) is None else torch.zeros_like(parameter)
