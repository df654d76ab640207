"""What commands print on real terminals of 80 and 140 columns, and through a pipe."""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
from tiny import ENVIRONMENT, cli, write_recipe

from regrow._text import KEEP, table, wrapped
from regrow.app.bench.showing import tables
from regrow.app.recipes import load, shipped
from regrow.app.training import build
from regrow.app.training.expected import expected
from regrow.methods.registry import records

WIDTHS = (80, 140)
OWN = [
    record.name for record in records().values() if record.cls.__module__.startswith("regrow.")
]  # no other test's
SAME = ("methods", "recipes", "flops resnet50-cifar")
"""Commands that print the same each time."""
RUN = """
import fcntl, struct, sys, termios
from regrow.__main__ import main
for line in sys.argv[1:]:
    columns, *arguments = line.split()
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, int(columns), 0, 0))
    print("== " + line, flush=True)
    try:
        main(arguments)
    except SystemExit:
        pass
"""


def on_terminal(*lines, cwd):
    """What the command lines print on a terminal; each begins with the columns that it then has."""
    ours, theirs = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-c", RUN, *lines]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=cwd):
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 65536):
                text += part
        except OSError:  # the end, as Linux tells it
            pass
    os.close(ours)
    _, *parts = text.decode().replace("\r\n", "\n").split("== ")
    found = {}
    for part in parts:
        head, _, rest = part.partition("\n")
        columns, _, line = head.partition(" ")
        found.setdefault(int(columns), {})[line.split(" /")[0]] = rest
    return found


