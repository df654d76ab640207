"""Pictures of a run that makes several tickets: how each came about, and how far their topologies agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regrow.app.report import style
from regrow.app.tasks import Measures, Metric, measures_of
from regrow.tickets import kind_of

SMOOTH = 9
"""Readings of the loss that are averaged where they are close together."""

Records = list[dict[str, Any]]


def draw_tickets(run: Path, title: str) -> list[Path]:
    """Draw ``tickets.png`` and ``overlap.png``, and both as PDF, in run folder `run`; nothing for a run without."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    known = summary.get("tickets")
    if not known:
        return []
    records = style.records(run / "metrics.jsonl")
    found = {kind: [r for r in records if r["kind"] == kind] for kind in ("train", "test", "ticket")}
    if kind_of(known["kind"]).independent:
        figures = [("tickets", _members(summary, title))]
    else:
        figures = [("tickets", _calendar(found, known, f"{title}\n{_result(summary)}", measures_of(summary)))]
    if known.get("overlap") and len(known["overlap"]) > 1:
        figures.append(("overlap", _overlap(known, title)))
    return [
        style.save(figure, run / f"{name}.{ending}") for name, figure in figures for ending in ("png", "pdf")
    ]


def _result(summary: dict[str, Any]) -> str:
    """Return what the run came to, in words."""
    what = kind_of(summary["tickets"]["kind"]).result
    best = measures_of(summary).best
    return (
        f"{what} {best.text(summary[best.name])} of {summary['tested_on']} examples, "
        f"tickets alone {best.text(summary['tickets']['mean'][best.name])} on average"
    )


def _calendar(found: dict[str, Records], known: dict[str, Any], title: str, measures: Measures) -> Figure:
    """Draw learning rate, loss and best metric over the whole run and, beside it, over the windows alone."""
    start = known["start"]
    end = start + known["windows"] * known["length"]
    spans = [(0, end)] if start < end / 2 else [(0, end), (start, end)]
    figure = Figure(figsize=(6.4 + 4.6 * (len(spans) - 1), 7.8), layout="constrained")
    figure.suptitle(title, fontweight="bold", fontsize=11)
    grid = figure.subplots(3, len(spans), sharex="col", squeeze=False)
    for column, span in enumerate(spans):
        for axes in grid[:, column]:
            _shade(axes, known)
        _rate(grid[0, column], _within(found["train"], span), known, whole=column == 0)
        _loss(grid[1, column], _within(found["train"], span), smooth=column == 1)
        _tested(grid[2, column], found, known, span, measures.best)
        style.thousands(grid[2, column])
        margin = 0.015 * (end - span[0])
        grid[2, column].set_xlim(span[0] - (margin if column else 0), end + margin)
        grid[2, column].set_xlabel("optimizer step")
    best, what = measures.best, found["test"][-1].get("on", "test") if found["test"] else "test"
    for row, name in enumerate(
        ("Learning rate", "Training loss", f"{style.capital(best.name)} on {what} examples")
    ):
        grid[row, 0].set_title(name)
        if len(spans) > 1:
            grid[row, 1].set_title(f"{name}, {kind_of(known['kind']).windows} only")
    grid[0, 0].set_ylabel("learning rate")
    grid[1, 0].set_ylabel(measures.loss)
    grid[2, 0].set_ylabel(best.unit or best.name)
    grid[2, -1].legend(frameon=False, fontsize=9, loc="best")
    figure.align_ylabels(grid[:, 0].tolist())
    return figure


def _within(records: Records, span: tuple[float, float]) -> Records:
    return [record for record in records if span[0] <= record["step"] <= span[1]]


def _shade(axes: Axes, known: dict[str, Any]) -> None:
    """Shade every other window."""
    for window in range(known["windows"]):
        left = known["start"] + window * known["length"]
        colour = "#f1f4f7" if window % 2 == 0 else "#e3e9ef"
        axes.axvspan(left, left + known["length"], color=colour, linewidth=0, zorder=0)


def _rate(axes: Axes, train: Records, known: dict[str, Any], *, whole: bool) -> None:
    if not whole:
        train = [record for record in train if record["step"] > known["start"]]
    rates = [record["rate"] for record in train]
    axes.plot(_steps(train), rates, color=style.INK, linewidth=1.4)
    inside = [record["rate"] for record in train if record["step"] > known["start"]]
    if whole and inside:  # a schedule may have ended at nearly 0 before
        axes.set_yscale("log")
        axes.set_ylim(min(inside) / 2, 1.5 * max(rates))
    elif inside:
        axes.set_ylim(0, 1.1 * max(inside))


