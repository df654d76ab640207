from pathlib import Path

import pytest
from tiny import cli, write_recipe

from regrow.app.compare import conditions, plan
from regrow.app.compare.keys import Key, parse, split
from regrow.app.compare.length import multiply
from regrow.app.recipes import load

OWN = Path(__file__).parent / "own_network.py"


@pytest.fixture
def recipe(tmp_path):
    return str(write_recipe(tmp_path))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0.1", ("0.1",)),
        ("0.05, 0.1,0.2", ("0.05", "0.1", "0.2")),
        ("[300,100],[600,200]", ("[300,100]", "[600,200]")),
        ("{a: 0.5, b: [1,2]}", ("{a: 0.5, b: [1,2]}",)),
        ('"a,b",c', ('"a,b"', "c")),
        ("", ("",)),
    ],
)
def test_commas_divide_outside_brackets(text, parts):
    assert split(text) == parts


def test_keys_of_all_and_of_one_method():
    given = ["optimizer.lr=0.05,0.1", "rigl.optimizer.lr=0.2", "small-dense.steps=7", "own:Method.seeds=1"]
    assert parse(given, ["rigl", "small-dense", "own:Method"]) == [
        Key("optimizer.lr", ("0.05", "0.1")),
        Key("optimizer.lr", ("0.2",), "rigl"),
        Key("steps", ("7",), "small-dense"),
        Key("seeds", ("1",), "own:Method"),
    ]


def test_the_grid(recipe):
    grid = plan(
        recipe,
        ["static", "rigl"],
        seeds=2,
        multipliers=[1, 3],
        overrides=["optimizer.lr=0.05,0.1", "rigl.optimizer.lr=0.2", "batch_size=10"],
    )
    assert [str(run) for run in grid.runs] == [
        *(
            f"static{length} optimizer.lr={rate} seed {seed}"
            for length in ("", " 3x")
            for rate in (0.05, 0.1)
            for seed in (0, 1)
        ),
        *(f"rigl{length} optimizer.lr=0.2 seed {seed}" for length in ("", " 3x") for seed in (0, 1)),
    ]
    for run in grid.runs:
        assert run.recipe.optimizer.options["lr"] == float(dict(run.cell.values)["optimizer.lr"])
        assert run.recipe.steps == 60 * run.cell.multiplier
        assert (run.recipe.seed, run.recipe.batch_size) == (run.seed, 10)
    assert len({run.folder for run in grid.runs}) == len(grid.runs)
    assert grid.folder == Path("runs/compare-tiny")
    assert conditions(grid) == (
        "tiny-static+rigl-2seeds-1x+3x-optimizer.lr=0.05+0.1-rigl.optimizer.lr=0.2-batch_size=10"
    )


def test_a_very_long_name_is_cut(recipe):
    names = {
        conditions(plan(recipe, ["static"], overrides=[f"model.hidden={[n] * 30},{[n] * 31},{[n] * 32}"]))
        for n in (8, 9)
    }
    assert len(names) == 2
    assert max(map(len, names)) <= 180


def test_methods_of_one_family_share_the_options_of_the_recipe(recipe):
    """The recipe's RigL updates every 5 steps."""
    grid = plan(recipe, ["dense", "static", "set", "rigl", "pruning"], overrides=["method.drop_fraction=0.4"])
    options = {run.cell.method: run.recipe.method.options for run in grid.runs}
    assert options["rigl"]["update_every"] == options["set"]["update_every"] == 5
    assert options["rigl"]["drop_fraction"] == options["set"]["drop_fraction"] == 0.4
    assert options["pruning"]["update_every"] == 100  # a method of another kind keeps its own
    assert options["static"].keys() <= {"seed"}
    assert options["dense"] == {}
    only = plan(recipe, ["set", "rigl"], overrides=["set.method.update_every=7"])
    assert [run.recipe.method.options["update_every"] for run in only.runs] == [7, 5]


