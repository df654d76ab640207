"""What a network costs, counted: parameters, FLOPs of a test and of training by every method, stored size."""

from regrow.accounting.counting import Costs, LayerCost, costs, costs_of, stored_size
from regrow.accounting.training import (
    FORMULAS,
    granet_levels,
    pruning_levels,
    ticket_multiples,
    training_multiple,
)

__all__ = [
    "FORMULAS",
    "Costs",
    "LayerCost",
    "costs",
    "costs_of",
    "granet_levels",
    "pruning_levels",
    "stored_size",
    "ticket_multiples",
    "training_multiple",
]
