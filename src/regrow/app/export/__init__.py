"""A trained network as a file for other engines."""

from __future__ import annotations

from regrow.app.export.onnx import to_onnx

__all__ = ["to_onnx"]
