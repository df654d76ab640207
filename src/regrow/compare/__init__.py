"""Comparisons: a grid of ordinary training runs under one budget, and the table and plots it ends with."""

from __future__ import annotations

from regrow.compare.grid import Base, Cell, Grid, Run, plan
from regrow.compare.running import Failure, run_all
from regrow.compare.table import Row, Table, differences, reached, tabulate
from regrow.compare.writing import conditions, write

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
