"""A comparison's table as text, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

from regrow._files import write_atomically
from regrow._text import table, wrapped
from regrow.app.compare.grid import Grid
from regrow.app.compare.running import summary_of
from regrow.app.compare.table import Row, Table, differences, reached
from regrow.app.tasks import Metric
from regrow.app.training.summary import TIMES

LONGEST = 180
"""Characters of a file's name, so that every file system takes it."""


def conditions(grid: Grid) -> str:
    """Return what the files of a comparison are called: recipe, methods, seeds, lengths, keys with their values."""
    base = grid.base
    parts = [base.recipe.name, "+".join(base.methods), f"{base.seeds}seed" + ("s" if base.seeds > 1 else "")]
    if base.multipliers != (1.0,):
        parts.append("+".join(f"{m:g}x" for m in base.multipliers))
    parts += [f"{key}={'+'.join(values)}" for key, values in base.axes.items()]
    parts += [key for key in base.fixed if not key.startswith("threads=")]
    name = re.sub(r"[^\w.+=,-]+", "_", "-".join(parts))
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _multiple(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}x"


def _further(metric: Metric) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row.further.get(metric.name)
        return "-" if value is None else metric.number(metric.shown(value))

    return text


def columns(table: Table) -> dict[str, Callable[[Row], str]]:
    """Return the head of each column, and its text for a row."""
    base, measures, best = table.grid.base, table.measures, table.measures.best
    result: dict[str, Callable[[Row], str]] = {"method": lambda row: row.cell.method}
    if len(base.multipliers) > 1 or base.multipliers != (1.0,):
        result["length"] = lambda row: f"{row.cell.multiplier:g}x"
    for key in base.axes:
        result[key] = lambda row, key=key: dict(row.cell.values).get(key, "-")  # type: ignore[misc]
    return {
        **result,
        "n": lambda row: str(row.n),
        best.head: lambda row: best.number(row.mean),
        "deviation": lambda row: "-" if row.deviation is None else best.number(row.deviation),
        **{metric.head: _further(metric) for metric in measures.further},
        **({"networks": lambda row: str(row.networks)} if any(r.networks > 1 for r in table.rows) else {}),
        "connections": lambda row: _count(row.connections),
        "training FLOPs": lambda row: _multiple(row.training),
        "test FLOPs": lambda row: _multiple(row.test),
        "seconds": lambda row: f"{row.seconds:.1f}" + ("*" if row.time_is in ("masks", "mixed") else ""),
        "peak MB": lambda row: _count(row.memory),
        "needs dense": lambda row: "yes" if row.needs_dense else "no",
    }


def notes(table: Table) -> list[str]:
    """Return what stands beneath the table."""
    rows, best = table.rows, table.measures.best
    further = [f"{metric.name}: {metric.meaning}" for metric in table.measures.further if metric.meaning]
    points = f", in{best.points}" if best.points else ""
    result = [
        f"n: finished runs; {best.name}: their mean, and its deviation over the runs{points}; connections: at the end, "
        "those of dense layers too; seconds: of training, the mean; peak MB: of the process, the largest.",
        "FLOPs: multiples of the dense network trained for the recipe's own length; of training measured (the density "
        "that the runs had over time, updates, dense gradients), of a test counted.",
        *([f"{'; '.join(further)}; of what is tested, means."] if further else []),
        "needs dense: memory or compute of the dense network at any time but an update, in the method itself.",
    ]
    if any(row.networks > 1 for row in rows):
        result.append(
            "networks: how many a test runs, an ensemble's members; connections and FLOPs are those of all of them."
        )
    marked = sorted({row.time_is for row in rows} & {"masks", "mixed"})
    result += [f"* time {TIMES[kind]}." for kind in marked]
    machine = table.machine
    packages = machine.get("packages", {})
    where = [
        str(machine.get("processor") or machine.get("platform") or "unknown processor"),
        f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''} a run on {machine['device']}",
        *(f"{name} {packages[name]}" for name in ("torch", "regrow") if name in packages),
    ]
    result.append("Measured on " + ", ".join(where) + ".")
    if machine.get("reference"):
        result.append(f"Times are not those of the kernels: {machine['reference']}")
    return [*result, *map(str, differences(rows)), *map(str, reached(rows))]


