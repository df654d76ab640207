"""Pictures of a run, drawn from the files in its folder alone."""

from __future__ import annotations

from regrow.report.curves import draw_curves
from regrow.report.maps import centre_and_border, draw_maps, mean_connections
from regrow.report.pictures import draw

__all__ = ["centre_and_border", "draw", "draw_curves", "draw_maps", "mean_connections"]
