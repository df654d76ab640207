"""Pictures of a run, drawn from the files in its folder alone."""

from __future__ import annotations

from regrow.report.comparison import draw_comparison
from regrow.report.curves import draw_curves
from regrow.report.maps import CentreAndBorder, centre_and_border, draw_maps, mean_connections
from regrow.report.pictures import draw
from regrow.report.tickets import draw_tickets

__all__ = [
    "CentreAndBorder",
    "centre_and_border",
    "draw",
    "draw_comparison",
    "draw_curves",
    "draw_maps",
    "draw_tickets",
    "mean_connections",
]
