"""Can a sparse network leave a bad minimum? The experiment of the RigL article (arXiv 1911.11134, section 4.4).

A 784-300-100-10 network on Fashion-MNIST is trained with a fixed sparse topology (Static) until its loss is flat.
From there it is trained again, at the same rate and for as many steps, once with RigL and once with Static. Then the
training loss is followed along paths from a magnitude-pruned solution to the static one: the straight line,
quadratic and cubic Bezier curves in the space that both topologies span, a quadratic one through the dense space.

    python examples/studies/escape.py [--seeds 3] [--epochs 20] [--sparsity 0.98] [--limit 10000] [--out runs/escape]

A run of 12,000 steps at 99.5% on 10,000 examples (--limit 10000 --epochs 120 --curve-epochs 30 --sparsity 0.995) shows
the effect clearly, and takes four minutes a seed. Leaves escape.json, escape.png and escape.pdf; seeds that are
finished are not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.app.report import style
from regrow.data import Dataset, fashion_mnist, order
from regrow.measure.landscape import Curve, barrier, profile
from regrow.models import mlp

BATCH, EVERY = 100, 20
Method = Callable[..., object]
PATHS = {  # name: degree and space of the curve
    "straight line": (1, "union"),
    "quadratic, both topologies": (2, "union"),
    "cubic, both topologies": (3, "union"),
    "quadratic, dense space": (2, "dense"),
}


def train(
    model: nn.Module,
    data: Dataset,
    steps: int,
    rate: float,
    seed: int,
    method: Method | None = None,
    **options: Any,
) -> list[float]:
    """Train `model` in place with SGD and a cosine; returns the mean loss of every `EVERY` steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * t / steps)) / 2)
    if method is not None:
        method(model, optimizer, total_steps=steps, update_every=max(1, min(100, steps // 50)), **options)
    means, total = [], torch.zeros(())
    torch.manual_seed(seed)
    for step in range(steps):
        epoch, place = divmod(step, len(data.train_inputs) // BATCH)
        if step == 0 or place == 0:
            indices = order(seed, epoch, len(data.train_inputs))
        batch = indices[place * BATCH : (place + 1) * BATCH]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.train_inputs[batch]), data.train_targets[batch])
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        if (step + 1) % EVERY == 0:
            means.append(float(total) / EVERY)
            total.zero_()
    return means


def loss_of(model: nn.Module, data: Dataset) -> float:
    """Training loss of `model` over all training examples."""
    with torch.inference_mode():
        return float(F.cross_entropy(model(data.train_inputs), data.train_targets))


def one_seed(
    seed: int, steps: int, curve_steps: int, sparsity: float, rate: float, limit: int | None
) -> dict[str, Any]:
    """Run the whole experiment with one seed."""
    torch.set_num_threads(1)
    data = fashion_mnist(limit=limit)
    levels = {"layers.0": sparsity, "layers.2": 0.9 * sparsity}  # the last layer stays dense
    torch.manual_seed(seed)
    static = regrow.sparsify(mlp(), distribution=levels, seed=seed)
    result: dict[str, Any] = {"seed": seed, "static": {"losses": train(static, data, steps, rate, seed)}}
    result["static"]["loss"] = loss_of(static, data)
    for name, method in (("RigL", regrow.RigL), ("Static", None)):
        again = copy.deepcopy(static)
        losses = train(again, data, steps, rate, seed + 1000, method)
        result[name] = {"losses": losses, "loss": loss_of(again, data)}
    torch.manual_seed(seed)
    pruned = regrow.sparsify(mlp(), distribution=dict.fromkeys(levels, 0.0), seed=seed)
    final = {f"{name}.weight": level for name, level in levels.items()}
    train(pruned, data, steps, rate, seed, regrow.Pruning, final_sparsity=final)
    result["pruned"] = {"loss": loss_of(pruned, data)}
    whole = [(data.train_inputs, data.train_targets)]
    result["paths"] = {}
    for name, (degree, space) in PATHS.items():
        curve = Curve(pruned, static, degree=degree, space=space)
        if degree > 1:
            train(curve, data, curve_steps, rate, seed)
        along = profile(curve, F.cross_entropy, whole, points=31)
        result["paths"][name] = {"losses": along, "barrier": barrier(along)}
    return result


def flat(losses: list[float]) -> float:
    """Relative change of the loss over the last fifth: of its second half against its first."""
    last = losses[-max(2, len(losses) // 5) :]
    first, second = statistics.mean(last[: len(last) // 2]), statistics.mean(last[len(last) // 2 :])
    return (second - first) / first


def draw(results: list[dict[str, Any]], out: Path) -> None:
    """Training loss before and after the restart, and along the paths: a thin line a seed, a thick one for the mean."""
    figure = style.Figure(figsize=(11, 4.6), layout="constrained")
    figure.suptitle("Escape from a bad minimum", fontweight="bold")
    left, right = figure.subplots(1, 2)

    def lines(axes: Any, x: list[float], curves: list[list[float]], colour: str, label: str) -> None:
        for curve in curves:
            axes.plot(x, curve, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(
            x,
            [statistics.mean(v) for v in zip(*curves, strict=True)],
            color=colour,
            linewidth=1.8,
            label=label,
        )

    count = len(results[0]["static"]["losses"])
    before = [EVERY * (i + 1) for i in range(count)]
    lines(left, before, [r["static"]["losses"] for r in results], style.GREY, "Static")
    for name, label, colour in (
        ("Static", "Static again", style.BLUE),
        ("RigL", "RigL from there", style.ORANGE),
    ):
        lines(left, [before[-1] + x for x in before], [r[name]["losses"] for r in results], colour, label)
    left.set(title="Training loss", xlabel="optimizer step", ylabel="cross entropy (nats)")
    style.thousands(left)
    for name, colour in zip(PATHS, (style.INK, style.BLUE, style.GREEN, style.ORANGE), strict=True):
        paths = [r["paths"][name]["losses"] for r in results]
        lines(right, [t for t, _ in paths[0]], [[loss for _, loss in path] for path in paths], colour, name)
    right.set(title="Training loss along paths", xlabel="pruned (0) to static (1)")
    for axes in (left, right):
        style.logarithmic(axes)
        axes.legend(frameon=False, fontsize=9)
    right.set_ylim(top=4 * right.get_ylim()[1])  # room for the legend
    for ending in ("png", "pdf"):
        print(style.save(figure, out / f"escape.{ending}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of each training")
    parser.add_argument("--curve-epochs", type=int, default=5, help="for the inner points of a curve")
    parser.add_argument(
        "--sparsity", type=float, default=0.98, help="of the first layer; the second has 0.9 of it"
    )
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate, of all trainings")
    parser.add_argument("--limit", type=int, help="use so many training examples only")
    parser.add_argument("--out", type=Path, default=Path("runs/escape"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    epoch = len(fashion_mnist(limit=options.limit).train_inputs) // BATCH
    lengths = (options.epochs * epoch, options.curve_epochs * epoch)
    settings = (*lengths, options.sparsity, options.rate, options.limit)

    def file(seed: int) -> Path:
        words = (
            f"seed{seed}-{options.epochs}+{options.curve_epochs}epochs-{options.sparsity}-lr{options.rate}"
        )
        return options.out / f"{words}{f'-{options.limit}' if options.limit else ''}.json"

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        waiting = {
            s: pool.submit(one_seed, s, *settings) for s in range(options.seeds) if not file(s).is_file()
        }
        for seed, future in waiting.items():
            file(seed).write_text(json.dumps(future.result()) + "\n", encoding="utf-8")
            print(f"seed {seed}: {time.monotonic() - start:.0f} s since the start", flush=True)
    results = [json.loads(file(seed).read_text(encoding="utf-8")) for seed in range(options.seeds)]

    def row(words: str, values: list[float]) -> None:
        deviation = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
        print(f"{words:<44} {statistics.mean(values):>9.4f} {deviation:>10}")

    print(f"\n{'':<44} {'mean':>9} {'deviation':>10}   n = {len(results)}, sparsity {options.sparsity}")
    row("Static: training loss", [r["static"]["loss"] for r in results])
    row("Static: relative change over the last fifth", [flat(r["static"]["losses"]) for r in results])
    for name in ("Static", "RigL"):
        row(f"again with {name}: training loss", [r[name]["loss"] for r in results])
    ratios = [r["RigL"]["loss"] / r["Static"]["loss"] for r in results]
    row("RigL's loss over Static's", ratios)
    row("Pruned: training loss", [r["pruned"]["loss"] for r in results])
    for name in PATHS:
        row(f"barrier, {name}", [r["paths"][name]["barrier"] for r in results])
    document = {"settings": vars(options) | {"out": str(options.out)}, "ratios": ratios, "seeds": results}
    (options.out / "escape.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(results, options.out)
    print(f"{time.monotonic() - start:.0f} s in all")


if __name__ == "__main__":
    main()
