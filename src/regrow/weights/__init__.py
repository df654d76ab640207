"""Sparse weights: the protocol `SparseWeight` and its two storages, masked and compressed."""

from regrow.growth.gradient import Reduce
from regrow.growth.scores import Score, ScoreFunction
from regrow.growth.search import NonFiniteGradientError
from regrow.weights.base import SparseWeight
from regrow.weights.compressed import CompressedWeight
from regrow.weights.hook import GradientHook, hook_of, paused
from regrow.weights.masked import MaskedWeight
from regrow.weights.record import Record
from regrow.weights.views import sparse_weights, views

__all__ = [
    "CompressedWeight",
    "GradientHook",
    "MaskedWeight",
    "NonFiniteGradientError",
    "Record",
    "Reduce",
    "Score",
    "ScoreFunction",
    "SparseWeight",
    "hook_of",
    "paused",
    "sparse_weights",
    "views",
]