def words(text):
    return re.findall(r"\S+", text)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What commands print, by width and command."""
    folder = tmp_path_factory.mktemp("shown")
    train = f"train {write_recipe(folder)}"
    lines = [*SAME, "doctor", "--help", "train --help", "compare --help"]
    made = [f"{width} {line}" for width in WIDTHS for line in (*lines, f"{train} out=run{width}")]
    return on_terminal(*made, cwd=folder)


@pytest.fixture(scope="module")
def piped():
    """What commands print through a pipe, by command."""
    ends = {
        line: subprocess.run(
            [sys.executable, "-m", "regrow", *line.split()],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
        )
        for line in SAME
    }
    return {line: ended.stdout for line, ended in ends.items()}


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_too_long_and_no_word_is_cut(shown, piped, width):
    for line in SAME:
        text = shown[width][line]
        assert max(map(len, text.splitlines())) <= width
        assert sorted(set(words(text))) == sorted(set(words(piped[line])))
    assert (
        max(len(x) for line in ("--help", "train --help") for x in shown[width][line].splitlines()) <= width
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_what_the_machine_has_fits(shown, width):
    rows = shown[width]["doctor"].splitlines()
    assert all(len(row) <= width or len(row.split()[-1]) > width - 20 for row in rows)  # paths stay whole
    heads = [row[:14].strip() for row in rows]
    assert {"kernels", "processor", "optional", "self-check"} <= set(heads)
    assert all(not head or " " not in head for head in heads)  # what follows stands behind the names


@dataclass
class Measured:
    """A row of `regrow bench`."""

    title = "training steps"
    subject: str

    def cells(self):
        heads = ("batch", "sparsity", "pass", "dense ms", "sparse ms", "faster", "GFLOP/s", "utilisation")
        return {"": self.subject, **dict.fromkeys(heads, "12.3 ±4%")}


@pytest.mark.parametrize(("width", "count"), [(80, 2), (140, 1), (None, 1)])
def test_rows_of_measurements_keep_their_names(width, count):
    lines = tables([Measured("linear 768x3072")], width).splitlines()
    assert lines[0] == "training steps"
    assert [line.startswith("linear 768x3072  ") for line in lines].count(True) == count
    assert max(map(len, lines)) <= (width or 140)


@pytest.mark.parametrize("width", WIDTHS)
def test_each_name_begins_a_line(shown, width):
    for line, names in (("methods", OWN), ("recipes", shipped())):
        starts = [row.split(" ")[0] for row in shown[width][line].splitlines()]
        assert set(names) <= set(starts)


def test_what_the_columns_hold_is_said(shown):
    for line in ("methods", "recipes"):
        table, meanings, *_ = shown[80][line].split("\n\n")
        heads = words(table.splitlines()[0])
        assert [row.split(" ")[0] for row in meanings.splitlines() if row[:1].strip()] == heads


def test_a_pipe_gets_one_line_a_row(capsys):
    rows = cli(capsys, "recipes").out.splitlines()
    assert [row.split(" ")[0] for row in rows[1 : len(shipped()) + 1]] == list(shipped())
    assert any(len(row) > 120 for row in rows)


def test_help_shows_repeated_arguments_once(shown):
    assert "[RECIPE] [KEY=VALUE ...]" in shown[80]["train --help"].splitlines()[0]
    assert "[KEY=A,B,C ...]" in shown[80]["compare --help"].splitlines()[0]


def frames(text):
    """The states of a live display, without colours and movements of the cursor."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"[\r\n]|\x1b\[2K", text)]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_and_what_matters_stay(shown, width):
    text = shown[width]["train"]
    last = [frame for frame in frames(text) if frame.startswith("step ")][-1]
    assert len(last) <= width
    assert re.match(r"step 60/60 ━{10,} left 0:00  accuracy \d+\.\d\d%  loss \d\.\d{3}", last)
    assert ("moved" in last) == (width == 140)
    long = [frame for frame in frames(text) if len(frame) > width]
    assert all(len(frame.split()[-1]) > width // 2 for frame in long)  # paths stay whole


def test_tables():
    rows = [("name", "shape", "n", ""), ("fc1", "300 x 784", "1,000", "too small to be faster")]
    assert table(rows) == ["name  shape      n", "fc1   300 x 784  1,000  too small to be faster"]
    assert table(rows, 25, prose=True) == [
        "name  shape      n",
        "fc1   300 x 784  1,000",
        "  too small to be faster",
    ]
    assert table(rows, 20, prose=True, numbers=2) == [
        "name  shape",
        "fc1   300 x 784",
        "  too small to be",
        "  faster",
        "",
        "name      n",
        "fc1   1,000",
    ]
    assert table(rows, 3)[:4] == ["name  shape", "fc1   300 x 784", "", "name  n"]  # never within a cell


def test_wrapped():
    assert wrapped("one two three", 8) == "one two\nthree"
    assert wrapped("data    one two three", 16) == "data    one two\n        three"
    assert wrapped("/a/very/long/path/is/whole one", 8) == "/a/very/long/path/is/whole\none"
    assert wrapped(f"rigl{KEEP}0.1 set{KEEP}0.2", 10) == "rigl 0.1\nset 0.2"
    assert wrapped("one two three", None) == "one two three"


def test_a_recipe_with_its_data_length_and_time(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    recipe.write_text("# Noise with a bright\n# block.\n" + recipe.read_text().lstrip())
    out = cli(capsys, "recipes", recipe).out
    for text in (
        "\n\nNoise with a bright block.\n\n",
        "here    yes\nlength  60 steps of 20 examples\ntime    about ",
        " a step: an estimate from ",
        f"Start it with `regrow train {recipe}`",
    ):
        assert text in out
    found = json.loads(cli(capsys, "recipes", recipe, "--json").out)
    timed = found["expected"]
    assert (timed["steps"], timed["examples"], timed["timed_batch"], timed["made_up"]) == (60, 200, 20, False)
    assert 0 < timed["seconds"] < 1
    assert timed["timed_steps"] > 10


def test_a_recipe_whose_data_are_not_here(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    text = recipe.read_text().replace(f"folder: {tmp_path / 'images'}", "folder: /nowhere")
    recipe.write_text(text.replace("steps: 60", "epochs: 3"))
    out = cli(capsys, "recipes", recipe).out
    assert "here    no: `data.folder` is not a folder: /nowhere\n        Name the folder that holds" in out
    assert "length  3 epochs, steps of 20 examples, how many is known once the data are here\n" in out
    assert " and random data; tests" in out


def test_the_length_of_a_recipe_is_that_of_its_run(tmp_path):
    recipe = load(str(write_recipe(tmp_path))).model_copy(
        update={"steps": None, "epochs": 10, "batch_size": 90, "drop_last": False}
    )
    for validation, steps in ((None, 3), (0.1, 2)):  # of 200 and of 180 examples
        changed = recipe.model_copy(update={"validation": validation})
        assert expected(changed, seconds=0.1).steps == build(changed).total_steps == 10 * steps
