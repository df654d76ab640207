import pytest
import torch
import yaml
from tiny import write_recipe

from regrow.app.recipes import Part, as_yaml, find, load, read, shipped
from regrow.app.recipes.rates import constant, cosine, step
from regrow.errors import RegrowValueError


@pytest.fixture
def tiny(tmp_path):
    return str(write_recipe(tmp_path))


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_complete(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.line
    assert recipe.sparsify


def test_the_article_s_recipe():
    recipe = load("fashion-mlp")
    split = {"layers.0": 0.98, "layers.2": 0.882}
    assert recipe.sparsify == {"distribution": split, "rescale": False, "seed": 0}
    assert (
        recipe.method.options
        | {
            "drop_fraction": 0.3,
            "update_every": 100,
            "stop_fraction": 0.75,
            "schedule": "cosine",
            "skip_step": None,
            "seed": 0,
        }
        == recipe.method.options
    )
    assert (recipe.optimizer.options, recipe.batch_size, recipe.epochs) == (
        {"lr": 0.1, "momentum": 0.9},
        100,
        8,
    )


def test_overrides(tiny):
    changes = ["method=set", "optimizer.lr=5e-2", "sparsify.sparsity=0.95", "sparsify.exclude=['layers.4']"]
    recipe = load(tiny, [*changes, "seed=3", "model.hidden=[8]", "schedule.warmup_steps=5"])
    assert recipe.method.name == "set"
    assert recipe.method.options["update_every"] == 100  # options of another method went with it
    assert recipe.optimizer.options == {"lr": 0.05, "momentum": 0.9}
    assert recipe.sparsify == {"sparsity": 0.95, "exclude": ["layers.4"], "seed": 3}
    assert recipe.method.options["seed"] == 3
    plain = {"width": 1.0, "rank": None, "rest": True}
    assert recipe.model.options == {"inputs": 64, "hidden": [8], "classes": 4, **plain}
    assert recipe.schedule == Part(name="cosine", warmup_steps=5)


def test_one_length_replaces_the_other(tiny):
    recipe = load(tiny, ["epochs=2"])
    assert (recipe.epochs, recipe.steps) == (2, None)
    with pytest.raises(RegrowValueError, match=r"give `epochs` or `steps`, one of the two, got both"):
        load(tiny, ["epochs=2", "steps=3"])


def test_tickets_have_the_options_of_what_makes_them(tiny):
    sup = load(tiny, ["tickets=sup"]).tickets
    assert sup.options == {
        "share": 0.1,
        "cycle_epochs": 8,
        "lr": [0.001, 0.005],
        "explore": 0.5,
        "evolve": None,
        "average": "mean",
        "factor": 0.5,
        "rule": "running",
        "divide": "tickets",
        "scope": "global",
        "density": None,
    }
    edst = load(tiny, ["tickets=edst", "validation=0.1"]).tickets
    assert edst.options == {"start": 1 / 3, "tickets": 3, "lr": [0.01, 0.001], "explore": 0.8}
    assert load(tiny, ["tickets=dst"]).tickets.options == {"tickets": 3}
    # a length that is given replaces the recipe's, whatever its unit
    assert load("fashion-tickets", ["tickets.cycle_steps=50"]).tickets.options["cycle_steps"] == 50
    assert "cycle_epochs" not in load("fashion-tickets", ["tickets.cycle_steps=50"]).tickets.options
    shorter = load("fashion-edst", ["tickets.ticket_steps=50"]).tickets.options
    assert (shorter["ticket_steps"], "start_epochs" in shorter) == (50, False)


@pytest.mark.parametrize(
    ("options", "start", "length"),
    [
        ({}, 30, 20),  # a third of 90 steps
        ({"start": 0.5}, 45, 15),
        ({"start_steps": 10}, 12, 26),  # what does not divide belongs to the exploration
        ({"start_epochs": 2}, 21, 23),
        ({"ticket_steps": 7}, 69, 7),
        ({"ticket_epochs": 1}, 60, 10),
    ],
)
def test_when_the_windows_of_edst_are(tiny, options, start, length):
    keys = [f"tickets.{name}={value}" for name, value in options.items()]
    part = load(tiny, ["tickets=edst", "validation=0.1", *keys]).tickets
    plan = find("tickets", part)(90, 10, **part.options)
    assert (plan.start, plan.count, plan.length) == (start, 3, length)


def test_what_a_run_keeps_reads_back(tiny, tmp_path):
    recipe = load(tiny, ["seed=4", "optimizer={name: AdamW, lr: 1e-3, betas: [0.9, 0.99]}", "tickets=sup"])
    path = tmp_path / "config.yaml"
    path.write_text(as_yaml(recipe))
    assert read(path) == recipe
    assert load(str(path)) == recipe  # and it is a recipe like any other


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (
            "epoch=3",
            r"`epoch` is not a key of a recipe, did you mean `epochs`\?\nAllowed are: .*`batch_size`",
        ),
        (
            "model=mpl",
            r"`model` must be one of mlp, lenet, .* or package.module:function, got 'mpl', .*`mlp`\?",
        ),
        ("data=fashion_mnist", r"`data` must be one of fashion-mnist, idx, .*did you mean `fashion-mnist`\?"),
        ("method=rigel", r"`method` must be one of dense, .*got 'rigel', did you mean `rigl`\?"),
        ("optimizer=AdmaW", r"`optimizer` must be one of .*SGD.*got 'AdmaW', did you mean `AdamW`\?"),
        ("schedule=cosin", r"`schedule` must be one of constant, cosine, step .*did you mean `cosine`\?"),
        (
            "method.update_evry=9",
            r"`method.update_evry` is not an option of method rigl, did you mean `method.update_every`\?",
        ),
        ("method.total_steps=9", r"`method.total_steps` is not an option of method rigl"),
        (
            "method={name: dense, seed: 1}",
            r"`method.seed` is not an option of method dense\nAllowed are: none",
        ),
        (
            "model.hiden=[3]",
            r"`model.hiden` is not an option of model mlp, did you mean `model.hidden`\?\nAllowed are: `inputs`",
        ),
        (
            "optimizer.momentun=0.9",
            r"`optimizer.momentun` is not an option of optimizer SGD, did you mean `optimizer.momentum`\?",
        ),
        (
            "sparsify.sparsty=0.9",
            r"`sparsify.sparsty` is not an option of sparsify, did you mean `sparsify.sparsity`\?",
        ),
        (
            "schedule=step",
            r"`schedule.milestones` is missing: schedule step needs it\nGive it as schedule.milestones=\[...\].",
        ),
        ("data=idx", r"`data.folder` is missing: data idx needs it\nGive it as data.folder=VALUE."),
        ("schedule=stepp", r"got 'stepp', did you mean `{name: step, milestones: ...}`\?"),
        ("update_every=9", r"`update_every` is not a key of a recipe, did you mean `method.update_every`\?"),
        ("lr=0.1", r"`lr` is not a key of a recipe, did you mean `optimizer.lr`\?"),
        (
            "classes=9",
            r"`classes` is not a key of a recipe, did you mean `model.classes` or `data.classes`\?",
        ),
        ("sparsty=0.9", r"`sparsty` is not a key of a recipe, did you mean `sparsify.sparsity`\?"),
        ("method.sparsity=0.9", r"is not an option of method rigl, did you mean `sparsify.sparsity`\?"),
        ("model.hidden=300", r"`model.hidden` must be a list, got 300\n.*: model.hidden=\[300\]."),
        ("optimizer={name: Adam, betas: 0.9}", r"must be a list, got 0.9\n.*: optimizer.betas=\[0.9\]."),
        ("sparsify={distribution: er}", r"`sparsify.sparsity` is missing.*\nAdd `sparsify.sparsity=0.9`."),
        (
            "sparsify={sparsity: 0.9, distribution: {layers.0: 0.9}}",
            r"`sparsify.sparsity` is 0.9, but `sparsify.distribution` gives each layer its own\nLeave one",
        ),
        (
            "batch_size=0",
            r"`batch_size`: input should be greater than 0, got 0\n`batch_size` is examples a step",
        ),
        ("batch_size=1.5", r"`batch_size`: input should be a valid integer, got 1.5"),
        (
            "augment.crp=4",
            r"`augment.crp` is not an option of augment, did you mean `augment.crop`\?\nAllowed are: `crop`, ",
        ),
        (
            "augment=flip",
            r"`augment`: input should be a valid dictionary, got 'flip'\n`augment` is what is done",
        ),
        (
            "validation=1",
            r"`validation`: must be a share between 0 and 1, or own, got 1\n`validation` is share of the training",
        ),
        ("label_smoothing=1", r"`label_smoothing`: input should be less than 1, got 1"),
        (
            "no_decay=norms",
            r"`no_decay`: input should be a valid list, got 'norms'\n(?s:.*)Write it in brackets: no_decay=\[norms\].",
        ),
        ("clip_norm=0", r"`clip_norm`: input should be greater than 0, got 0"),
        ("accumulate=0", r"`accumulate`: input should be greater than 0, got 0"),
        ("accumulate=7", r"`batch_size` must be a multiple of `accumulate`, got 20 and 7"),
        ("seed=true", r"`seed`: input should be a valid integer, got True"),
        ("precision=float16", r"`precision`: input should be 'float32' or 'bfloat16', got 'float16'"),
        ("compile=2", r"`compile`: input should be a valid boolean, got 2"),
        ("method=3", r"`method`: .*got 3\nA name, or a mapping with `name` and options"),
        (
            "tickets=supp",
            r"`tickets` must be one of sup, edst, dst, lottery, got 'supp', did you mean `sup`\?",
        ),
        ("tickets=own:tickets", r"`tickets` must be one of sup, edst, dst, lottery, got 'own:tickets'"),
        (
            "tickets={name: sup, cycle_step: 3}",
            r"`tickets.cycle_step` is not an .* sup, did you mean `tickets.cycle_steps`\?\nAllowed are: `share`",
        ),
        (
            "tickets={name: sup, cycle_steps: 3, cycle_epochs: 1}",
            r"give one of `tickets.cycle_epochs`, `tickets.cycle_steps`, got cycle_epochs 1 and cycle_steps 3",
        ),
        ("tickets={name: dst, start: 0.5}", r"`tickets.start` is not an option of tickets dst"),
        ("tickets=edst", r"`validation` is missing: tickets edst .*\nAdd `validation: 0.1`"),
        (
            "tickets.share=0.2",
            r"`tickets.name` is missing\nGive it as tickets.name=VALUE, one of sup, edst, dst, lottery.",
        ),
        ("keep=best", r"`keep: best` needs examples that are held out\nAdd `validation: 0.1`."),
        ("keep=first", r"`keep`: input should be 'last' or 'best', got 'first'"),
        ("test_on=validation", r"`test_on: validation` needs examples that are held out"),
        ("initial_sparsity=1", r"`initial_sparsity`: input should be less than 1, got 1"),
        ("steps=null", r"give `epochs` or `steps`, one of the two, got none"),
        ("seed.x=1", r"`seed.x`: `seed` is 3 and has no inner keys"),
        ("seed", r"an override must be key=value, for example optimizer.lr=0.05, got 'seed'"),
        ("seed=[1", r"`seed`: '\[1' is no YAML"),
        ("model=no_such_module:build", r"`model` no_such_module:build: there is no module `no_such_module`"),
        ("model=tiny:imagse", r"`model` tiny:imagse: module `tiny` has no `imagse`, did you mean `images`\?"),
        ("model=tiny:SRC", r"`model` tiny:SRC must be a function or a class"),
    ],
)
def test_wrong_key_or_value(tiny, override, text):
    with pytest.raises(RegrowValueError, match=text):
        load(tiny, ["seed=3", override])


