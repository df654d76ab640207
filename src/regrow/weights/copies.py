"""The copies of a weight that are alive, and which of them make its moves."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from regrow.weights import aside
from regrow.weights.base import SparseWeight
from regrow.weights.hook import is_trained
from regrow.weights.record import module_records


def copies_of(weight: SparseWeight) -> list[SparseWeight]:
    """Return the other copies of a weight that are alive, in its storage; those that are driven come first."""
    name, family, found = weight.parameter_name, weight.record.family, []
    for module in family.modules():
        record = module_records(module).get(name)
        if module is not weight.module and record is not None and record.family is family:
            found.append(type(weight)(module, name))  # one that was made dense since has no record
    return sorted(found, key=lambda copy: copy.driver() is None)


def followers(weight: SparseWeight, besides: Container[nn.Module] = ()) -> list[SparseWeight]:
    """Find the copies into which other code writes values of `weight` (averages, target networks).

    A move that is made in it must be made in them too. A copy that is kept as it is, or trained by itself, is none.

    Args:
        weight: the one that is moved.
        besides: modules whose copies make its moves anyway.
    """
    found = []
    for copy in copies_of(weight):
        record = copy.record
        if copy.module in besides:
            continue
        if is_trained(copy.parameter):
            record.follows = False
        elif (
            copy.take_from(weight) or (record.follows and record.fingerprint == weight.record.fingerprint)
        ) and not _is_of_another(copy, weight):
            aside.keep(copy)
            record.follows = True
            found.append(copy)
    return found


def _is_of_another(copied: SparseWeight, model: SparseWeight) -> bool:
    """Return whether a copy is rather another model's than `model`'s: those trained apart (twin critics) may be
    copies too.
    """
    others = [
        each
        for each in copies_of(copied)
        if each.driver() not in (None, model.driver()) and each.record.fingerprint == model.record.fingerprint
    ]
    among = {each.module for each in (model, *others)}
    origin = copied.record.origin()
    while others and origin is not None:  # the copy of an average has that one's origin
        if origin in among:
            return origin is not model.module
        record = module_records(origin).get(copied.parameter_name)
        origin = None if record is None else record.origin()
    mine = copied.values()
    far = [float((each.values().to(mine) - mine).norm()) for each in (model, *others)]
    return min(far) < far[0]
