"""What other code has written into a copy, kept aside while the copy makes moves for the sake of averages.

A copy into which values are written now and then may be an average, whose connections must be the model's at the next
write, or a target network, which is what was written until then. It makes the moves, and is put back if it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from regrow.weights.hook import is_trained

if TYPE_CHECKING:
    from regrow.weights.base import SparseWeight


def keep(copy: SparseWeight) -> None:
    """Keep aside what `copy` is, before it makes a move; what is kept stays if nothing else has changed it since."""
    record = copy.record
    if record.kept is None or not _is_as_moved(copy):
        whole = copy.nnz > 0 and copy.is_overwritten()
        record.averages = not whole
        record.kept = (copy.positions(), copy.values()) if whole else None


def put_back(copy: SparseWeight) -> None:
    """Let `copy`, which is used, be what other code has written, without moves that were made in it since."""
    record = copy.record
    assert record.kept is not None
    if not is_trained(copy.parameter) and _is_as_moved(copy):
        record.follows = False
        copy.assign(*record.kept, keep_shape=True)
    record.kept = None


def _is_as_moved(copy: SparseWeight) -> bool:
    """Return whether nothing but moves has changed `copy` since it was kept aside."""
    assert copy.record.kept is not None
    mine, now = copy.positions(), copy.values()
    positions, values = copy.record.kept
    positions, values = positions.to(mine.device), values.to(now)  # moved or cast since
    at = torch.searchsorted(positions, mine).clamp_(max=len(positions) - 1)
    was = (positions[at] == mine) & (values[at] == now)
    is_new = now == 0  # grown since, perhaps for the second time
    return bool((was | is_new).all()) and copy.is_untouched()