def test_unknown_recipe():
    with pytest.raises(
        RegrowValueError, match=r"no recipe 'fashion-mpl', did you mean `fashion-mlp`\?\nShipped are"
    ):
        load("fashion-mpl")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: [1", r"bad.yaml is no YAML"),
        ("model: mlp\nseed: 1\nseed: 2\n", r"key `seed` is given twice"),
        ("- 1\n", r"must hold a mapping of keys to values, got \[1\]"),
        (
            "model: mlp\nsteps: 3\n",
            r"recipe .*:\n`data` is missing\n`optimizer` is missing\n`batch_size` is missing",
        ),
    ],
)
def test_bad_file(tmp_path, content, text):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(RegrowValueError, match=text):
        load(str(path))


def test_imports_lie_beside_their_recipe(tiny, tmp_path, monkeypatch):
    own = tmp_path / "network_beside_recipe.py"
    own.write_text(
        "import torch\n\ndef build(width: int = 3) -> torch.nn.Module:\n    return torch.nn.Linear(64, 4)\n"
    )
    raw = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    (tmp_path / "tiny.yaml").write_text(
        yaml.safe_dump(
            {**raw, "imports": ["network_beside_recipe.py"], "model": "network_beside_recipe:build"}
        )
    )
    monkeypatch.chdir("/")
    recipe = load(tiny)
    assert recipe.imports == [str(own)]
    assert recipe.model == Part(name="network_beside_recipe:build", width=3)
    with pytest.raises(
        RegrowValueError, match=r"`model.widht` is not an option of .*did you mean `model.width`\?"
    ):
        load(tiny, ["model.widht=4"])


