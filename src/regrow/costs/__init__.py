"""What a network costs, counted: parameters, FLOPs of a test and of training by every method, stored size."""

from regrow.costs.counting import Costs, LayerCost, costs, costs_of, stored_size
from regrow.costs.training import FORMULAS, METHODS, pruning_levels, training_multiple

__all__ = [
    "FORMULAS",
    "METHODS",
    "Costs",
    "LayerCost",
    "costs",
    "costs_of",
    "pruning_levels",
    "stored_size",
    "training_multiple",
]