def test_tickets_are_methods(recipe):
    names = ["rigl", "sup-rigl", "sup-set", "sup-granet", "edst", "edst-set", "dst"]
    keys = ["validation=0.1", "tickets.tickets=2", "tickets.cycle_steps=4", "sup-set.tickets.explore=0.3"]
    grid = plan(recipe, names, overrides=[*keys, "test_on=test"])
    runs = {run.cell.method: run.recipe for run in grid.runs}
    assert list(runs) == names
    made = {name: (one.method.name, one.tickets.name if one.tickets else None) for name, one in runs.items()}
    assert made == {
        "rigl": ("rigl", None),
        "sup-rigl": ("rigl", "sup"),
        "sup-set": ("set", "sup"),
        "sup-granet": ("granet", "sup"),
        "edst": ("rigl", "edst"),
        "edst-set": ("set", "edst"),
        "dst": ("rigl", "dst"),
    }
    # each has the options that it knows, and all those of the recipe's method
    assert runs["sup-rigl"].tickets.options["cycle_steps"] == 4
    assert [runs[name].tickets.options["explore"] for name in names[1:6]] == [0.5, 0.3, 0.5, 0.8, 0.8]
    assert [runs[name].tickets.options["tickets"] for name in names[4:]] == [2, 2, 2]
    assert {one.method.options["update_every"] for one in runs.values()} == {5}
    # EDST explores at a constant rate and by a constant fraction to the end
    assert runs["edst"].schedule.name == "constant"
    for name in names:
        method = runs[name].method.options
        assert (method["stop_fraction"] == 1.0) == (name in ("edst", "edst-set", "sup-granet"))
        assert (method["schedule"] == "constant") == name.startswith("edst")
    assert runs["sup-rigl"].schedule == runs["rigl"].schedule
    kept = plan(recipe, ["edst"], overrides=["validation=0.1", "schedule=cosine"]).runs[0].recipe
    assert kept.schedule.name == "cosine"


