"""Inference: a trained network as a program of its own, whose layers run at the cost of their connections."""
