"""Every block of the README, CONTRIBUTING, SECURITY and docs/ is tried.

- A ```python block runs, those of one file one after the other in one namespace, in an empty folder.
- A ```bash, ```sh or ```console block: each command must exist (targets of make, files, subcommands and
  options of `regrow`, recipes by name).

An HTML comment on the line before a block says more; the reader does not see it:

- `<!-- run -->` before a shell block: its `regrow` and `python` commands run for real;
  `<!-- run: steps=20 -->` gives `regrow train` more keys, so that it is cheap.
- `<!-- file: mine.py -->` before a python block: it is also written to that file, for later commands. A ```yaml block
  with a file is a recipe: it is written, and must hold no key or value that is not allowed.
- `<!-- skip: reason -->` before a python block: it is compiled, not run.
- `<!-- before` ... code ... `-->` anywhere: python that runs at that point (what the reader's script has).

Blocks of one file share the folder. Docstring examples are run by pytest itself (`--doctest-modules`).
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from regrow import RegrowError
from regrow.app import recipes
from regrow.methods import registry

ROOT = Path(__file__).parent.parent
BESIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*BESIDE, *sorted((ROOT / "docs").rglob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PART = re.compile(
    r"^<!-- before\n(?P<before>.*?)^-->$"
    r"|^(?:<!-- (?P<note>(?:run|file|skip)\b[^\n]*?) -->\n)?```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    note: str = ""
    """`run`, `run: steps=20`, `file: mine.py`, `skip: reason` or nothing."""

    @property
    def argument(self) -> str:
        return self.note.partition(":")[2].strip()


def blocks(page: Path, text: str) -> list[Block]:
    found = []
    for match in PART.finditer(text):
        hidden = match["before"] is not None
        start = match.start("before" if hidden else "code")
        line = text[:start].count("\n") + 1
        if hidden:
            found.append(Block(page, line, "python", match["before"]))
        else:
            found.append(Block(page, line, match["language"], match["code"], match["note"] or ""))
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block; in a console block they follow a `$`, the rest is output."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console" or any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


def check_regrow(words: list[str], folder: Path) -> None:
    """Parse a `regrow` command as the command line would, without running it."""
    import typer

    from regrow.app.cli.main import app
    from regrow.app.recipes import shipped

    command: Any = typer.main.get_command(app)
    if words[:1] and words[0].startswith("-"):
        return
    assert words, "`regrow` without a command"
    assert words[0] in command.commands, f"`regrow {words[0]}` is not a command"
    context = command.commands[words[0]].make_context(words[0], words[1:])
    recipe = context.params.get("recipe")
    known = set(shipped()) | {path.name for path in folder.iterdir()}
    assert recipe is None or recipe in known, f"`{recipe}` is not a recipe"


def check_command(words: list[str], folder: Path) -> None:
    while "=" in words[0]:  # NAME=value command
        words = words[1:]
    match words:
        case ["make", *targets]:
            assert {word for word in targets if "=" not in word} <= MAKE_TARGETS
        case ["python" | "python3" | "torchrun", "-m", "regrow", *rest] | ["regrow", *rest]:
            check_regrow(rest, folder)
        case ["python" | "python3", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file() or (folder / script).is_file(), f"no file {script}"
        case ["pip" | "git" | "cd" | "source" | "pre-commit", *_]:
            pass
        case _:
            pytest.fail(f"say in tests/test_docs.py how to check `{shlex.join(words)}`")


def run_command(words: list[str], more: str, folder: Path) -> None:
    if words[0] in {"regrow", "python", "python3"}:
        words = [sys.executable, *(["-m", "regrow"] if words[0] == "regrow" else []), *words[1:]]
        train = "train" in words or "compare" in words
        words += shlex.split(more) if train else []
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def run_python(block: Block, namespace: dict[str, Any], folder: Path) -> None:
    # empty lines before the code, so that a traceback shows the page's own line numbers
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec", dont_inherit=True)
    if block.note.startswith("file"):
        (folder / block.argument).write_text(block.code)
    if not block.note.startswith("skip"):
        exec(code, namespace)
    else:
        assert block.argument, "a skipped block says why: <!-- skip: reason -->"


def try_page(page: Path, text: str, folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page, text):
        where = f"{page.name}, line {block.line}"
        if block.language == "python":
            run_python(block, namespace, folder)
        elif block.language == "yaml" and block.note.startswith("file"):
            (folder / block.argument).write_text(block.code)
            recipes.load(str(folder / block.argument))
        elif block.language in {"bash", "sh", "console", "shell"}:
            for words in commands(block):
                try:
                    check_command(words, folder)
                except Exception as error:
                    raise AssertionError(f"{where}: {shlex.join(words)}: {error}") from error
                if block.note.startswith("run"):
                    run_command(words, block.argument, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_records", registry.ways())  # a page's own method stays on its page
    try_page(page, page.read_text(), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_that_run_as_they_stand_show_all_that_they_need(page: Path) -> None:
    text = page.read_text()
    if re.search(r"runs? as (it|they) stands?", text):
        assert "<!-- before" not in text, f"{page.name} hides code that its blocks need"
        first = next(block for block in blocks(page, text) if block.language == "python")
        assert "import regrow" in first.code


SAMPLE = """
<!-- before
x = 1
-->

```python
y = x + 1
```

<!-- file: mine.py -->
```python
z = y + 1
```

<!-- skip: needs a GPU -->
```python
1 / 0
```

```console
$ make test ARGS="-k rigl"
output
$ regrow train fashion-mlp method=set --import mine.py   # a comment
```
"""


def test_the_check_itself(tmp_path: Path) -> None:
    found = blocks(Path("page.md"), SAMPLE)
    assert [(block.language, block.note) for block in found] == [
        ("python", ""),
        ("python", ""),
        ("python", "file: mine.py"),
        ("python", "skip: needs a GPU"),
        ("console", ""),
    ]
    assert found[1].line == 7
    assert commands(found[4]) == [
        ["make", "test", "ARGS=-k rigl"],
        ["regrow", "train", "fashion-mlp", "method=set", "--import", "mine.py"],
    ]
    (marked,) = blocks(Path("page.md"), "<!-- run: steps=2 -->\n```bash\nregrow methods\n```\n")
    assert (marked.note, marked.argument) == ("run: steps=2", "steps=2")
    try_page(Path("page.md"), SAMPLE, tmp_path)
    assert (tmp_path / "mine.py").read_text() == "z = y + 1\n"


@pytest.mark.parametrize(
    "bad",
    [
        "```python\nundefined\n```\n",
        "```bash\nmake nothing\n```\n",
        "```bash\nrm x\n```\n",
        "```bash\nregrow nothing\n```\n",
        "```bash\nregrow train no-recipe\n```\n",
        "```bash\nregrow methods --nothing\n```\n",
        "<!-- file: mine.yaml -->\n```yaml\nnothing: 1\n```\n",
    ],
)
def test_the_check_finds_what_does_not_work(bad: str, tmp_path: Path) -> None:
    with pytest.raises((NameError, AssertionError, pytest.fail.Exception, RegrowError)):
        try_page(Path("page.md"), bad, tmp_path)
