"""Sparse weights: the protocol `SparseWeight` and its two storages, masked and compressed."""

from regrow.weights.base import NonFiniteGradientError, Reduce, Score, SparseWeight
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
    "SparseWeight",
    "hook_of",
    "paused",
    "sparse_weights",
    "views",
]
