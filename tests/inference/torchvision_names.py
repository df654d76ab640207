"""torchvision's Python, for timm, where its compiled operators are missing: it only asks for their names."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
NAMES = {"nms": BOXES, "qnms": BOXES} | {
    f"{before}{name}{after}": "(Tensor x) -> Tensor"
    for name in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool", "deform_conv2d")
    for before, after in (("", ""), ("_", "_backward"))
}
"""Operators for detection, which no network of the tests calls; nobody looks at most of their arguments."""
_defined: list[torch.library.Library] = []


def timm() -> ModuleType:
    """timm; the test is skipped where it, or torchvision, is not installed."""
    vision = importlib.util.find_spec("torchvision")
    if vision is None or vision.origin is None or importlib.util.find_spec("timm") is None:
        pytest.skip("timm and torchvision are not installed: pip install --no-deps timm torchvision")
    if not _defined:
        try:
            torch.ops.load_library(next(Path(vision.origin).parent.glob("_C*.so")))
        except (OSError, StopIteration):  # compiled for another torch, or not at all
            library = torch.library.Library("torchvision", "DEF")
            for name, schema in NAMES.items():
                library.define(name + schema)
            _defined.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm as found

    return found  # type: ignore[no-any-return]
