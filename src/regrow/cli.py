"""The commands of ``regrow`` that need the extra ``train``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

import regrow
from regrow import basic
from regrow.errors import RegrowError, RegrowValueError
from regrow.machine import environment
from regrow.methods.registry import records as known_records
from regrow.recipes import Recipe, as_yaml, load, read, shipped
from regrow.training import (
    Interrupted,
    RunFolder,
    Setup,
    bar,
    build,
    calendar,
    follow_parent,
    lasting_console,
    lines,
    require_one_process,
    train,
)

app = typer.Typer(
    name="regrow",
    help="Train neural networks that are sparse from the first step to the last.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else there.")
]
Import = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="FILE.py", help="A file with a method, model or data."),
]


@app.command()
def methods(json_: Json = False) -> None:
    """List the methods: what each drops and grows, what it needs, where it is published."""
    rows = [record.to_dict() for record in known_records().values()]
    _show(rows, ["name", "drop", "grow", "redistribute", "needs", "paper", "line"], json_)


@app.command()
def recipes(json_: Json = False) -> None:
    """List the recipes that come with regrow."""
    rows = []
    for name in shipped():
        recipe = load(name)
        parts = {key: getattr(recipe, key).name for key in ("model", "data", "method")}
        length = {"epochs": recipe.epochs} if recipe.epochs else {"steps": recipe.steps}
        tickets = recipe.tickets.name if recipe.tickets else None
        rest = {"tickets": tickets, "sparsify": recipe.sparsify, **length, "line": recipe.line}
        rows.append({"name": name, **parts, **rest})
    _show(rows, ["name", "model", "data", "method", "tickets", "line"], json_)


@app.command("train")
def train_command(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A recipe's name, or the path of a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Change a key.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder.")
    ] = None,
    import_: Import = None,
    json_: Json = False,
) -> None:
    """Train RECIPE, with keys changed: regrow train fashion-mlp method=set optimizer.lr=0.05 seed=1."""
    require_one_process("train")
    follow_parent()
    console = lasting_console(errors=json_)
    if resume is not None:
        if recipe is not None or import_:
            raise RegrowValueError(
                f"`--resume` {resume} continues with the recipe of that run, got {recipe or '--import'!r} beside it\n"
                "Leave it out, or start a new run without --resume."
            )
        folder = RunFolder.open(resume)
        if folder.finished:
            folder.summary()
            _finish(console, folder, json_, "was finished before")
            return
        with folder:
            if not folder.finished:  # by a process that has held it until now
                setup = build(read(resume / "config.yaml"), folder.load_checkpoint())
                _announce(console, setup)
                _train(console, setup, folder)
    elif recipe is not None:
        resolved = load(recipe, overrides or [], import_ or [])
        RunFolder.check(resolved.out)
        setup = build(resolved)
        config = _announce(console, setup)
        about = environment(context.obj)
        with RunFolder.create(config, setup.recipe.out, _stem(setup.recipe), about) as folder:
            _train(console, setup, folder)
    else:
        raise RegrowValueError(f"give a recipe or `--resume RUN`\nShipped are: {', '.join(shipped())}.")
    _finish(console, folder, json_, "finished")


def _announce(console: Console, setup: Setup) -> str:
    """Print what will be trained; returns the resolved recipe."""
    config = as_yaml(setup.recipe)
    for text in (config, str(regrow.summary(setup.model)), calendar(setup).rstrip("\n")):
        if text:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    return config


def _train(console: Console, setup: Setup, folder: RunFolder) -> None:
    console.print(f"\nrun folder: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    with bar(console) if console.is_terminal else lines(console) as progress:
        train(setup, folder, progress)


@app.command("compare")
def compare_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=A,B,C]...", help="Change a key, try several values, or name.key=... for one method."
        ),
    ] = None,
    methods_: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B,C",
            help="The methods; `dense` is one, sup-rigl, edst and dst are of tickets.",
        ),
    ] = "static,set,rigl",
    seeds: Annotated[int, typer.Option(metavar="N", help="Runs of each condition, seeds 0 to N-1.")] = 3,
    multiplier: Annotated[
        str, typer.Option(metavar="1,2,5", help="Lengths, relative to the recipe's.")
    ] = "1",
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time, which share the cores; default 2.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: runs/compare-<recipe>.")
    ] = None,
    import_: Import = None,
    json_: Json = False,
) -> None:
    """Compare methods under one budget: regrow compare fashion-mlp --methods static,rigl optimizer.lr=0.05,0.1"""
    require_one_process("compare")
    from regrow.compare.command import compare, numbers  # with matplotlib, which takes a second

    code = compare(
        recipe,
        [name.strip() for name in methods_.split(",") if name.strip()],
        seeds=seeds,
        multipliers=numbers("--multiplier", multiplier),
        overrides=overrides or [],
        imports=import_ or [],
        workers=workers,
        folder=out,
        json_=json_,
    )
    raise typer.Exit(code)


@app.command("flops")
def flops_command(
    model: Annotated[str, typer.Argument(help="A network of the zoo, or package.module:function.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the network: width=0.5")
    ] = None,
    sparsity: Annotated[float, typer.Option(help="Share of the weights that are zero.")] = 0.9,
    distribution: Annotated[str, typer.Option(help="uniform, er or erk.")] = "erk",
    convention: Annotated[
        str, typer.Option(help="clean, or rigl: with the quirks of the published counter.")
    ] = "clean",
    input_: Annotated[
        str | None, typer.Option("--input", metavar="3,224,224", help="Sizes of one example.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Layers that are sparse, and no others.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Layers kept dense.")] = None,
    update_every: Annotated[int, typer.Option(metavar="N", help="Steps between two updates of RigL.")] = 100,
    multiplier: Annotated[float, typer.Option(help="Length of training, relative to dense training.")] = 1.0,
    tickets: Annotated[
        int | None, typer.Option(metavar="M", help="Also sup, edst and dst, with M tickets.")
    ] = None,
    import_: Annotated[
        list[str] | None, typer.Option("--import", metavar="FILE.py", help="A file with a network.")
    ] = None,
    json_: Json = False,
) -> None:
    """Count parameters, FLOPs and size of MODEL: regrow flops resnet50 --sparsity 0.8 --distribution uniform."""
    from regrow.flops import count

    counted = count(
        model,
        options or [],
        sparsity=sparsity,
        distribution=distribution,
        convention=convention,
        input_=input_,
        include=include or [],
        exclude=exclude or [],
        update_every=update_every,
        multiplier=multiplier,
        tickets=tickets,
        files=import_ or [],
    )
    print(json.dumps(counted.to_dict(), indent=2) if json_ else counted)


@app.command("bench")
def bench_command(
    context: typer.Context,
    linear: Annotated[
        list[str] | None,
        typer.Option(metavar="768x3072", help="Linear layers, outputs x inputs; several: A,B."),
    ] = None,
    conv: Annotated[
        list[str] | None,
        typer.Option(
            metavar="64x64x16",
            help="Convolutions, outputs x inputs x side, then kernel (3) and stride (1) where they differ.",
        ),
    ] = None,
    batch: Annotated[list[str] | None, typer.Option(metavar="1,8,128", help="Batch sizes.")] = None,
    sparsity: Annotated[list[str] | None, typer.Option(metavar="0.8,0.9", help="Sparsities.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="package.module:function", help="A network of your own: its training step."),
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="128,3,32,32", help="Sizes of its input, batch first.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Of the sparse layers of --model: auto, masked or compressed.")
    ] = "auto",
    distribution: Annotated[
        list[str] | None,
        typer.Option(metavar="uniform,erk", help="Of the networks' connections. Default: uniform and erk."),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="layers, convolutions, steps (training steps of networks), updates, memory, scale. Default: what is "
            "named by --linear, --conv or --model, else all but scale.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of torch. Default: torch's own.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float64.")] = "float32",
    seconds: Annotated[
        float | None, typer.Option(help="How long each side of a comparison is measured.")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Try torch.compile on the dense side.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="A small standard set, measured shortly.")] = False,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="Wait so long for a quiet machine.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Save the JSON document, case by case.")
    ] = None,
    import_: Import = None,
    json_: Json = False,
) -> None:
    """Measure sparse layers and networks against dense ones: regrow bench --linear 768x3072 --batch 8,128"""
    from regrow.bench.command import bench
    from regrow.bench.plan import plan

    planned = plan(
        linear=linear or [],
        conv=conv or [],
        batch=batch or [],
        sparsity=sparsity or [],
        model=model,
        input_=input_,
        storage=storage,
        distribution=distribution or [],
        what=what,
        threads=threads,
        dtype=dtype,
        seconds=seconds,
        compiled=compile_,
        quick=quick,
        files=import_ or [],
    )
    raise typer.Exit(bench(planned, context.obj, wait=wait, out=out, json_=json_))


def _listed(name: str, line: str) -> None:
    """List a command that needs no extra; its options are its own."""

    @app.command(name, help=line, add_help_option=False, context_settings={"ignore_unknown_options": True})
    def run(
        context: typer.Context, options: Annotated[list[str] | None, typer.Argument(hidden=True)] = None
    ) -> None:
        raise typer.Exit(basic.COMMANDS[name](context.obj))


_listed("doctor", basic.DOCTOR)
_listed("build", basic.BUILD)


def _stem(recipe: Recipe) -> str:
    """What run folders of `recipe` are called after."""
    tickets = f"{recipe.tickets.name}-" if recipe.tickets else ""
    return f"{recipe.name}-{tickets}{recipe.method.name}"


def _finish(console: Console, folder: RunFolder, json_: bool, how: str) -> None:
    """Draw the pictures and print the summary of a finished run."""
    try:
        from regrow.report import draw  # matplotlib takes a second, which no failing command should wait for

        pictures, note = draw(folder.path)
    except Exception as error:  # the run is finished, whatever becomes of its pictures
        pictures, note = [], f"no pictures: {error}"
    console.print(f"\n{how}: {folder.path}", markup=False, highlight=False, soft_wrap=True)
    text = folder.text("summary.txt")
    text += "pictures     " + (" ".join(str(path) for path in pictures) or "none")
    text += "".join(f"\n             {line}" for line in note.splitlines())
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if json_:
        result = {
            "run": str(folder.path),
            **folder.read("summary.json"),
            "pictures": [str(p) for p in pictures],
        }
        print(json.dumps(result, indent=2))


def _show(rows: list[dict[str, Any]], columns: Iterable[str], json_: bool) -> None:
    """`rows` as a table of `columns`, or all of them as JSON."""
    if json_:
        print(json.dumps(rows, indent=2))
        return
    columns = [column for column in columns if any(row.get(column) not in (None, "none") for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*(str(row.get(column) or "-") for column in columns))
    Console().print(table, markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: an error of regrow's is text on standard error and code 2.

    Args:
        arguments: those after ``regrow``. Default: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given, prog_name="regrow", obj=given)
    except Interrupted as error:
        _end(f"\n{error}", 130)
    except RegrowError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt:
        _end("\nstopped at once; a run that has begun continues with `regrow train --resume RUN`", 130)


def _end(text: str, code: int) -> NoReturn:
    with suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr)
    sys.exit(code)
