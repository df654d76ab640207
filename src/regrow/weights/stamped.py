"""Values with a stamp: whether they belong to their weight's topology, and where they came from."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from regrow.errors import RegrowRuntimeError
from regrow.weights import stamp
from regrow.weights.base import SparseWeight
from regrow.weights.copies import copies_of
from regrow.weights.hook import is_trained
from regrow.weights.reading import as_matrix


class StampedWeight(SparseWeight):
    """A sparse weight whose parameter ends with a stamp (`regrow.weights.stamp`)."""

    @abstractmethod
    def rebuild_mirror(self) -> None:
        """Rebuild what follows from the index, in place, note the topology as known and stamp the values."""

    @abstractmethod
    def _adopt_index(self, other: SparseWeight) -> None:
        """Take over the topology of `other`, a copy."""

    def after_load(self) -> None:
        """Take the values, columns and row pointers that were loaded for known, with the stamp as it was saved."""
        entries, found = self.parameter.detach()[-stamp.SIZE :].clone(), stamp.read(self.parameter)
        self.rebuild_mirror()
        if found is not None and found.is_of(self.record.fingerprint):
            self.parameter.data[-stamp.SIZE :] = entries
            self.record.clock = self.record.family.clock = stamp.nearest(found.clock)
            for copy in copies_of(self):
                copy.record.due = True

    def part(self, companions: Iterable[Tensor] = ()) -> None:
        super().part()
        copies = copies_of(self)
        fine = self.parameter.dtype != torch.bfloat16  # which has few clocks to tell apart
        self.record.unsure = fine and any(not copy.record.averages for copy in copies)
        if not self._is_surely_own() and (found := stamp.read(self.parameter)) and not self._is_own(found):
            return  # other code has just written a copy's values here: `settle` will need the stamp they came with
        taken = {copy.record.clock for copy in copies}
        for _ in range(stamp.FINE):  # where copies have them all, whichever comes
            self.record.clock = self.record.family.tick()
            if self.record.clock not in taken:
                break
        stamp.write(self.parameter, self.record.fingerprint, self.record.clock)
        for tensor in companions:  # what weight decay has left of the clock before would mix into the new one
            tensor[-stamp.SIZE :] = 0

    def _settle_values(self, thorough: bool) -> None:
        if not (thorough or self.parameter.is_cpu):
            return  # it would wait for the device
        if self._is_surely_own():
            return
        found, fingerprint = stamp.read(self.parameter), self.record.fingerprint
        if found is None:
            self.record.bare = is_trained(self.parameter)
            self._settle_unstamped()
            stamp.write(self.parameter, self.record.fingerprint, self.record.clock)
        elif self._is_own(found):
            if found.has_drifted or (
                found.is_coarse and found.distance(fingerprint) and is_trained(self.parameter)
            ):
                stamp.write(self.parameter, fingerprint, found.clock)
        elif not any(self.take_from(copy) for copy in copies_of(self)):
            raise self._mixed()

    def _is_surely_own(self) -> bool:
        """Ask by the faster way whether the values are of this weight's topology; where it says no, they may be."""
        return self.parameter.is_cpu and stamp.is_whole(self.parameter, self.record.code)

    def _check_given(self) -> None:
        if self.parameter.is_cpu and not stamp.is_whole(self.parameter.detach(), self.record.code):
            found = stamp.read(self.parameter)
            if found is not None and not found.is_of(self.record.fingerprint):
                raise self._mixed()

    def _mixed(self) -> RegrowRuntimeError:
        return RegrowRuntimeError(
            f"`{self.name}` holds values of another topology than its own, or of several, mixed by other code: an "
            "average or a target network that was updated parameter by parameter while the topology changed.\n"
            "For an average, follow the model that is trained, right after the copy is made:\n"
            "    method.follow(copy)\n"
            "To take over a model's weights with its topology: copy.load_state_dict(model.state_dict())"
        )

    def _is_own(self, found: stamp.Stamp) -> bool:
        """Return whether the values are of this weight's topology, and not rather of a copy's."""
        own, distance = self.record.fingerprint, found.distance(self.record.fingerprint)
        return found.is_of(own) and not (
            distance and any(found.distance(copy.record.fingerprint) < distance for copy in copies_of(self))
        )

    @property
    def total(self) -> float | None:
        if stamp.fits(self.parameter) or self.parameter.is_meta:
            return None
        return float(self.parameter.detach().sum(dtype=torch.float64))

    def _settle_unstamped(self) -> None:
        """Settle values without a stamp: noise or an initialiser was written over it, or float16 has none."""
        before, written = self.record.total, stamp.fits(self.parameter)  # regrow leaves none without
        if not written:
            self.record.total = self.total
            written = before not in (None, self.record.total)
        if not written or self.record.bare:
            return
        copies = copies_of(self)
        others = [copy for copy in copies if copy.record.fingerprint != self.record.fingerprint]
        for other in others:
            if other.nnz == self.nnz and torch.equal(self.values(), other.values().to(self.parameter)):
                self._adopt_index(other)
                return
        if others:
            self.record.warn_once(
                f"the values of `{self.name}`, in a copy of a model whose topology has changed since, were rounded, "
                "converted or given noise: of which topology they are cannot be told.\nA copy that stays as it was "
                "made is right. For one that other code writes the model's values into, call method.follow(copy) when "
                "it is made, or copy.load_state_dict(model.state_dict()) before they are changed."
            )
        elif not any(copy.driver() for copy in copies):  # noise on a copy is nothing of an initialiser
            self._warn_of_scale()

    def _warn_of_scale(self) -> None:
        """Say so where untrained values, written as a whole, have another scale than the dense layer's."""
        driver, trained = self.driver(), is_trained(self.parameter)
        if self.record.told or not stamp.is_written_over(self.parameter):
            return
        if trained and (driver is None or driver.step):
            return
        fan = getattr(
            self.module, "hidden_size", as_matrix(self.shape)[1]
        )  # torch's recurrent layers go by units
        usual = 1 / math.sqrt(3 * fan)
        times = float(self.values().square().mean().sqrt()) / usual
        if not 0.5 < times < 2:
            self.record.warn_once(
                f"the values of `{self.name}` were written as a whole (torch.nn.init?) and are {times:.2g} times as "
                "large as the dense layer starts with: initialisers take fans from the shape, which is [n, 1] here.\n"
                "Initialise before regrow.sparsify, or call the layer's reset_parameters()."
            )

    def is_untouched(self) -> bool:
        found, own = stamp.read(self.parameter), self.record.clock
        if found is None:
            return False
        others = [abs(found.clock - copy.record.clock) for copy in copies_of(self)]
        return found.is_at(own) and abs(found.clock - own) <= min(others, default=1.0)

    def is_overwritten(self) -> bool:
        found = stamp.read(self.parameter)
        return found is not None and found.is_unmixed

    def take_from(self, other: SparseWeight) -> bool:
        found = stamp.read(self.parameter)
        if found is None or not found.is_of(other.record.fingerprint):
            return False
        off = [abs(found.clock - record.clock) for record in (self.record, other.record)]
        is_at_own = found.is_at(self.record.clock) and off[0] <= off[1]  # in bfloat16 it may be at both
        if is_at_own and not (other.record.bare and found.scale != stamp.SCALE):  # an average with zeros
            return False
        if other.record.fingerprint != self.record.fingerprint:
            self._leave_state()
            self._adopt_index(other)
        return True
