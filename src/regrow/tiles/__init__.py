"""The layout of activations between sparse convolutions, and what is computed in it."""

from regrow.tiles.table import FUNCTIONS, OPERATORS
from regrow.tiles.tensor import BatchTiles, on_convert, to_tiles

__all__ = ["FUNCTIONS", "OPERATORS", "BatchTiles", "on_convert", "to_tiles"]
