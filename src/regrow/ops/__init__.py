"""Operators on sparse weights: kernels, and their reference on plain torch."""
