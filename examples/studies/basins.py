"""Do the tickets of one run lie in one basin? The training loss on the line between tickets, and their topologies.

    regrow train fashion-tickets out=runs/a seed=0
    regrow train fashion-tickets out=runs/b seed=1
    python examples/studies/basins.py runs/a runs/b [--out runs/basins]

The line between neighbouring tickets of each run, and between the last tickets of the runs; batch norms are estimated
again at each point. Beside it the share of connections that any two tickets have in common. Leaves basins.json,
basins.png and basins.pdf.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from regrow.app.report import style
from regrow.app.training.finished import Finished
from regrow.data import prepared
from regrow.measure.landscape import Curve, barrier, profile
from regrow.tickets import overlap

SIZE = 1000
COLOURS = (style.BLUE, style.GREEN, style.GREY)


def measure(runs: list[Finished], examples: int, points: int) -> dict[str, Any]:
    """Losses along the lines, by name, and the overlap of all tickets."""
    data = runs[0].data
    every = max(1, len(data.train_inputs) // examples)
    inputs = prepared(data, data.train_inputs[::every].to("cpu")).split(SIZE)
    targets = data.train_targets[::every].split(SIZE)
    batches = list(zip(inputs, targets, strict=True))
    tickets = [run.tickets() for run in runs]
    names = [f"run {'AB'[r]} ticket {t}" for r, own in enumerate(tickets) for t in range(len(own))]
    within = [(own[i], own[i + 1], r) for r, own in enumerate(tickets) for i in range(len(own) - 1)]
    pairs = [*within, *((a[-1], b[-1], None) for a, b in itertools.combinations(tickets, 2))]
    lines = []
    for first, last, run in pairs:
        along = profile(Curve(first, last), F.cross_entropy, batches, points=points, norm_batches=inputs)
        lines.append({"run": run, "losses": along, "barrier": barrier(along)})
        where = "between runs" if run is None else f"within run {'AB'[run]}"
        print(
            f"{where}: barrier {lines[-1]['barrier']:.4f}, loss at the ends {along[0][1]:.4f}, {along[-1][1]:.4f}"
        )
    shares = overlap([ticket for own in tickets for ticket in own])
    return {"names": names, "lines": lines, "overlap": shares.tolist()}


def draw(found: dict[str, Any], out: Path) -> None:
    """Losses on the lines, and the overlap as a heat map."""
    figure = style.Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle("Tickets of one run, and of two", fontweight="bold")
    left, right = figure.subplots(1, 2)
    seen = set()
    for line in found["lines"]:
        run = line["run"]
        label = "between two runs" if run is None else f"neighbours in run {'AB'[run]}"
        colour = style.ORANGE if run is None else COLOURS[run]
        left.plot(*zip(*line["losses"], strict=True), color=colour, label=None if label in seen else label)
        seen.add(label)
    left.set(title="Training loss on the line", xlabel="from one ticket (0) to the other (1)")
    left.set_ylabel("cross entropy (nats)")
    style.logarithmic(left)
    left.legend(frameon=False)
    image = right.imshow(found["overlap"], vmin=0, vmax=1, cmap="viridis")
    right.set(title="Share of connections in common")
    right.set_xticks(range(len(found["names"])), found["names"], rotation=45, ha="right")
    right.set_yticks(range(len(found["names"])), found["names"])
    right.grid(visible=False)
    for (row, column), share in (
        (p, found["overlap"][p[0]][p[1]]) for p in itertools.product(range(len(found["names"])), repeat=2)
    ):
        right.text(
            column,
            row,
            f"{share:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if share > 0.6 else "white",
        )
    figure.colorbar(image, ax=right, shrink=0.8)
    for ending in ("png", "pdf"):
        print(style.save(figure, out / f"basins.{ending}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs=2, help="folders of two finished runs that made tickets")
    parser.add_argument("--examples", type=int, default=10_000, help="training examples that are looked at")
    parser.add_argument("--points", type=int, default=11, help="on each line")
    parser.add_argument("--out", type=Path, default=Path("runs/basins"))
    options = parser.parse_args()
    runs = [Finished(path) for path in options.runs]
    if any(not run.tickets() for run in runs):
        parser.error("a run has no tickets: train it with `tickets: sup`, `edst` or `dst`")
    options.out.mkdir(parents=True, exist_ok=True)
    found = measure(runs, options.examples, options.points)
    (options.out / "basins.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, options.out)


if __name__ == "__main__":
    main()
