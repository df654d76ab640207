"""Measure models and machines: time, layers, landscapes."""
