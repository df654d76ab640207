"""From a model to views of its sparse weights; nothing here changes a model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from regrow._torch import compiled_from
from regrow.errors import RegrowRuntimeError
from regrow.weights.base import SparseWeight
from regrow.weights.hook import driver_of
from regrow.weights.record import Record, module_records
from regrow.weights.storages import STORAGES


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of torch: DistributedDataParallel, DataParallel, torch.compile."""
    while True:
        inner = compiled_from(model)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def named_weights(model: nn.Module) -> Iterator[tuple[str, SparseWeight]]:
    """Yield each sparse weight with its name in `model` now, ``layers.0.weight``, torch's wrappers left out."""
    for name, module in unwrapped(model).named_modules():
        for weight in views(module):
            yield f"{name}.{weight.parameter_name}" if name else weight.parameter_name, weight


def named_records(model: nn.Module) -> dict[str, Record]:
    """Return the records of all weights that `sparsify` has looked at, by the name they have in `model` now."""
    return {
        f"{name}.{parameter_name}" if name else parameter_name: record
        for name, module in unwrapped(model).named_modules()
        for parameter_name, record in module_records(module).items()
    }


def views(module: nn.Module) -> Iterator[SparseWeight]:
    """Yield the sparse weights that `module` itself owns."""
    for parameter_name, record in module_records(module).items():
        if record.storage in STORAGES:
            yield STORAGES[record.storage](module, parameter_name)


def sparse_weights(model: nn.Module) -> list[SparseWeight]:
    """Return all sparse weights of `model`, in the order of its modules."""
    return [weight for module in model.modules() for weight in views(module)]


def settle(model: nn.Module) -> None:
    """See that values and topology of all sparse weights belong together (`SparseWeight.settle`)."""
    for weight in sparse_weights(unwrapped(model)):
        weight.settle(thorough=True)


def refuse_driven(model: nn.Module) -> None:
    """Refuse a model that a method drives.

    Raises:
        RegrowRuntimeError: naming the method.
    """
    for weight in sparse_weights(model):
        driver = driver_of(weight.parameter)
        if driver is not None:
            raise RegrowRuntimeError(f"`model` is driven by a method: {driver!r}\nCall its detach() first.")
