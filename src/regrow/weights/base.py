"""The protocol of a sparse weight: one vocabulary, two storages behind it.

A `SparseWeight` is a view made on demand over what its module owns: a parameter, and the tensors of the topology beside
it. These are attributes, not buffers: code that averages, broadcasts or swaps buffers must not touch them.
*Positions* are flat indices into the dense shape, ascending, int64.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from regrow._torch import dispatch_modes, is_flat
from regrow.errors import RegrowRuntimeError
from regrow.ops import sketch
from regrow.weights import aside, stamp
from regrow.weights.hook import driver_of, hook_of
from regrow.weights.reading import ReadWeight
from regrow.weights.record import RECORDS, Record
from regrow.weights.sharded import not_whole

if TYPE_CHECKING:
    from regrow.weights.storages import Form


class SparseWeight(ReadWeight):
    """One sparse weight of a module.

    Args:
        module: the owner.
        parameter_name: the dense name of the parameter, ``weight``.
    """

    storage: ClassVar[str]
    """The name by which `sparsify` and files know the storage."""
    is_dense: ClassVar[bool]
    """Whether the parameter is the dense tensor: time, memory and optimizer state are then the dense layer's."""
    forms: ClassVar[dict[type[nn.Module], Form] | None] = None
    """What takes the place of a dense module, by its class; None where any module holds such a weight (`hold`)."""

    def __init__(self, module: nn.Module, parameter_name: str) -> None:
        self.module = module
        self.parameter_name = parameter_name

    @property
    def record(self) -> Record:
        record: Record = getattr(self.module, RECORDS)[self.parameter_name]
        return record

    @property
    def name(self) -> str:
        """The name that the weight had at `sparsify`."""
        return self.record.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense shape."""
        return self.record.shape

    @property
    def stored_name(self) -> str:
        """The name of the parameter that the module owns."""
        return self.parameter_name

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that the optimizer sees."""
        return self.owned(self.stored_name)

    def hold(self, positions: Tensor) -> None:
        """Make the dense parameter a weight with connections at `positions` [nnz]; for storages without `forms`."""
        raise self._without_form()

    def let_go(self) -> None:
        """Take the topology away, which leaves the dense parameter with its zeros; for storages without `forms`."""
        raise self._without_form()

    def _without_form(self) -> RegrowRuntimeError:
        return RegrowRuntimeError(
            f"`{self.parameter_name}` of {type(self.module).__name__} cannot be made {self.storage} or dense.\n"
            "Register a form of that module with the storage: regrow.weights.storages.Form."
        )

    @property
    def is_there(self) -> bool:
        """Whether the module still holds the parameter itself."""
        try:
            return self.parameter is not None
        except RegrowRuntimeError:
            return False

    def owned(self, name: str) -> nn.Parameter:
        """Return the module's parameter `name`.

        Raises:
            RegrowRuntimeError: something has been put in its place.
        """
        try:
            return self.module._parameters[name]  # type: ignore[return-value]
        except KeyError:
            if is_flat(self.module.__dict__.get(name)):
                raise not_whole(self.name) from None
            raise RegrowRuntimeError(
                f"`{self.name}` is not a parameter of its module any more: a parametrisation (spectral_norm, "
                "weight_norm, prune ...) or a wrapper was put on after `sparsify`.\n"
                "Put it on first and call `sparsify` then, which leaves such a weight dense."
            ) from None

    @property
    @abstractmethod
    def topology(self) -> dict[str, Tensor]:
        """The tensors that hold the topology, by attribute name."""

    @abstractmethod
    def saved(self) -> dict[str, Tensor]:
        """Return the topology as a state dict holds it, ``<name>_mask`` or ``<name>_crow`` and ``<name>_col``, by
        name.
        """

    @abstractmethod
    def loadable(self, base: str, positions: Tensor, values: Tensor, capacity: int) -> dict[str, Tensor]:
        """Make the entries of a state dict, of a weight called `base` there, that the module loads.

        Args:
            base: begins their names.
            positions: of the connections [nnz].
            values: of the connections [nnz].
            capacity: the connections that optimizer state beside them has room for.
        """

    def load_topology(self, loaded: Mapping[str, Tensor]) -> None:
        """Take over what `saved` gave, in place; the values are loaded next."""
        own = self.topology
        for name, tensor in loaded.items():
            own[name].copy_(tensor)

    def after_load(self) -> None:
        """Take topology and values, which were loaded, for known."""
        self.remember()

    @abstractmethod
    def take_former(self, tensor: Tensor, before: Tensor) -> Tensor:
        """Return the entries [n] of the connections that were at positions `before` [n] when `tensor` was the
        parameter's.
        """

    @abstractmethod
    def restrict(self, gradient: Tensor) -> Tensor:
        """Return `gradient`, of the parameter's shape, with zeros at whatever is not an active connection."""

    def cut_of(self, given: Tensor) -> Tensor:
        """Return what stands in for the parameter in one pass, with zeros at whatever is not an active connection."""
        return self.restrict(given)

    @abstractmethod
    def clean(self, gradient: Tensor, *, edited: bool = True) -> None:
        """Apply `restrict` in place, for what others have written there; if not known to be `edited`, after a look."""

    def prepare(self) -> None:
        """Make ready for a forward pass; called before each one, once the hook is attached."""

    @abstractmethod
    def update(self, drop: Tensor, grow: Tensor, companions: Sequence[Tensor] = ()) -> int:
        """Swap connections in place.

        Args:
            drop: which of the active connections go, indices into `positions()`, int64.
            grow: positions that come, ascending, disjoint from those that stay; one that is also
                dropped counts as kept, its value and state untouched.
            companions: tensors of the parameter's shape (gradient, optimizer state) that move with it.

        Returns:
            The number of truly new connections; they start at 0 in the parameter and in each companion.

        Raises:
            RegrowRuntimeError: where more connections would result than there is room for.
        """

    def explored(self, before: Tensor | None, positions: Tensor | None = None) -> Tensor:
        """Add connections to those that were ever active, `before`, which this returned.

        A sketch of fixed size (`regrow.ops.sketch`), since it lives in ``optimizer.state[p]``: there
        `load_state_dict` casts it to the parameter's dtype, and torch.distributed.checkpoint loads in place.

        Args:
            before: what this returned, in any dtype, or None.
            positions: those that are added, int64 [n]; None is the present ones.
        """
        return sketch.add(self.positions() if positions is None else positions, self.numel, before)

    def explored_share(self, explored: Tensor) -> float:
        """Compute the share of all positions that `explored` holds."""
        return sketch.count(explored, self.numel) / self.numel

    @abstractmethod
    def fill(self, positions: Tensor, values: Tensor, tensor: Tensor | None = None) -> None:
        """Give the active connections at `positions` [n] these values [n], in `tensor` of the parameter's shape.

        Without one, in the parameter itself.
        """

    @abstractmethod
    def assign(self, positions: Tensor, values: Tensor, *, keep_shape: bool = False) -> None:
        """Replace topology and values by these.

        Args:
            positions: ascending, int64 [n].
            values: [n].
            keep_shape: leave the parameter its shape, by which other code copies, where these fit into it.
        """

    def fingerprint(self) -> int:
        """Compute a number that tells two topologies apart, the same in every storage."""
        return int(sketch.mix(self.positions()).sum())

    def is_consistent(self) -> bool:
        """Return whether all that follows from the topology is as it should be."""
        return True

    def forget(self) -> None:
        """Begin to change values and topology, until `remember`: what stops in between is noticed at the next pass."""
        self.record.versions = ()

    def remember(self, fingerprint: int | None = None) -> None:
        """Note the topology as the one that regrow knows; its `fingerprint` where it is at hand."""
        self.record.fingerprint = self.fingerprint() if fingerprint is None else fingerprint
        self.record.code = stamp.code_of(self.record.fingerprint)
        self.record.total = None
        self.record.versions = _versions(self)  # last: from here on all belongs together

    def settle(self, *, thorough: bool = False) -> None:
        """See that topology and values belong together, before either is used.

        In a copy whose values other code has taken from the model that it is a copy of, the topology follows them.

        Args:
            thorough: compare the topology itself, not only whether it was written to (which ``tensor.data.copy_``
                hides), and look at the values on any device.

        Raises:
            RegrowRuntimeError: some other code has written to the topology, or mixed values of two topologies.
        """
        versions = _versions(self)
        if versions != self.record.versions or thorough:
            if not self.record.versions:
                raise RegrowRuntimeError(
                    f"a change of the connections of `{self.name}` was interrupted (Ctrl-C?): its values, its topology "
                    "and the optimizer's state need not belong together.\nLoad model and optimizer from a checkpoint, "
                    "or make them again."
                )
            try:
                known = self.fingerprint() == self.record.fingerprint and self.is_consistent()
            except RuntimeError as error:  # of what is not an index any more
                raise self._overwritten() from error
            if not known:
                raise self._overwritten()
            self.record.versions = versions
        if dispatch_modes():
            return  # operators are watched or faked
        kind = type(self.parameter)
        if kind is nn.Parameter:
            if self.record.kept is not None:
                aside.put_back(self)
            self._settle_values(thorough)
        elif kind is Tensor:
            self._check_given()

    def _overwritten(self) -> RegrowRuntimeError:
        return RegrowRuntimeError(
            f"the topology of `{self.name}` was overwritten by other code, so its values no longer belong to its "
            "connections.\nTo change it, use load_state_dict, or densify and sparsify with masks as `init`."
        )

    @abstractmethod
    def _settle_values(self, thorough: bool) -> None:
        """Settle the values."""

    def _check_given(self) -> None:
        """Look at what a functional call has put in the parameter's place, which is not regrow's to write to."""

    @abstractmethod
    def take_from(self, other: SparseWeight) -> bool:
        """Take over the topology of `other`, a copy, if other code has written its values into this one.

        Returns:
            Whether that was so.
        """

    def is_overwritten(self) -> bool:
        """Return whether the values may be those of one copy at one moment, rather than an average."""
        return True

    @abstractmethod
    def is_untouched(self) -> bool:
        """Return whether nothing was written into the weight, which is kept aside, since a move was made in it."""

    def _leave_state(self) -> None:
        """Let the method see to the optimizer's state, which is of the topology that goes now."""
        hook = hook_of(self.parameter)
        if hook is not None:
            hook.before_load(self)

    @property
    def total(self) -> float | None:
        """The sum of values whose type has no room for a stamp, which tells whether other code has written any."""
        return None

    def part(self, companions: Iterable[Tensor] = ()) -> None:
        """Let values that are written into a copy from now on be told from those that it has now.

        Args:
            companions: tensors of the parameter's shape that go into its next values (momentum).
        """
        self.record.due = False

    @property
    def mask_alone(self) -> Tensor | None:
        """What restricts gradients once the module is gone; None where the parameter is of no use without it."""
        return None

    def driver(self) -> Any:
        """Find the method that drives the weight, or None."""
        return driver_of(self.parameter)


def _versions(weight: SparseWeight) -> tuple[int, ...]:
    tensors = weight.topology.values()
    try:
        return tuple([t._version for t in tensors])
    except RuntimeError:  # inference tensors have none; asking each of them first would take longer
        return tuple([0 if t.is_inference() else t._version for t in tensors])
