"""Plots of a comparison: the best metric against training FLOPs, seconds, training length, the values of a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from regrow.app.report import style
from regrow.app.tasks import CLASSIFICATION, Metric

COLOURS = (style.BLUE, style.ORANGE, style.GREEN, "#8a4fa3", "#b8860b", "#c0396b", "#3a9ea5", "#7a5c43")
MARKERS = "osD^vP*X"

Rows = Sequence[Mapping[str, Any]]


def draw_comparison(
    rows: Rows, keys: Sequence[str], stem: Path, title: str, metric: Metric = CLASSIFICATION.best
) -> list[Path]:
    """Draw what `rows` allow as ``<stem>-<plot>.png`` and ``.pdf``.

    Args:
        rows: one a condition: ``method``, ``multiplier``, ``mean`` and ``deviation`` of `metric` as it is shown,
            ``training`` (multiple of dense training, or None), ``length`` (relative to the recipe's own), the values
            of `keys`, and where it is known the ``curve``: (seconds of training, metric) of each test.
        keys: recipe keys that take several values.
        stem: path of the pictures, without what each adds.
        title: of all of them.
        metric: what is compared.

    Returns:
        The paths, each plot's PNG before its PDF.
    """
    lengths = sorted({row["multiplier"] for row in rows})
    figures: list[tuple[str, Figure]] = []
    if any(row["training"] is not None and row["method"] != "dense" for row in rows):
        figures.append(("flops", _flops(rows, keys, lengths, title, metric)))
    if any(len(row.get("curve", ())) > 1 for row in rows):
        figures.append(("time", _time(rows, keys, lengths, title, metric)))
    if len(lengths) > 1:
        figures.append(("length", _length(rows, keys, title, metric)))
    figures += [
        (re.sub(r"[^\w.]+", "_", key), _key(rows, key, [k for k in keys if k != key], lengths, title, metric))
        for key in keys
        if len({row.get(key) for row in rows} - {None}) > 1
    ]
    return [
        style.save(figure, stem.with_name(f"{stem.name}-{name}.{ending}"))
        for name, figure in figures
        for ending in ("png", "pdf")
    ]


def _flops(rows: Rows, keys: Sequence[str], lengths: Sequence[float], title: str, metric: Metric) -> Figure:
    """Draw the article's figure: dense training of the recipe's own length is a dashed line."""
    figure, axes = _figure(title, metric, "against training FLOPs", "training FLOPs, multiples of dense")
    sparse = [row for row in rows if row["method"] != "dense" and row["training"] is not None]
    # a method's points are one line where they differ in length alone, otherwise a line for each combination
    _lines(axes, sparse, keys, lambda row: row["training"])
    dense = [row for row in rows if row["method"] == "dense"]
    if dense:
        own = min(dense, key=lambda row: abs(row["multiplier"] - 1))
        word = "dense" if own["multiplier"] == 1 else f"dense {own['multiplier']:g}x"
        axes.axhline(
            own["mean"],
            color=style.INK,
            linestyle="--",
            linewidth=1.2,
            label=f"{word}, {_said(metric, own['mean'])}",
        )
    values = [row["training"] for row in sparse]
    if max(values) > 8 * min(values):
        _log(axes, sorted(values))
    _legend(axes)
    return figure


def _time(rows: Rows, keys: Sequence[str], lengths: Sequence[float], title: str, metric: Metric) -> Figure:
    """Return one curve for each condition; what the best dense one came to is a dashed line."""
    figure, axes = _figure(title, metric, "over time", "seconds of training, tests not counted")
    axes.set(ylabel=f"{_axis(metric)}, mean")
    points = [
        {**row, "at": at, "mean": value, "deviation": None}
        for row in rows
        for at, value in row.get("curve", ())
    ]
    _lines(axes, points, [*keys, *(["multiplier"] if len(lengths) > 1 else [])], lambda point: point["at"])
    dense = [row["mean"] for row in rows if row["method"] == "dense"]
    if dense:
        best = metric.best(dense, float)
        axes.axhline(best, color=style.INK, linestyle="--", linewidth=1.2)
    axes.set_xlim(left=0)
    # what the first tests came to would leave the last ones no room
    ends = [value for row in rows for _, value in row.get("curve", ())[1:]]
    if metric.percent and metric.higher_is_better:
        axes.set_ylim(bottom=min(ends, default=0.0) - 1)
    elif ends:
        margin = 0.05 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
        axes.set_ylim(min(ends) - margin, max(ends) + margin)
    _legend(axes)
    return figure


def _length(rows: Rows, keys: Sequence[str], title: str, metric: Metric) -> Figure:
    figure, axes = _figure(
        title, metric, "against training length", "training length, multiples of the recipe's own"
    )
    _lines(axes, rows, keys, lambda row: row["multiplier"])
    _log(axes, sorted({row["multiplier"] for row in rows}))
    _legend(axes)
    return figure


def _key(
    rows: Rows, key: str, others: Sequence[str], lengths: Sequence[float], title: str, metric: Metric
) -> Figure:
    figure, axes = _figure(title, metric, f"against {key}", key)
    present = [row for row in rows if row.get(key) is not None]
    texts = list(dict.fromkeys(str(row[key]) for row in present))
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:  # names, lists: evenly spaced, in the order given
        numbers = {text: float(place) for place, text in enumerate(texts)}
        axes.set_xticks(range(len(texts)), texts)
    else:
        values = sorted(numbers.values())
        if values[0] > 0 and values[-1] >= 8 * values[0]:
            _log(axes, values)
    _lines(
        axes,
        present,
        [*others, *(["multiplier"] if len(lengths) > 1 else [])],
        lambda row: numbers[str(row[key])],
    )
    _legend(axes)
    return figure


def _axis(metric: Metric) -> str:
    """Return the label of a metric's axis."""
    return f"test {metric.name}{' (%)' * metric.percent}"


def _said(metric: Metric, shown: float) -> str:
    """Write a value as it is shown, with its unit."""
    return f"{metric.number(shown)}{'%' * metric.percent}"


def _figure(title: str, metric: Metric, heading: str, below: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots()
    title, left = f"{style.capital(metric.name)} {heading}", f"{_axis(metric)}, mean and deviation"
    axes.set(title=title, xlabel=below, ylabel=left)
    return figure, axes


def _lines(axes: Axes, rows: Rows, keys: Sequence[str], x: Any) -> None:
    """Draw a line for each method and combination of the values of `keys`: its points by `x`."""
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        rest = " ".join(f"{key}={row[key]}" for key in keys if row.get(key) is not None)
        lines.setdefault((row["method"], rest), []).append(row)
    methods = list(dict.fromkeys(method for method, _ in lines))
    styles = list(dict.fromkeys(rest for _, rest in lines))
    for (method, rest), points in lines.items():
        points = sorted(points, key=x)
        place = methods.index(method)
        axes.errorbar(
            [x(point) for point in points],
            [point["mean"] for point in points],
            [point["deviation"] or 0.0 for point in points],
            color=style.INK if method == "dense" else COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle=("-", "--", ":", "-.")[styles.index(rest) % 4],
            markersize=6,
            capsize=3,
            linewidth=1.4,
            label=f"{method} {rest}".strip(),
        )


def _log(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    far = [t for i, t in enumerate(ticks) if i == 0 or t >= 1.35 * ticks[i - 1]]
    axes.set_xticks(far, [f"{tick:.3g}" for tick in far])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    if len(axes.get_legend_handles_labels()[0]) > 0:
        axes.legend(frameon=False, fontsize=9)
