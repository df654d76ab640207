"""Top-KAST: the largest weights of all are the network, and more than those are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.arguments import require_count, require_positive
from regrow.errors import RegrowValueError
from regrow.methods.gradual import Final
from regrow.methods.periodic import Periodic
from regrow.methods.registry import register
from regrow.methods.state import PREFIX, companions
from regrow.ops.select import top
from regrow.sparsity import distributions
from regrow.sparsity.distributions import whole_share
from regrow.weights import GradientHook, SparseWeight, hook_of
from regrow.weights.gates import Move

RESERVE, REACH = f"{PREFIX}reserve", f"{PREFIX}reach"
RATIO = 2.5


@register(
    name="top-kast",
    paper="arXiv 2106.03517",
    line="the largest weights of all, and more than those are trained",
    drop="magnitude",
    grow="magnitude",
)
class TopKAST(Periodic):
    """Top-K Always Sparse Training (arXiv 2106.03517).

    Every position has a value theta. The connections, the forward set A, are the largest ``|theta|`` of each layer;
    the backward set B is A and the next largest, `backward_ratio` times as many as A in all. The gradient of the loss,
    taken where all but A are 0, moves the values in B; the others rest. `penalty` is the factor of the exploration
    loss, an L2 penalty that is ``1 / density`` times as strong in B outside of A, and nothing outside of B. Every
    `update_every` steps, once the weights have taken their step, both sets are chosen again.

    The first choice is made when the method is attached: ``sparsify(model, sparsity=0.0)`` leaves it all initial
    values, as published. A position that has no connection by then starts at a random value below those of A.
    Values outside of A are the optimizer's state, so masked storage only; ``.grad`` is that of B, and whatever clips,
    scales or averages it acts on B. The exploration loss is not part of the loss that the training loop computes.

    Differs from the paper: the sets are chosen again every 100 steps, not at each; appendix C finds that as good.

    Args:
        model: a model that `sparsify` has made sparse, in masked storage, at sparsity 0.
        optimizer: the torch optimizer that trains it.
        total_steps: optimizer steps of the whole run; the sets are chosen again until then.
        final_sparsity: of the forward set of every layer, in [0, 1), or ``{weight name: sparsity}``: 1 - D.
        backward_ratio: positions of the backward set for each of the forward set, of at least 1, (D + M) / D; at most
            all of a layer are in it. The default makes 80% forward sparsity 50% backward.
        penalty: lambda, of at least 0: ``lambda * theta`` is added to the gradient in A, beside the optimizer's own
            weight decay, if it has any.
        update_every: steps between two choices; 1 is the paper's.
        skip_step: whether the weights rest at an update step.
        seed: of initial values where there are none.
        process_group: processes that train one model together.

    Raises:
        RegrowValueError: compressed storage, gates apart, a model sparser than `final_sparsity`, or an optimizer that
            keeps copies of the values (schedule-free).
    """

    initial_sparsity = 0.0
    storages = ("masked",)
    storages_because = "it keeps and trains values at positions without a connection"
    backward_ratio = RATIO

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total_steps: int,
        final_sparsity: float | Mapping[str, float],
        backward_ratio: float = RATIO,
        penalty: float = 1e-4,
        update_every: int = 100,
        skip_step: bool | None = None,
        seed: int = 0,
        process_group: Any = None,
    ) -> None:
        self.final_sparsity = final_sparsity
        self.backward_ratio = _require_ratio(backward_ratio)
        self.penalty = require_positive("penalty", penalty, zero=True)
        self._starting: dict[tuple[str, str], Tensor] = {}  # until the optimizer has state to keep it beside
        self._lent: list[tuple[SparseWeight, Tensor]] = []
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            stop_step=require_count("total_steps", total_steps),
            skip_step=skip_step,
            seed=seed,
            process_group=process_group,
        )

    @classmethod
    def levels(cls, sparsity: float) -> list[float]:
        """Say that the network is at its final `sparsity` all along."""
        return [1.0]

    @property
    def keeps_gates(self) -> bool:
        return False

    def fraction(self, step: int) -> float:
        """Return the share of a layer's connections that may be replaced: all."""
        return 1.0

    # --- the sets, and the values outside of the forward set

    def _aim(self) -> None:
        self.final = Final(self.weights, self.final_sparsity)
        self.final.check([[weight] for weight in self.weights])

    def _take_up(self, weights: list[SparseWeight]) -> None:
        super()._take_up(weights)
        if self._found.copies:
            raise RegrowValueError(
                f"`optimizer`: {type(self.optimizer).__name__} keeps a copy of the values in "
                f"`{min(self._found.copies)}`, which {type(self).__name__}'s values without a connection are not in.\n"
                "Use an optimizer that steps the weights themselves, such as SGD or AdamW."
            )

    def _note_start(self) -> None:
        for weight in self.weights:
            if self._kept(weight, RESERVE) is None:
                self._choose_first(weight)
        self._hooks()

    def _choose_first(self, weight: SparseWeight) -> None:
        """Make the largest of the present connections the forward set."""
        drop = top(weight.magnitudes(), weight.nnz - self._count(weight), lowest=True)
        values, kept = weight.to_dense(), weight.values().abs()
        kept[drop] = 0
        least = float(kept[kept > 0].min()) if kept.any() else 0.0
        drawn = torch.rand(
            weight.shape, generator=self.random(0, weight, "values"), dtype=torch.float64, device="cpu"
        )
        drawn = (2 * drawn - 1).mul_(least).to(values)
        values = torch.where(weight.mask(), values, drawn)
        super().move(weight, drop, torch.empty(0, dtype=torch.int64, device=drop.device))
        self._choose_reach(weight, values)

    def _choose_reach(self, weight: SparseWeight, values: Tensor) -> Tensor:
        """Make the backward set of the connections and the next largest of all `values`; keep both."""
        score = values.abs().reshape(-1)
        score[weight.positions()] = torch.inf
        count = min(weight.numel, whole_share(self.backward_ratio, weight.nnz))
        chosen = top(score, count, f"a value of `{weight.name}`")
        reach = weight.in_dense(chosen, torch.ones_like(chosen, dtype=torch.bool))
        self._keep(weight, RESERVE, values.masked_fill(weight.mask(), 0))
        self._keep(weight, REACH, reach)
        return reach

    def _count(self, weight: SparseWeight) -> int:
        """Return the size of the forward set."""
        return distributions.connections((weight.numel,), self.final.sparsity([weight]))

    def _values(self, weight: SparseWeight) -> Tensor:
        """Return the values at all positions, of the weight's shape."""
        reserve = self._kept(weight, RESERVE)
        assert reserve is not None
        own = weight.parameter.detach()
        return torch.where(weight.mask(), own, reserve.to(own))

    def _kept(self, weight: SparseWeight, key: str) -> Tensor | None:
        found = self.remembered(weight, key)
        return self._starting.get((weight.name, key)) if found is None else found

    def _keep(self, weight: SparseWeight, key: str, tensor: Tensor) -> None:
        self._starting[weight.name, key] = tensor
        self.remember(weight, key, tensor)

    def _hooks(self) -> list[GradientHook]:
        hooks = super()._hooks()
        self._tell_reach()
        return hooks

    def _tell_reach(self) -> None:
        """Let each hook know which gradients to keep."""
        for weight in self.weights:
            reach, hook = self._kept(weight, REACH), hook_of(weight.parameter)
            if reach is None or hook is None:
                continue
            if reach.dtype != torch.bool:  # load_state_dict casts state to the parameter's type
                reach = reach != 0
                self._keep(weight, REACH, reach)
            hook.reach = reach

    def _loaded(self, *args: Any) -> None:
        super()._loaded(*args)
        self._tell_reach()

    def _settle_loads(self) -> None:
        hooks = [hook_of(weight.parameter) for weight in self.weights]
        loaded = [hook is not None and hook.overwritten is not None for hook in hooks]
        super()._settle_loads()
        for weight, was in zip(self.weights, loaded, strict=True):
            reach = self._kept(weight, REACH)
            if was and reach is not None and bool((weight.mask() & ~reach.bool()).any()):
                self._choose_first(weight)  # of a model that was loaded alone
                self._tell_reach()

    # --- a step: the optimizer moves the whole backward set

    def _begin(self) -> None:
        was_open = self._open
        super()._begin()
        if self._open and not was_open:
            self._lend()

    def _lend(self) -> None:
        """Put the values of the backward set into the weights for the optimizer's step, and add the penalty."""
        scale = getattr(self.optimizer, "grad_scale", None)  # GradScaler leaves a fused optimizer to unscale
        self._lent = []
        for weight in self.weights:
            reach, gradient, own = self._kept(weight, REACH), weight.parameter.grad, weight.parameter.detach()
            if reach is None or gradient is None:
                continue
            mask = weight.mask()
            beside = reach.to(own.device).bool() & ~mask
            own.copy_(self._values(weight).masked_fill_(~(mask | beside), 0))
            self._lent.append((weight, beside))
            if self.penalty:
                pull = torch.where(beside, own / weight.density, own).mul_(self.penalty)
                gradient.detach().add_(pull if scale is None else pull * scale)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for weight, beside in self._lent:
            own, reserve = weight.parameter.detach(), self._kept(weight, RESERVE)
            assert reserve is not None
            self._keep(weight, RESERVE, torch.where(beside, own, reserve.to(own)))
            own.masked_fill_(beside, 0)
        self._lent = []
        for weight in self.weights:
            for key in (
                RESERVE,
                REACH,
            ):  # from the first step on, the optimizer has state beside which to keep it
                kept = self._kept(weight, key)
                if kept is not None and self.remembered(weight, key) is None:
                    self._keep(weight, key, kept)
        super()._after(optimizer, args, kwargs)

    def moves(self, step: int, weights: list[SparseWeight]) -> list[Move]:
        moves = []
        for weight in weights:
            score = self._values(weight).abs_().reshape(-1)
            now, chosen = weight.positions(), top(score, self._count(weight), f"a value of `{weight.name}`")
            drop = (~torch.isin(now, chosen)).nonzero().view(-1)
            moves.append((weight, drop, chosen[~torch.isin(chosen, now)]))
        return moves

    def move(self, weight: SparseWeight, drop: Tensor, grow: Tensor) -> int:
        values = self._values(weight)
        state = list(companions(self.optimizer, weight).values())
        before = [tensor.clone() for tensor in state]
        new = super().move(weight, drop, grow)
        reach = self._choose_reach(weight, values)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old.masked_fill_(~reach, 0))
        for copy in (None, *self.copies_of(weight)):
            weight.fill(grow, values.reshape(-1)[grow], copy)
        return new

    def detach(self) -> None:
        if self._ended is None and self._optimizer() is not None:
            for weight in self.weights:
                for tensor in companions(self.optimizer, weight).values():
                    weight.clean(tensor)  # whoever goes on has the connections alone
        super().detach()


def _require_ratio(value: object) -> float:
    found = require_positive("backward_ratio", value)
    if found < 1:
        raise RegrowValueError(
            f"`backward_ratio` must be a number of at least 1, got {found:g}: the forward set is part of the backward "
            "set"
        )
    return found
