"""Recipes that are damaged or mean harm: each has its answer. What a recipe runs is said, and not run to compare."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corrupt import answers, check, serve
from tiny import ENVIRONMENT, cli, write_recipe

from regrow.app.cli.main import main
from regrow.app.compare.grid import plan
from regrow.app.recipes import as_yaml, code, load, read
from regrow.errors import RegrowValueError

Make = Callable[[Path], Any]
PAYLOAD = "from pathlib import Path\nPath('RAN').touch()\n"
LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


def content(text: str | bytes) -> Make:
    return lambda folder: (folder / "bad.yaml").write_bytes(text.encode() if isinstance(text, str) else text)


def tiny(**changes: str) -> Make:
    """The recipe of the tests with keys changed, in YAML."""

    def make(folder: Path) -> None:
        lines = write_recipe(folder).read_text().splitlines()
        kept = [line for line in lines if line.partition(":")[0] not in changes]
        (folder / "bad.yaml").write_text("\n".join([*kept, *(f"{k}: {v}" for k, v in changes.items())]))

    return make


def beside(name: str, source: bytes, **changes: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(source)
        tiny(**changes)(folder)

    return make


CASES: dict[str, tuple[Make, str]] = {
    "recipe-binary": (content(b"\x80\x05\x95\xff"), r"bad.yaml is no YAML: .*\nGive the YAML file"),
    "recipe-zeros": (content(bytes(64)), r"(?s)bad.yaml is no YAML: .*\nGive the YAML file"),
    "recipe-empty": (content(""), r"must hold a mapping of keys to values, got None\nGive the YAML file"),
    "recipe-list": (
        content("- 1\n- 2\n"),
        r"must hold a mapping of keys to values, got \[1, 2\]\nGive the YAML",
    ),
    "recipe-keys": (content("1: 2\n"), r"must hold a mapping of keys to values, got \{1: 2\}\nGive the YAML"),
    "recipe-tag": (
        content("model: !!python/object/apply:os.system ['touch RAN']\n"),
        r"(?s)bad.yaml is no YAML: could not determine a constructor .*\nGive the YAML file",
    ),
    "recipe-name-tag": (
        content("model: !!python/name:os.system\n"),
        r"(?s)bad.yaml is no YAML: could not determine",
    ),
    "recipe-deep": (
        content("a: " + "[" * 20_000),
        r"bad.yaml is no YAML: it is nested too deep\nGive the YAML",
    ),
    "recipe-laughs": (
        content(LAUGHS),
        r"refers to itself, or to more than 1,000,000 values\nWrite the values",
    ),
    "recipe-itself": (
        content("a: &a [*a]\n"),
        r"refers to itself, or to more than 1,000,000 values\nWrite the",
    ),
    "recipe-alias": (
        content("a: *nothing\n"),
        r"(?s)bad.yaml is no YAML: found undefined alias.*\nGive the YAML",
    ),
    "recipe-digits": (
        tiny(seed="1" * 5000),
        r"bad.yaml is no YAML: Exceeds the limit .*\nGive the YAML file",
    ),
    "recipe-long": (content("a" * 1_000_001), r"bad.yaml has more than 1,000,000 bytes\nGive the YAML file"),
    "recipe-pipe": (
        lambda folder: os.mkfifo(folder / "bad.yaml"),
        r"there is no recipe .*bad.yaml.*\nShipped are",
    ),
    "recipe-climbs": (
        tiny(name="../../x"),
        r"`name` must be a plain name .*, got '../../x'\nTake out slashes",
    ),
    "recipe-absolute": (
        tiny(name="/tmp/x"),
        r"`name` must be a plain name .*, got '/tmp/x'\nTake out slashes",
    ),
    "recipe-hidden": (tiny(name=".."), r"`name` must be a plain name .*, got '\.\.'\nTake out slashes"),
    "recipe-escape": (tiny(name='"a\\u001b[31m"'), r"`name` must be a plain name .*\nTake out slashes"),
    "recipe-imports-text": (
        tiny(imports="methods.py"),
        r"`imports` must be a list of files, for example \[meth",
    ),
    "recipe-imports-numbers": (
        tiny(imports="[1]"),
        r"`imports` must be a list of files, for example \[methods",
    ),
    "recipe-imports-nothing": (tiny(imports="[nothing.py]"), r"`--import` .*nothing.py: no such file"),
    "recipe-imports-image": (
        beside("mine.png", b"\x89PNG", imports="[mine.png]"),
        r"`--import` .*mine.png is no Python file\nIts name must end in .py",
    ),
    "recipe-imports-damaged": (
        beside("damaged_methods.py", b"def f(:\n", imports="[damaged_methods.py]"),
        r"`--import` .*damaged_methods.py is no Python: .*\nGive a Python file",
    ),
    "recipe-imports-binary": (
        beside("binary_methods.py", b"\x80\xff\x00", imports="[binary_methods.py]"),
        r"`--import` .*binary_methods.py is no Python: .*\nGive a Python file",
    ),
    "recipe-relative": (
        tiny(model="..os:system"),
        r"`model` '..os:system' must be package.module:function\nWrite",
    ),
    "recipe-no-module": (
        tiny(model='":system"'),
        r"`model` ':system' must be package.module:function\nWrite",
    ),
    "recipe-path": (tiny(model="a/b:c"), r"`model` 'a/b:c' must be package.module:function\nWrite names"),
}


def read_recipe(folder: Path) -> None:
    load(str(folder / "bad.yaml"))


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    made = {name: make for name, (make, _) in CASES.items()}
    return answers(__file__, made, tmp_path_factory.mktemp("corrupt"))


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_that_is_corrupt_has_its_answer(answered, case):
    check(answered.get(case), CASES[case][1])


def test_code_of_others_is_said_once_and_ones_own_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(code, "_told", set())
    beside("their_methods.py", PAYLOAD.encode(), imports="[their_methods.py]")(tmp_path)
    recipe = load("bad.yaml")
    assert capsys.readouterr().err == f"note: bad.yaml runs code: imports {tmp_path / 'their_methods.py'}\n"
    assert (tmp_path / "RAN").exists()
    (tmp_path / "config.yaml").write_text(as_yaml(recipe))
    assert read(tmp_path / "config.yaml") == recipe
    (tmp_path / "mine.py").write_text("from regrow.models import mlp as net\n")
    monkeypatch.syspath_prepend(tmp_path)
    keys = ["model=mine:net", "model.inputs=64", "model.hidden=[8]", "model.classes=4"]
    mine = load("tiny.yaml", keys, imports=["mine.py"])
    assert capsys.readouterr().err == ""  # told before, or named by whoever runs it
    (tmp_path / "theirs.yaml").write_text(as_yaml(mine))
    load("theirs.yaml")
    assert (
        capsys.readouterr().err
        == f"note: theirs.yaml runs code: imports {tmp_path / 'mine.py'}, model mine:net\n"
    )


def test_configurations_are_compared_without_running_what_they_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    (own,) = plan("tiny.yaml", ["set"], folder=tmp_path / "out").runs
    folder, config = own.folder, as_yaml(own.recipe)
    folder.mkdir(parents=True)
    (tmp_path / "payload.py").write_text(PAYLOAD)
    foreign = {
        "imports": config.replace("imports: []", f"imports: [{tmp_path / 'payload.py'}]"),
        "model": config.replace("name: mlp", "name: payload:net"),
        "data": config.replace("name: idx", "name: payload:net"),
    }
    for text in foreign.values():
        assert text != config
        (folder / "config.yaml").write_text(text)
        (run,) = plan("tiny.yaml", ["set"], folder=tmp_path / "out").runs
        assert run.folder == folder.with_name(f"{folder.name}-2")
    assert not (tmp_path / "RAN").exists()
    assert "payload" not in sys.modules
    (folder / "config.yaml").write_text(config)
    (run,) = plan("tiny.yaml", ["set"], folder=tmp_path / "out").runs
    assert run.folder == folder
    (folder / "summary.json").write_text("{")
    ended = cli(capsys, "compare", "tiny.yaml", "--methods", "set", "--seeds", "1", "--out", tmp_path / "out")
    assert ended.code == 2
    assert (
        f"cannot read {folder / 'summary.json'}: it is damaged\nCopy the whole run folder again" in ended.err
    )


def test_names_stay_in_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path)
    for command in (["train", str(recipe), "name=../../x"], ["compare", str(recipe), "name=../../x"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "tiny.yaml"]
    with pytest.raises(RegrowValueError, match=r"`name` must be a plain name"):
        plan(str(recipe), ["set"], overrides=["name=../../x"])


def test_a_foreign_run_says_what_it_runs_before_it_runs(tmp_path):
    """The whole command: what is said comes first, even where the code ends the process."""
    (tmp_path / "ends.py").write_text("import os\nos._exit(7)\n")
    tiny(imports="[ends.py]")(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "regrow", "train", "bad.yaml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (
        7,
        f"note: bad.yaml runs code: imports {tmp_path / 'ends.py'}\n",
    )


if __name__ == "__main__":
    serve(read_recipe)
