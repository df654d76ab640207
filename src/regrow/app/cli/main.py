"""The commands of ``regrow`` that need the extra ``train``."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperCommand

import regrow
from regrow._text import KEEP, columns, either, wrapped
from regrow.app.cli import basic, listing
from regrow.app.cli.export import export
from regrow.app.cli.printing import Json, finish, show
from regrow.app.recipes import Recipe, as_yaml, load, read, shipped
from regrow.app.training import (
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
    say,
    train,
    width,
)
from regrow.errors import RegrowError, RegrowValueError
from regrow.measure.machine import environment
from regrow.methods.registry import DEFAULT
from regrow.tickets import kinds

OF_TICKETS = [f"{name}-{DEFAULT}" if place == 0 else name for place, name in enumerate(kinds())]
"""Examples of `--methods`: a kind of tickets with a method and without."""


class _Command(TyperCommand):
    """Shows an argument that may be given several times once: ``[KEY=VALUE ...]``."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Give the words of the usage line."""
        return [
            re.sub(r"^\[+(.* \.\.\.)[\].]+$", r"[\1]", word) for word in super().collect_usage_pieces(ctx)
        ]


app = typer.Typer(
    name="regrow",
    help="Train neural networks that are sparse from the first step to the last.",
    epilog="`regrow --version` prints the version, `regrow COMMAND --help` what a command takes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Import = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="FILE.py", help="A file with a method, model or data."),
]


@app.command(short_help="List the methods.")
def methods(import_: Import = None, json_: Json = False) -> None:
    """List the methods: what each drops and grows, what it needs, where it is published."""
    rows = listing.methods(import_ or [])
    show(rows, json_, lambda width: listing.with_tricks(rows, width))


@app.command(short_help="List the recipes, or show one with its length and time here.")
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this one: its data, length and time here.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the recipes that come with regrow, or show one, of which a few steps are made to tell its time."""
    if name is None:
        rows = listing.recipes()
        show(rows, json_, lambda width: listing.as_text(rows, listing.RECIPES, width))
    else:
        one = listing.one_recipe(name)
        show(one, json_, lambda width: listing.one_as_text(one, width))


@app.command("train", cls=_Command, short_help="Train a recipe.")
def train_command(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe's name, or the path of a YAML file.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE ...", help="Change a key.")
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
            finish(console, folder, json_, "was finished before")
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
        _announce(console, setup)
        about = environment(context.obj)
        config, out = as_yaml(setup.recipe), setup.recipe.out
        with RunFolder.create(config, out, _stem(setup.recipe), about) as folder:
            _train(console, setup, folder)
    else:
        raise RegrowValueError(f"give a recipe or `--resume RUN`\nShipped are: {', '.join(shipped())}.")
    finish(console, folder, json_, "finished")


def _announce(console: Console, setup: Setup) -> None:
    """Print what will be trained."""
    say(console, as_yaml(setup.recipe, width(console)))
    say(console, regrow.summary(setup.model).text(width(console)))
    say(console, calendar(setup), end="")


def _train(console: Console, setup: Setup, folder: RunFolder) -> None:
    say(console, f"\nrun{KEEP}folder:{KEEP}{folder.path}")
    with bar(console) if console.is_terminal else lines(console) as progress:
        train(setup, folder, progress)


@app.command("compare", cls=_Command, short_help="Compare methods under one budget.")
def compare_command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's name, or the path of a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=A,B,C ...",
            help="Change a key, try several values, or name.key=... for one method.",
        ),
    ] = None,
    methods_: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B,C",
            help=f"The methods; `dense` is one, {either(OF_TICKETS, 'and')} are of tickets.",
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
    from regrow.app.compare.command import compare, numbers  # with matplotlib, which takes a second

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


app.command("export", short_help="Write the network of a finished run to a file for inference.")(export)


@app.command("flops", cls=_Command, short_help="Count parameters, FLOPs and size of a network.")
def flops_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A network of the zoo, or package.module:function.")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE ...", help="Options of the network: width=0.5")
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
        int | None, typer.Option(metavar="M", help=f"Also {either(kinds(), 'and')}, with M tickets.")
    ] = None,
    import_: Annotated[
        list[str] | None, typer.Option("--import", metavar="FILE.py", help="A file with a network.")
    ] = None,
    json_: Json = False,
) -> None:
    """Count parameters, FLOPs and size of MODEL: regrow flops resnet50 --sparsity 0.8 --distribution uniform."""
    from regrow.app.cli.flops import count

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
    print(json.dumps(counted.to_dict(), indent=2) if json_ else counted.text(width(Console())))


@app.command("bench", short_help="Measure sparse layers and networks against dense ones.")
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
        typer.Option(metavar="package.module:function", help="A network of your own: a step, or inference."),
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="128,3,32,32", help="Sizes of its input, batch first.")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Of the sparse layers of --model: auto, masked or compressed.")
    ] = "auto",
    distribution: Annotated[
        list[str] | None,
        typer.Option(metavar="uniform,erk", help="Of the connections. Default: both; inference: uniform."),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="layers, convolutions, steps (of training), recurrent, updates, memory, scale, inference (of many "
            "engines). Default: what is named by --linear, --conv or --model, else all but recurrent, scale and "
            "inference.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: torch's own; in inference one too.")] = None,
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
    from regrow.app.bench.command import bench
    from regrow.app.bench.plan import plan

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
    short = line.partition(":")[0].partition(" where")[0].rstrip(".") + "."

    @app.command(
        name,
        help=line,
        short_help=short,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    def run(
        context: typer.Context, options: Annotated[list[str] | None, typer.Argument(hidden=True)] = None
    ) -> None:
        raise typer.Exit(basic.COMMANDS[name](context.obj))


_listed("doctor", basic.DOCTOR)
_listed("build", basic.BUILD)


def _stem(recipe: Recipe) -> str:
    """Return what run folders of `recipe` are called after."""
    tickets = f"{recipe.tickets.name}-" if recipe.tickets else ""
    return f"{recipe.name}-{tickets}{recipe.method.name}"


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning: with the line that it points at where that is in a file of the user's, else its text alone."""
    if filename.startswith(("<", sys.prefix, str(Path(sys.argv[0]).absolute()))):
        return wrapped(f"warning: {message}", columns(sys.stderr)) + "\n"
    return wrapped(f"{filename}:{lineno}: warning: {message}", columns(sys.stderr)) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: an error of regrow's is text on standard error and code 2.

    Args:
        arguments: those after ``regrow``. Default: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    before, warnings.formatwarning = warnings.formatwarning, _format_warning
    try:
        app(given, prog_name="regrow", obj=given)
    except Interrupted as error:
        _end(f"\n{error}", 130)
    except RegrowError as error:
        _end(wrapped(f"error: {error}", columns(sys.stderr)), 2)
    except KeyboardInterrupt:
        _end("\nstopped at once; a run that has begun continues with `regrow train --resume RUN`", 130)
    finally:
        warnings.formatwarning = before


def _end(text: str, code: int) -> NoReturn:
    with suppress(OSError):  # the terminal is gone
        print(text, file=sys.stderr)
    sys.exit(code)
