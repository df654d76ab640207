"""`GrownWeight`: what a sparse weight does with its dense gradient, and where connections would come by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.growth import search
from regrow.growth.among import Among
from regrow.growth.gradient import DenseGradient, Reduce
from regrow.growth.scores import Score, ScoreFunction, as_score
from regrow.weights.hook import hook_of


class GrownWeight(ABC):
    """The part of a `SparseWeight` that has to do with its dense gradient: see there.

    A storage has a form of its own for it, which the parameter's hook stashes (`note`, `add`, `nothing`) and the growth
    search reads (`dense_gradient`).
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that the weight had at `sparsify`."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The dense shape."""

    @property
    @abstractmethod
    def parameter(self) -> nn.Parameter:
        """The parameter that the optimizer sees."""

    @abstractmethod
    def is_zero(self, noted: Any) -> bool:
        """Return whether a dense gradient as `note` gives it is zero everywhere."""

    @abstractmethod
    def note(self, gradient: Tensor, left: list[Any]) -> Any:
        """Give the dense gradient of one backward pass the storage's own form.

        Args:
            gradient: of the parameter's shape, as autograd computed it.
            left: what operations of the pass have handed to the hook.
        """

    @abstractmethod
    def add(self, before: Any, noted: Any) -> Any:
        """Add two dense gradients as `note` gives them; may change `before`."""

    @abstractmethod
    def nothing(self) -> Any:
        """Make a dense gradient of zero."""

    @property
    def stashed(self) -> Any:
        """What the hook has stashed.

        Raises:
            RegrowRuntimeError: no backward pass has left a dense gradient.
        """
        hook = hook_of(self.parameter)
        if hook is None or hook.stash is None:
            raise RegrowRuntimeError(
                f"`{self.name}` has no dense gradient: no backward pass was stashed in this step.\nA method of your "
                "own that needs it sets needs_gradient = 'update'. A gradient that is put into .grad by hand says "
                "nothing of where connections could come: use a method that grows at random, such as SET."
            )
        return hook.stash

    @abstractmethod
    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> DenseGradient:
        """Give the growth search the dense gradient that is stashed.

        Args:
            reduce: averages a gradient over processes.
            given: a dense tensor of `shape` that takes its place; masked storage only.
        """

    def best(
        self,
        count: int,
        survivors: Tensor,
        score: Score | ScoreFunction,
        reduce: Reduce | None = None,
        gradient: Tensor | None = None,
        among: Among | None = None,
    ) -> Tensor:
        """Find the `count` positions with the highest score of the dense gradient, `survivors` excluded.

        Args:
            count: how many, at most ``numel - len(survivors)``.
            survivors: positions that may not be chosen, ascending, int64.
            score: what a position is worth: a `regrow.growth.scores.Score`, or an element-wise function ``(gradient,
                rows, columns) -> scores`` of a tile of the dense gradient of shape [r, c], with row numbers [r, 1] and
                column numbers [1, c].
            reduce: averages a gradient over processes.
            gradient: a dense tensor of `shape` that takes the dense gradient's place; masked storage only.
            among: the columns to search, with at least `count` positions to choose from; None is all.

        Returns:
            Positions, ascending, int64 [count]. Ties go to the lower position.

        Raises:
            NonFiniteGradientError: the dense gradient holds inf or nan.
        """
        return search.best(self.dense_gradient(reduce, gradient), count, survivors, as_score(score), among)

    def best_of_rows(
        self,
        counts: Tensor,
        survivors: Tensor,
        score: Score | ScoreFunction,
        reduce: Reduce | None = None,
        gradient: Tensor | None = None,
        among: Among | None = None,
    ) -> Tensor:
        """Find the `counts[i]` positions of each row i with the highest score (a constant fan-in, say).

        Args:
            counts: how many of each row, int64 [rows].
            survivors, score, reduce, gradient, among: as for `best`; each row has enough positions to choose from.

        Returns:
            Positions, ascending, int64 [counts.sum()]. Ties go to the lower position.

        Raises:
            NonFiniteGradientError: the dense gradient holds inf or nan.
            RegrowRuntimeError: a row has fewer free positions than are to come.
        """
        rows = self.shape[0]
        if counts.shape != (rows,) or counts.is_floating_point() or (counts < 0).any():
            raise RegrowValueError(
                f"`counts` must hold a whole number of at least 0 for each of the {rows} rows of `{self.name}`, got "
                f"{counts.dtype} of shape {tuple(counts.shape)}"
            )
        return search.best_of_rows(
            self.dense_gradient(reduce, gradient), counts.long(), survivors, as_score(score), among
        )
