"""Pictures of a run, drawn from the files in its folder alone."""

from __future__ import annotations

from regrow.app.report.comparison import draw_comparison
from regrow.app.report.curves import draw_curves
from regrow.app.report.maps import CentreAndBorder, centre_and_border, draw_maps, mean_connections
from regrow.app.report.pictures import draw
from regrow.app.report.tickets import draw_tickets

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