def as_text(found: Table, width: int | None = None) -> str:
    """Return aligned columns, one line a row; on a terminal of `width` the columns that do not fit stand in a
    table below.
    """
    lines = table(_lines(found), width, numbers=1)
    return wrapped("\n".join([*lines, "", *notes(found)]) + "\n", width)


def as_markdown(table: Table) -> str:
    """Return a table of GitHub's Markdown, the best mean of each length and value in bold."""
    head, *body = _lines(table)
    place = head.index(table.measures.best.head)
    for row, line in zip(table.rows, body, strict=True):
        line[place] = f"**{line[place]}**" if row in _best(table) else line[place]
    escaped = [
        [cell.replace("|", "\\|").replace("*", "\\*") if i != place else cell for i, cell in enumerate(line)]
        for line in body
    ]
    lines = [head, ["---"] * len(head), *escaped]
    return (
        "\n".join("| " + " | ".join(line) + " |" for line in lines)
        + "\n\n"
        + "\n".join(f"- {note.replace('*', chr(92) + '*')}" for note in notes(table))
        + "\n"
    )


def as_latex(table: Table) -> str:
    """Return a ``tabular`` with nothing but LaTeX's own rules, the best means in bold."""
    head, *body = _lines(table)
    place = head.index(table.measures.best.head)
    rows = []
    for row, line in zip(table.rows, body, strict=True):
        cells = [_tex(cell) for cell in line]
        cells[place] = f"\\textbf{{{cells[place]}}}" if row in _best(table) else cells[place]
        rows.append(" & ".join(cells) + r" \\")
    return (
        "\n".join(
            [
                *(f"% {note}" for note in notes(table)),
                f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
                r"\hline",
                " & ".join(_tex(cell) for cell in head) + r" \\",
                r"\hline",
                *rows,
                r"\hline",
                r"\end{tabular}",
            ]
        )
        + "\n"
    )


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def as_csv(table: Table) -> str:
    """Return one line a condition, numbers unrounded."""
    axes = list(table.grid.base.axes)
    own = [
        "n",
        "mean",
        "deviation",
        *(metric.name for metric in table.measures.further),
        "networks",
        "connections",
        "training",
        "test",
        "length",
        "seconds",
        "time_is",
        "memory",
    ]
    best = table.measures.best
    head = ["method", "multiplier", *axes, *own, "needs_dense", best.values]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, head, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        each = [f"{value:.4f}" if best.percent else repr(value) for value in row.values]
        writer.writerow({**row.to_dict(), best.values: " ".join(each)})
    return stream.getvalue()


def runs_as_json(table: Table) -> str:
    """Return one record a run, with its folder and all of its summary."""
    return (
        json.dumps(
            [
                {"run": str(run.folder), "cell": str(run.cell), "seed": run.seed, **summary_of(run)}
                for run in table.grid.runs
                if run.finished
            ],
            indent=2,
        )
        + "\n"
    )


def write(table: Table) -> list[Path]:
    """Write the table in the folder of the comparison: ``.txt``, ``.csv``, ``.md``, ``.tex``; and the runs as JSON."""
    stem = table.grid.folder / conditions(table.grid)
    forms: dict[str, Callable[[Table], str]] = {
        "txt": as_text,
        "csv": as_csv,
        "md": as_markdown,
        "tex": as_latex,
        "runs.json": runs_as_json,
    }
    texts = {ending: form(table).encode() for ending, form in forms.items()}
    return [write_atomically(f"{stem}.{ending}", text_writer(text)) for ending, text in texts.items()]


def text_writer(content: bytes) -> Callable[[Path], int]:
    """Return a function that writes `content` to the path it gets."""
    return lambda path: path.write_bytes(content)


def _lines(table: Table) -> list[list[str]]:
    shown = columns(table)
    return [list(shown), *([text(row) for text in shown.values()] for row in table.rows)]


def _best(table: Table) -> list[Row]:
    groups: dict[object, list[Row]] = {}
    for row in table.rows:
        groups.setdefault((row.cell.multiplier, row.cell.values), []).append(row)
    best = table.measures.best
    return [best.best(rows, lambda row: row.mean) for rows in groups.values() if len(rows) > 1]