def test_tickets_take_the_recipe_s_own_options(recipe, tmp_path):
    grid = plan("fashion-tickets", ["rigl", "sup", "edst"], multipliers=[2])
    plain, sup, edst = (run.recipe for run in grid.runs)
    assert plain.tickets is None
    own = load("fashion-tickets").tickets.options
    assert sup.tickets.options == {**own, "cycle_epochs": 2 * own["cycle_epochs"]}
    assert edst.tickets.options["start"] == 1 / 3
    longer = plan("fashion-edst", ["edst"], multipliers=[2]).runs[0].recipe
    assert (longer.epochs, longer.tickets.options["start_epochs"]) == (18, 6)
    copy = tmp_path / "own_method.py"  # under a name that no other test imports in this process
    copy.write_text(OWN.read_text())
    own = plan(recipe, ["sup-own_method:Largest"], imports=[str(copy)]).runs[0].recipe
    assert (own.method.name, own.tickets.name) == ("own_method:Largest", "sup")
    grid = plan(recipe, ["set", "sup-set"], overrides=["tickets.cycle_steps=2,3"])
    assert [str(run.cell) for run in grid.runs] == [
        "set",
        "sup-set tickets.cycle_steps=2",
        "sup-set tickets.cycle_steps=3",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "supp-rigl"], "`method` must be one of dense, "),
        (["--methods", "sup-rigle"], "got 'rigle', did you mean `rigl`?"),
        (["--methods", "sup-static"], "`tickets.explore` needs a method that drops and grows"),
        (["--methods", "edst"], "in a comparison, `edst.validation=0.1` is for edst alone"),
        (
            ["--methods", "sup", "tickets.shar=1"],
            "`tickets.shar` is not an option of sup, did you mean `tickets.share`?",
        ),
        (["--methods", "sup,dst", "dst.tickets.share=1"], "`tickets.share` is not an option of dst"),
    ],
)
def test_tickets_that_cannot_be_compared(recipe, tmp_path, capsys, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    ended = cli(capsys, "compare", recipe, *arguments)
    assert ended.code == 2
    assert text in ended.err
    assert not (tmp_path / "runs").exists()


def test_every_moment_of_the_schedule_is_multiplied(recipe):
    words = [
        "schedule={name: step, milestones: [20, 40], warmup_steps: 5}",
        "method={name: rigl, update_every: 5, stop_fraction: 0.5}",
    ]
    assert multiply(load(recipe, words), 5) == [
        "steps=300",
        "schedule.milestones=[100, 200]",
        "schedule.warmup_steps=25",
    ]
    assert multiply(load(recipe, words), 0.1) == [
        "steps=6",
        "schedule.milestones=[2, 4]",
        "schedule.warmup_steps=0",
    ]
    assert multiply(load(recipe, ["epochs=4"]), 0.5) == ["epochs=2"]
    assert multiply(load(recipe), 1) == []
    grid = plan(recipe, ["rigl"], multipliers=[2], overrides=[words[0]])
    assert grid.runs[0].recipe.schedule.options["milestones"] == [40, 80]
    assert grid.runs[0].recipe.method.options["update_every"] == 5


def test_a_folder_that_holds_another_run_is_left_alone(recipe, tmp_path, capsys):
    def first(*overrides):
        return plan(recipe, ["static"], overrides=overrides, folder=tmp_path / "runs").runs[0].folder

    folder = first("steps=3")
    assert cli(capsys, "train", recipe, "method=static", "steps=3", f"out={folder}").code == 0
    assert first("steps=3") == folder
    assert first("steps=3", "threads=2", "log_every=1") == folder  # not what a result depends on
    assert first("steps=4") == folder.with_name(f"{folder.name}-2")
    assert first("steps=3", "device=meta") == folder.with_name(f"{folder.name}-2")
    (folder / "config.yaml").write_text("steps: [")
    assert first("steps=3") == folder.with_name(f"{folder.name}-2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--methods", "rigl,sett"], "got 'sett', did you mean `set`?"),
        (["--methods", ","], "`--methods` must name at least one, and none twice, got ''"),
        (
            ["--methods", "set,rigl,set"],
            "`--methods` must name at least one, and none twice, got 'set, rigl, set'",
        ),
        (["--seeds", "0"], "`--seeds` must be a whole number of at least 1, got 0"),
        (["--workers", "0"], "`--workers` must be a whole number of at least 1, got 0"),
        (
            ["--multiplier", "1,x"],
            "`--multiplier` must be numbers divided by commas, such as 1,2,5, got '1,x'",
        ),
        (["--multiplier", "0"], "`--multiplier` must be above 0, got [0.0]"),
        (["--multiplier", "nan"], "`--multiplier` must be above 0, got [nan]"),
        (["--multiplier", "2,2"], "`--multiplier` must name at least one, and none twice, got '2.0, 2.0'"),
        (
            ["--multiplier", "0.3", "epochs=2"],
            "makes 2 epochs 0.6, no whole number\nGive the length in steps",
        ),
        (["--import", "nothing.py"], "nothing.py: no such file"),
        (
            ["optimizer.lr"],
            "an override must be key=value or key=a,b,c, for example optimizer.lr=0.05,0.1, got",
        ),
        (
            ["model.hidden=30,20"],
            "`model.hidden` must be a list, got 30\nWrite it in brackets: model.hidden=[30].",
        ),
        (["optimizer.lr=0.1,"], "an override must be key=value or key=a,b,c"),
        (["optimizer.lr=0.1,0.1"], "`optimizer.lr` has a value twice, got 'optimizer.lr=0.1,0.1'"),
        (["optimizer.lr=0.1", "optimizer.lr=0.2"], "`optimizer.lr` is given twice, the second time by"),
        (["optimzer.lr=0.1,0.2"], "`optimzer` is not a key of a recipe, did you mean `optimizer`?"),
        (
            ["rigl.optimizer.lrr=0.1"],
            "`optimizer.lrr` is not an option of optimizer SGD, did you mean `optimizer.lr`?",
        ),
        (["method=set"], "`method` is set by `--methods` in a comparison, got 'method=set'"),
        (["rigl.seed=1,2"], "`seed` is set by `--seeds` in a comparison, got 'rigl.seed=1,2'"),
        (["out=there"], "`out` is set by `--out` in a comparison"),
        (
            ["method.update_evry=5"],
            "`method.update_evry` is not an option of static, rigl, did you mean `method.update_every`?\nAllowed are: "
            "`drop_fraction`, `grow_columns`, `grow_init`, `grow_scale`, `schedule`, `seed`, `skip_step`, "
            "`stop_fraction`, `update_every`.\n",
        ),
        (["tickets=sup"], "`tickets` is set by `--methods` in a comparison, got 'tickets=sup'"),
        (["tickets.share=0.5"], "`tickets.share` is not an option of static, rigl\nAllowed are: none"),
        (["static.method.update_every=5"], "`method.update_every` is not an option of static"),
    ],
)
def test_bad_input_is_text_before_anything_runs(recipe, tmp_path, capsys, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    ended = cli(capsys, "compare", recipe, "--methods", "static,rigl", *arguments)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert text in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_recipe_and_no_recipe(capsys):
    assert "there is no recipe 'fashion-mpl', did you mean" in cli(capsys, "compare", "fashion-mpl").err
    assert cli(capsys, "compare").code == 2
