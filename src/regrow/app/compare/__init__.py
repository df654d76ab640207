"""Comparisons: a grid of ordinary training runs under one budget, and the table and plots it ends with."""

from __future__ import annotations

from regrow.app.compare.grid import Base, Cell, Grid, Run, plan
from regrow.app.compare.running import Failure, run_all
from regrow.app.compare.table import Row, Table, differences, reached, tabulate
from regrow.app.compare.writing import conditions, write

__all__ = [
    "Base",
    "Cell",
    "Failure",
    "Grid",
    "Row",
    "Run",
    "Table",
    "conditions",
    "differences",
    "plan",
    "reached",
    "run_all",
    "tabulate",
    "write",
]
