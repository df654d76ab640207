"""The common suite over the registry."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from regrow.methods.registry import MethodRecord, methods
from regrow.testing import CHECKS, Case


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("record", "storage"),
    [
        pytest.param(record, storage, id=f"{record.name}-{storage}")
        for record in methods().values()
        for storage in record.storages
    ],
)
def test_check(record: MethodRecord, storage: str, check: Callable[[Case], None]) -> None:
    check(Case(record.cls, storage))