def _loss(axes: Axes, train: Records, *, smooth: bool) -> None:
    steps, losses = _steps(train), np.array([record["loss"] for record in train])
    if not smooth or len(losses) < 2 * SMOOTH:
        axes.plot(steps, losses, color=style.BLUE, linewidth=1.2)
        return
    axes.plot(steps, losses, color=style.BLUE, linewidth=0.8, alpha=0.35)
    mean = np.convolve(losses, np.ones(SMOOTH) / SMOOTH, mode="valid")
    half = SMOOTH // 2
    axes.plot(steps[half:-half], mean, color=style.BLUE, linewidth=1.6, label=f"mean of {SMOOTH} readings")
    axes.legend(frameon=False, fontsize=9)


def _tested(
    axes: Axes, found: dict[str, Records], known: dict[str, Any], span: tuple[float, float], best: Metric
) -> None:
    test, tickets = _within(found["test"], span), _within(found["ticket"], span)
    axes.plot(
        _steps(test),
        _shown(test, best, best.logged),
        color=style.GREY,
        linewidth=1.2,
        marker=".",
        markersize=4,
        label="network in training",
    )
    at = [record["taken"] for record in tickets]
    axes.plot(
        at,
        _shown(tickets, best),
        color=style.ORANGE,
        marker="o",
        markersize=7,
        linestyle="none",
        label="ticket alone",
    )
    together = [record["together"] for record in tickets]
    axes.plot(
        _steps(tickets),
        _shown(together, best),
        color=style.GREEN,
        marker="s",
        markersize=6,
        linewidth=1.6,
        label=f"{kind_of(known['kind']).result} so far",
    )
    _zoom(axes, [*_shown(tickets, best), *_shown(together, best)], _shown(test, best, best.logged), best)


def _zoom(axes: Axes, wanted: Sequence[float], others: Sequence[float], best: Metric) -> None:
    """Leave out what is far below the tickets: the beginning of training."""
    if not wanted or not (best.percent and best.higher_is_better):
        return
    high, low = max([*wanted, *others]), min(wanted)
    reach = max(1.5 * (high - low), 0.4)
    seen = [value for value in others if value >= high - 3 * reach]
    low = min([low, *seen])
    axes.set_ylim(low - 0.12 * (high - low + 0.1), high + 0.12 * (high - low + 0.1))


def _members(summary: dict[str, Any], title: str) -> Figure:
    """Draw how good each run is, their mean and what they come to."""
    known = summary["tickets"]
    kind = kind_of(known["kind"])
    runs = "tickets, each pruned out of the one before" if kind.prunes else "independent runs"
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots()
    best = measures_of(summary).best
    values = _shown(known["each"], best)
    places = np.arange(len(values))
    axes.plot(
        places, values, color=style.ORANGE, marker="o", markersize=8, linestyle="none", label="run alone"
    )
    for value, colour, dotted, width, label in (
        (known["mean"][best.name], style.ORANGE, ":", 1.4, "mean of the runs"),
        (summary[best.name], style.GREEN, "-", 1.8, "last ticket" if kind.prunes else kind.result),
    ):
        label = f"{label}, {best.text(value)}"
        axes.axhline(best.shown(value), color=colour, linestyle=dotted, linewidth=width, label=label)
    axes.set(
        title=f"{style.capital(best.name)} of {runs}",
        ylabel=f"{summary['tested_on']} examples, {best.unit or best.name}",
    )
    axes.set_xticks(places, [f"run {place}" for place in places])
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.18)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _overlap(known: dict[str, Any], title: str) -> Figure:
    """Return the share of the connections of one ticket that another has too."""
    shares = 100 * np.array(known["overlap"])
    count = len(shares)
    figure = Figure(figsize=(2.6 + 0.75 * max(count, 3), 2.0 + 0.75 * max(count, 3)), layout="constrained")
    figure.suptitle(title, fontweight="bold", fontsize=10)
    axes = figure.subplots()
    others = shares[~np.eye(count, dtype=bool)]
    low, high = float(others.min()), max(float(others.max()), float(others.min()) + 10)
    own = np.ma.masked_array(shares, np.eye(count, dtype=bool))
    axes.set_facecolor("#e4e8ec")
    image = axes.imshow(own, cmap="Blues", vmin=low - 0.25 * (high - low), vmax=high)
    for row, column in np.ndindex(count, count):
        value = shares[row, column]
        dark = row != column and value > low + 0.55 * (high - low)
        text = "all" if row == column else f"{value:.1f}"
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else style.INK)
    axes.set_xticks(range(count))
    axes.set_yticks(range(count))
    what = "run" if kind_of(known["kind"]).independent else "ticket"
    axes.set(xlabel=what, ylabel=what)
    axes.set_title("Shared connections")
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.8, label="shared, % of the row's")
    return figure


def _steps(records: Records) -> list[int]:
    return [record["step"] for record in records]


def _shown(records: Sequence[dict[str, Any]], best: Metric, key: str | None = None) -> list[float]:
    return [best.shown(record[key or best.name]) for record in records]
