"""Learning curves: training loss, best metric of the tests, connections moved."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from regrow.app.report import style


def draw_curves(run: Path, title: str) -> list[Path]:
    """Draw ``curves.png`` in run folder `run`; nothing where no loss was logged."""
    records, measures = style.records(run / "metrics.jsonl"), style.measures(run)
    train, test, updates = (_of(records, kind) for kind in ("train", "test", "update"))
    if not train:
        return []
    figure = Figure(figsize=(9, 6.6 if updates else 4.8), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    axes = figure.subplots(3 if updates else 2, 1, sharex=True, squeeze=False)[:, 0]

    steps = [record["step"] for record in train]
    few = {"marker": "o", "markersize": 3} if len(train) < 30 else {}
    axes[0].plot(steps, [record["loss"] for record in train], color=style.BLUE, linewidth=1.5, **few)
    axes[0].set(title="Training loss", ylabel=measures.loss)

    best = measures.best
    values = [best.shown(record[best.logged]) for record in test]
    axes[1].plot([record["step"] for record in test], values, color=style.GREEN, marker="o", markersize=4)
    what = test[-1].get("on", "test") if test else "test"
    axes[1].set(title=f"{what.capitalize()} {best.name}", ylabel=best.unit or best.name)
    if test:
        axes[1].annotate(
            best.text(test[-1][best.logged]),
            (test[-1]["step"], values[-1]),
            xytext=(-4, -12),
            textcoords="offset points",
            ha="right",
            va="top",
            fontweight="bold",
        )
    if updates:
        where = [record["step"] for record in updates]
        width = 0.7 * min((b - a for a, b in pairwise(where)), default=steps[-1] / 20)
        axes[2].bar(where, [record["grown"] for record in updates], width=width, color=style.ORANGE)
        moved = sum(record["grown"] for record in updates)
        axes[2].set(title=f"Connections moved at each update, {moved:,} in all", ylabel="connections")
        axes[2].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[-1].set_xlabel("optimizer step")
    style.thousands(axes[-1])
    return [style.save(figure, run / "curves.png")]


def _of(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] == kind]
