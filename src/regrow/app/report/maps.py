"""Where the first layer of a network on images looks: the figure of the RigL article.

Each pixel's colour is how many connections leave it. A random topology looks everywhere alike; one that
evolves learns to look where the information is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from PIL import Image

from regrow._files import write_atomically
from regrow.app.report import style

FRAMES = 60
"""An animation has at most so many frames, spread evenly over training."""

Pixels = NDArray[np.float64]


class CentreAndBorder(NamedTuple):
    """Mean connections per pixel in two parts of the image."""

    centre: float
    border: float


def centre_and_border(counts: Pixels) -> CentreAndBorder:
    """Return the mean of `counts` [H, W] in the central half by half, and in the frame an eighth of the image wide.

    For 28x28 the centre is 14x14 pixels, and the border the three outermost rings.
    """
    height, width = counts.shape
    top, left = height // 4, width // 4
    centre = counts[top : height - top, left : width - left]
    outer = np.ones(counts.shape, dtype=bool)
    rows, columns = max(1, height // 8), max(1, width // 8)
    outer[rows : height - rows, columns : width - columns] = False
    return CentreAndBorder(float(centre.mean()), float(counts[outer].mean()))


def mean_connections(run: Path) -> dict[str, CentreAndBorder]:
    """Return ``{"first": ..., "last": ...}`` of the maps recorded in run folder `run`; empty where there are none."""
    maps = _maps(run)
    return {when: centre_and_border(maps[at][1]) for when, at in (("first", 0), ("last", -1))} if maps else {}


def draw_maps(run: Path, title: str) -> list[Path]:
    """Draw ``first-layer.png`` and, where the topology moved, ``first-layer.gif`` in run folder `run`."""
    maps = _maps(run)
    if not maps:
        return []
    mean = np.array(json.loads((run / "data.json").read_text(encoding="utf-8"))["mean_image"])
    # one scale for all maps of a run; the top 1% of pixels may saturate
    high = max(1.0, max(float(np.percentile(counts, 99)) for _, counts in maps))
    pictures = [_still(run, title, mean, maps, high)]
    if len(maps) > 1:
        pictures.append(_animation(run, title, mean, maps, high))
    return pictures


def _maps(run: Path) -> list[tuple[int, Pixels]]:
    """Return (step, connections [H, W]) at the start and after each update."""
    return [
        (r["step"], np.array(r["counts"], float).reshape(r["size"]))
        for r in style.records(run / "maps.jsonl")
    ]


def _still(run: Path, title: str, mean: Pixels, maps: list[tuple[int, Pixels]], high: float) -> Path:
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots(1, 3)
    _draw_mean(axes[0], mean)
    for place, (step, counts), when in (
        (axes[1], maps[0], "At the start"),
        (axes[2], maps[-1], "After the last update"),
    ):
        image = _draw_map(place, counts, high, f"{when}, step {step:,}", _words(counts))
    figure.colorbar(image, ax=axes[1:], shrink=0.78, label="connections that leave the pixel", extend="max")
    return style.save(figure, run / "first-layer.png")


def _animation(run: Path, title: str, mean: Pixels, maps: list[tuple[int, Pixels]], high: float) -> Path:
    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots(1, 2)
    _draw_mean(axes[0], mean)
    image = _draw_map(axes[1], maps[0][1], high, "", _words(maps[0][1]))
    figure.colorbar(image, ax=axes[1], shrink=0.78, label="connections that leave the pixel", extend="max")
    chosen = np.unique(np.linspace(0, len(maps) - 1, min(FRAMES, len(maps))).round().astype(int))
    frames = []
    for index in chosen:
        step, counts = maps[index]
        image.set_data(counts)
        axes[1].set_title(f"Connections, step {step:,}")
        axes[1].set_xlabel(_words(counts))
        frames.append(_render(figure))
    path = run / "first-layer.gif"
    # the first and the last frame stay long enough to be compared
    durations = [900] + [130] * (len(frames) - 2) + [2500]
    palette = frames[-1].quantize(256, dither=Image.Dither.NONE)
    same = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    options: dict[str, Any] = {"append_images": same[1:], "duration": durations, "loop": 0, "optimize": False}
    return write_atomically(path, lambda beside: same[0].save(beside, format="GIF", save_all=True, **options))


def _render(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _draw_mean(axes: Axes, mean: Pixels) -> None:
    axes.imshow(mean, cmap="gray")
    _frame(axes, "Mean training image", "what there is to see")


def _draw_map(axes: Axes, counts: Pixels, high: float, title: str, words: str) -> AxesImage:
    image = axes.imshow(counts, cmap="magma", vmin=0, vmax=high)
    _frame(axes, title, words)
    return image


def _frame(axes: Axes, title: str, words: str) -> None:
    axes.set(title=title, xlabel=words, xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _words(counts: Pixels) -> str:
    parts: Any = centre_and_border(counts)
    return f"a pixel: {counts.mean():.1f}, centre {parts.centre:.1f}, border {parts.border:.1f}"
