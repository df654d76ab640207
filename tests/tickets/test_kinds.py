"""One record a kind of tickets, and a user's own kind in all that asks for it."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
from tiny import ENVIRONMENT, cli, write_recipe

import regrow
from regrow.accounting import ticket_multiples
from regrow.errors import RegrowValueError
from regrow.tickets import (
    FreeTickets,
    Plan,
    SupTickets,
    ensembles,
    kind_of,
    kinds,
    register,
    registry,
    superposing,
)

PACKAGE = Path(regrow.__file__).parent
OWN = '''
"""A user's own kind of tickets: the networks at the ends of a few windows, as an ensemble."""

from regrow.tickets import Cost, Phases, Plan, copied, register


def plan(total, epoch, *, tickets: int = 2, every: int | None = None, share: float | None = None) -> Plan:
    length = every or int((share or 0.2) * total)
    return Plan(total - tickets * length, tickets, length, total)


class Last:
    def __init__(self, method, plan):
        self.method, self.plan, self.found = method, plan, []
        Phases(method, start=plan.start, count=plan.count, length=plan.length, rate=lambda progress: 0.01)

    def due(self, step):
        return step > self.plan.start and (step - self.plan.start) % self.plan.length == 0

    def consider(self, score):
        return True

    def collect(self, batches):
        self.found.append(copied(self.method.model, self.method))
        return self.found[-1]

    @property
    def networks(self):
        return self.found

    def state_dict(self):
        return {"models": [one.state_dict() for one in self.found]}

    def load_state_dict(self, state):
        self.found = []
        for tensors in state["models"]:
            model = copied(self.method.model, self.method)
            model.load_state_dict(tensors)
            self.found.append(model)


register(
    "last",
    plan,
    Last,
    result="ensemble",
    made="of {0} networks that followed one another",
    alternatives={"every": None, "share": 0.2},
    cost=Cost("f_S/f_D", lambda run: run.forward * run.multiplier),
    method_options={"stop_fraction": 1.0},
    schedule="constant",
)
'''


@pytest.mark.parametrize(
    ("plan", "cls", "own"),
    [
        (superposing.plan, SupTickets, {"share", "cycle_epochs"}),
        (ensembles.windows, FreeTickets, {"start_epochs", "start_steps", "ticket_epochs"}),
    ],
)
def test_options_and_defaults_are_those_of_the_class(plan, cls, own):
    said, of_class = (inspect.signature(one).parameters for one in (plan, cls))
    given = of_class.keys() - {"method", "start", "cycles", "cycle_steps", "tickets", "ticket_steps"}
    assert given == said.keys() - own - {"total", "epoch", "start", "cycle_steps", "tickets", "ticket_steps"}
    for name in given:
        assert (said[name].default, said[name].annotation) == (
            of_class[name].default,
            of_class[name].annotation,
        )


def _texts(source: str) -> list[str]:
    """String constants that are no docstrings, and names."""
    tree = ast.parse(source)
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and node.value is not None
    }
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in documents]
    names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
    return [text for text in [*strings, *names] if isinstance(text, str)]


def test_no_kind_is_named_outside_of_its_record():
    word = re.compile(r"\b(sup|edst|dst|SupTickets|FreeTickets|Superposing|Refining)\b")
    files = [file for room in ("app", "accounting") for file in (PACKAGE / room).rglob("*.py")]
    assert len(files) > 50
    named = {file.name: [t for t in _texts(file.read_text()) if word.search(t)] for file in files}
    assert {name: texts for name, texts in named.items() if texts} == {}


@pytest.mark.filterwarnings("ignore:.*leaves no update within")
def test_a_kind_of_the_user_s_has_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    monkeypatch.setattr(registry, "_kinds", kinds())  # the kind stays in this test
    recipe, own, run = write_recipe(tmp_path), tmp_path / "own_tickets.py", tmp_path / "run"
    own.write_text(OWN)
    more = ["--import", own, "steps=30", "evaluate_every=10"]
    ended = cli(capsys, "train", recipe, f"out={run}", "tickets={name: last, every: 5}", *more)
    assert ended.code == 0, ended.err
    assert "tickets last: 2 windows of 5 steps after the first 20 of 30" in ended.out
    assert "of 2 networks that followed one another" in ended.out
    assert "no picture" not in ended.out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["networks"], summary["tickets"]["kind"]) == (2, "last")
    assert {path.name for path in run.glob("*.png")} >= {"tickets.png", "overlap.png"}
    assert [path.name for path in sorted((run / "tickets").iterdir())] == [
        "0.safetensors",
        "1.safetensors",
    ]
    assert kind_of("last").options == {"tickets", "every", "share"}
    assert ticket_multiples(0.2, 2)["last"] == pytest.approx(0.2)
    # a length that is given replaces the other unit; a part of what it may be called is not a name
    keys = ["tickets={name: last, every: 5}", "tickets.share=0.1", *more]
    assert cli(capsys, "train", recipe, f"out={tmp_path / 'other'}", *keys).code == 0
    assert "share: 0.1" in (tmp_path / "other" / "config.yaml").read_text()
    out = tmp_path / "compared"
    methods = ["--methods", "last-set,rigl", "--seeds", "1", "--out", out, "last-set.tickets.every=4"]
    ended = cli(capsys, "compare", recipe, *methods, *more, "--json")
    assert ended.code == 0, ended.err
    rows = {row["method"]: row for row in json.loads(ended.out)["rows"]}
    assert rows["last-set"]["networks"] == 2
    config = (out / "last-set-seed0" / "config.yaml").read_text()
    assert "stop_fraction: 1.0" in config
    assert "name: constant" in config


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "a-b"}, "`name` must be letters and digits, as an identifier of Python, got 'a-b'"),
        ({"name": "sup"}, "`name` 'sup' is taken by regrow.tickets.superposing.plan"),
        (
            {"plan": lambda epoch, total: None},
            r"`plan` must take \(total, epoch, \*, ...\), got \(epoch, total\)",
        ),
        ({"make": None}, "`plan` must take `tickets`, how many runs there are, where `make` is None"),
        ({"alternatives": {"every": 3}}, "`alternatives` must be options of `plan`, got every"),
        ({"result": "one"}, "`result` must be one of superposed, ensemble, last, got 'one'"),
    ],
)
def test_a_record_that_cannot_be(arguments, text):
    def plan(total, epoch):
        return Plan(0, 1, total, total)

    given = {"name": "odd", "plan": plan, "make": object, "result": "ensemble", "made": "", **arguments}
    with pytest.raises(RegrowValueError, match=text):
        register(given.pop("name"), given.pop("plan"), given.pop("make"), **given)
    assert "odd" not in kinds()
