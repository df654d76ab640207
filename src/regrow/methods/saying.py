"""Warnings that point at the user's line, however many hooks and wrappers lie between."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

import torch

BETWEEN = tuple(
    os.path.dirname(file) + os.sep for file in (torch.__file__, os.path.dirname(os.path.abspath(__file__)))
)
"""Folders of torch and of regrow."""


def warn(message: str) -> None:
    """Warn as if the nearest line outside of torch and regrow did."""
    level, frame = 1, sys._getframe()
    outer: FrameType | None = frame
    while outer is not None and outer.f_code.co_filename.startswith(BETWEEN):
        level, outer = level + 1, outer.f_back
    warnings.warn(message, stacklevel=level)
