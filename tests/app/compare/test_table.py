import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tiny import write_recipe

from regrow.app.compare import Cell, Row, differences, plan, reached
from regrow.app.compare.progress import shower
from regrow.app.compare.table import Table
from regrow.app.compare.writing import _tex, as_text
from regrow.app.report import draw_comparison


def row(method, accuracies, *, multiplier=1.0, values=(), training=0.1):
    return Row(
        Cell(method, multiplier, values),
        tuple(accuracies),
        100,
        training,
        0.1,
        multiplier,
        1.0,
        "masks",
        300.0,
        False,
    )


def test_differences_in_standard_errors():
    rows = [
        row("rigl", [80, 82, 84]),
        row("static", [70, 71, 72]),
        row("set", [75.0]),
        row("dense", [90, 90, 90]),
    ]
    against = differences(rows)
    assert [d.above.cell.method for d in against] == ["static", "dense"]  # one run has no deviation
    assert against[0].points == -11
    assert against[0].error == pytest.approx((2**2 / 3 + 1**2 / 3) ** 0.5)
    assert str(against[0]) == "static against rigl: -11.00 points, -8.5 standard errors"
    assert str(against[1]) == "dense against rigl: +8.00 points, +6.9 standard errors"


def test_only_what_is_alike_is_compared():
    rows = [
        row("rigl", [80, 82]),
        row("static", [70, 71], multiplier=5.0),
        row("rigl", [85, 86], multiplier=5.0),
    ]
    (only,) = differences(rows)
    assert (only.above.cell.multiplier, only.points) == (5.0, -15)
    assert (
        str(differences([row("a", [1, 1]), row("b", [2, 2])])[0]) == "b against a: +1.00 points, no deviation"
    )


def test_when_a_condition_came_near_dense():
    dense = replace(row("dense", [90.0, 91.0]), curve=((10.0, 80.0), (20.0, 90.0), (30.0, 90.5)))
    rigl = replace(row("rigl", [90.0]), curve=((4.0, 89.9), (8.0, 90.0)))
    never = replace(row("static", [85.0]), curve=((4.0, 85.0),))
    unknown = row("set", [90.0])
    assert [str(one) for one in reached([rigl, dense, never, unknown])] == [
        "rigl to 90.00% (0.5 points below dense): 8.0 s of training",
        "dense to 90.00% (0.5 points below dense): 20.0 s of training",
        "static to 90.00% (0.5 points below dense): never",
    ]
    assert reached([rigl]) == []


def test_a_plot_over_time(tmp_path):
    rows = [row("dense", [90.0]), row("rigl", [89.0])]
    curved = [{**one.to_dict(), "curve": ((1.0, 70.0), (2.0, 80.0), (3.0, one.mean))} for one in rows]
    paths = draw_comparison(curved, [], tmp_path / "name", "title")
    assert [path.name for path in paths if path.suffix == ".png"] == ["name-flops.png", "name-time.png"]


def test_latex_is_escaped():
    assert _tex(r"50% of a_b & {c} \ ~ ^ $ #") == (
        r"50\% of a\_b \& \{c\} \textbackslash{} \textasciitilde{} \textasciicircum{} \$ \#"
    )


@pytest.mark.parametrize(
    "values", [("0.01", "0.1", "1"), ("0.1", "0.2"), ("[300,100]", "[50]"), ("sgd", "adam")]
)
def test_a_plot_for_each_key(tmp_path, values):
    rows = [
        row(
            method,
            [80 + i, 81],
            multiplier=m,
            values=(("model.x", v),),
            training=None if method == "odd" else 0.1 * m,
        )
        for method in ("rigl", "dense", "odd")
        for i, v in enumerate(values)
        for m in (1.0, 10.0)
    ]
    paths = draw_comparison([one.to_dict() for one in rows], ["model.x"], tmp_path / "name", "title")
    assert [path.name for path in paths] == [
        f"name-{plot}.{ending}" for plot in ("flops", "length", "model.x") for ending in ("png", "pdf")
    ]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_no_plot_where_there_is_nothing_to_see(tmp_path):
    assert draw_comparison([row("dense", [80]).to_dict()], [], tmp_path / "name", "title") == []


@pytest.mark.parametrize("width", [80, 140, None])
def test_names_stay_whole_on_a_terminal(tmp_path, width):
    grid = plan(str(write_recipe(tmp_path)), ["rigl", "static"], overrides=["optimizer.lr=0.05,0.1"])
    values = (("optimizer.lr", "0.05"),)
    rows = tuple(row(name, [80, 82, 84], values=values) for name in ("rigl", "static"))
    text = as_text(Table(grid, rows, {"threads": 1, "device": "cpu"}), width)
    piped = as_text(Table(grid, rows, {"threads": 1, "device": "cpu"}))
    assert set(text.split()) == set(piped.split())
    heads = [line for line in text.splitlines() if line.startswith("method ")]
    assert len(heads) == (2 if width == 80 else 1)
    assert width is None or max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 140])
def test_names_stay_whole_beside_the_bars(tmp_path, width):
    grid = plan(str(write_recipe(tmp_path)), ["rigl", "static"], folder=tmp_path / "runs")
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    with shower(console, grid.runs) as show:
        show.running(grid.runs)
        grid.runs[0].folder.mkdir(parents=True)
        log = grid.runs[0].folder / "metrics.jsonl"
        log.write_text('{"kind": "train", "step": 30, "epoch": 3.0, "loss": 0.25}\n')
        show.running(grid.runs)
        show.bars.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", stream.getvalue())
    assert re.search(r"^rigl seed 0 +━{10,}[╸╺ ]+50%  loss 0.250", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= width