def test_files_that_cannot_be_imported(tiny, tmp_path):
    with pytest.raises(RegrowValueError, match=r"`--import` .*nothing.py: no such file"):
        load(tiny, imports=[str(tmp_path / "nothing.py")])
    (tmp_path / "torch.py").write_text("")
    with pytest.raises(
        RegrowValueError, match=r"a module `torch` is there already.*\nGive the file another name"
    ):
        load(tiny, imports=[str(tmp_path / "torch.py")])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(RegrowValueError, match=r"notes.txt is no Python file"):
        load(tiny, imports=[str(tmp_path / "notes.txt")])


def test_optimizers_are_torch_s(tiny):
    for name in ("SGD", "AdamW", "Adam", "RMSprop", "Adagrad"):
        load(tiny, [f"optimizer={name}"])
        assert issubclass(getattr(torch.optim, name), torch.optim.Optimizer)


def test_rates():
    assert [constant(10)(t) for t in (0, 9)] == [1, 1]
    assert [round(cosine(10)(t), 6) for t in (0, 5, 10)] == [1, 0.5, 0]
    warm = cosine(12, warmup_steps=2)
    assert [round(warm(t), 6) for t in (0, 1, 2, 7, 12)] == [0.5, 1, 1, 0.5, 0]
    stairs = step(10, milestones=[3, 6], factor=0.5, warmup_steps=1)
    assert [stairs(t) for t in (0, 2, 3, 5, 6, 9)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    phases = step(10, milestones=[0, 3, 6], factor=[0.02, 1, 0.1])
    assert [phases(t) for t in (0, 2, 3, 5, 6, 9)] == [0.02, 0.02, 1, 1, 0.1, 0.1]
    with pytest.raises(RegrowValueError, match=r"`schedule.factor` must be 2 positive numbers, got \[0.1\]"):
        step(10, milestones=[3, 6], factor=[0.1])
    with pytest.raises(
        RegrowValueError, match=r"`schedule.milestones` must be a whole number of at least 0, got 0.5"
    ):
        step(10, milestones=[0.5])


@pytest.mark.parametrize(
    ("overrides", "part", "option", "value"),
    [
        (["model.hidden=300,100"], "model", "hidden", [300, 100]),
        (["optimizer=Adam", "optimizer.betas=0.9,0.99"], "optimizer", "betas", [0.9, 0.99]),
        (["schedule=step", "schedule.milestones=10,20"], "schedule", "milestones", [10, 20]),
    ],
)
def test_values_with_commas_are_lists_where_lists_are_taken(tiny, overrides, part, option, value):
    assert getattr(load(tiny, overrides), part).options[option] == value


def test_names_with_commas_are_lists_of_names(tiny):
    assert load(tiny, ["sparsify.exclude=layers.0,layers.4"]).sparsify["exclude"] == ["layers.0", "layers.4"]


def test_one_sparsity_replaces_one_for_each_layer_and_the_other_way_round(tiny):
    assert load("fashion-mlp", ["sparsify.sparsity=0.95"]).sparsify == {
        "sparsity": 0.95,
        "distribution": "erk",
        "rescale": False,
        "seed": 0,
    }
    by_layer = load(tiny, ["sparsify.distribution={layers.0: 0.9}"]).sparsify
    assert by_layer == {"distribution": {"layers.0": 0.9}, "seed": 0}
    both = ["sparsify.sparsity=0.95", "sparsify.distribution=uniform"]
    assert load("fashion-mlp", both).sparsify["distribution"] == "uniform"
