"""Every recipe that ships: it parses, builds its network and runs two steps on made data in its published format."""

import gzip
import shutil
from pathlib import Path

import pytest
import torch
from published import write_cifar10, write_cifar100, write_images
from tiny import write_folder

import regrow
from regrow.app.compare import plan
from regrow.app.recipes import find, load, method_of, shipped
from regrow.app.training import RunFolder, build, train
from regrow.app.training.batches import Batches
from regrow.methods.gradual import Descent
from regrow.sparsity.initial import asked_sparsities

# these runs are a few steps long, shorter than the intervals of their recipes
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no update within")

ENGLISH = ["the", "cat", "saw", "a", "dog", "that", "had", "seen", "no", "<unk>", "on", "its", "way", "home"]
"""Words of a made text; those of Penn Treebank and WikiText have the end of a line beside them."""
IMAGENET = ["data.size=72", "augment.resized_crop=64", "batch_size=4", "accumulate=2"]
CIFAR = ["data.limit=40", "batch_size=8", "test_on=validation"]  # not on 10,000 images
SUP = ["tickets.cycle_steps=1", "tickets.share=0.5"]
EDST = ["tickets.start_steps=1", "tickets.tickets=1"]
WORDS = ["data.length=5", "batch_size=4", f"model.classes={len(ENGLISH) + 1}"]
SMALL = {
    "mnist-mlp": [],
    "lenet5": [],
    "fashion-mlp": [],
    "fashion-mlp-99": [],
    "fashion-mlp-99.5": [],
    "fashion-lenet": [],
    "fashion-mest": [],
    "fashion-patterns": [],
    "fashion-conv": ["channels_last=true"],
    "fashion-wide": [],
    "fashion-wide-99.5": [],
    "fashion-big-sparse": [],
    "giant-mlp": [
        "model.hidden=[200,300]",
        "sparsify.distribution={layers.0: 0.9, layers.2: 0.9}",
        "method.grow_columns=50",
    ],
    "fashion-rst": ["method.update_every=1"],
    "fashion-core": [],
    "fashion-tickets": SUP,
    "fashion-edst": EDST,
    "sup-vgg16-cifar10": [*CIFAR, *SUP, "model.width=0.5"],
    "sup-resnet50-cifar100": [*CIFAR, *SUP, "model.width=0.25", "validation=0.1"],
    "sup-wrn-28-10-cifar10": [*CIFAR, *SUP, "model.widen=2"],
    "freetickets-wrn-28-10": [*CIFAR, *EDST, "model.widen=2"],
    "wrn-22-2-cifar10": ["data.limit=40", "batch_size=8", "validation=0.1"],
    "wrn-22-2-jpeg": ["batch_size=8"],
    "vgg-cifar": CIFAR,
    "resnet50-cifar": ["data.limit=40", "batch_size=2", "test_on=validation"],
    "vit-tiny": ["data.limit=40", "batch_size=4", "validation=0.1"],
    "gpt-small": ["data.limit=40000", "batch_size=2"],
    "resnet50-imagenet": IMAGENET,
    "mobilenet-v1-imagenet": IMAGENET,
    "char-gru": ["data.length=16", "batch_size=4", "model.hidden=32"],
    "gcide-gru": ["data.length=16", "batch_size=4", "model.hidden=32", "steps=2", "epochs=null"],
    "gcide-lstm": ["data.length=16", "batch_size=4", "model.hidden=32"],
    "selfish-lstm-ptb": [*WORDS, "model.embedding=24", "model.hidden=32"],
    "selfish-rhn-ptb": [*WORDS, "model.hidden=24", "model.depth=3"],
    "selfish-onlstm-ptb": [*WORDS, "model.embedding=20", "model.hidden=40"],
    "awd-lstm-wikitext2": [*WORDS, "model.embedding=20", "model.hidden=32", "model.last=24", "batch_size=6"],
}
"""What makes two steps of each quick."""
TRICKS = "tricks=[label-smoothing, {name: gradinit, iterations: 2}, ghost-skips, ghost-activations]"
RESTING = {"fashion-lottery": (4, []), "fashion-one-shot": (2, []), "fashion-tost": (2, [TRICKS])}
"""Recipes whose connections do not move, with the steps that all their runs have where one has two, and keys."""

SUP_CIFAR10 = [
    ["sup-vgg16-cifar10"],
    ["sup-wrn-28-10-cifar10"],
    [
        "sup-resnet50-cifar100",
        "data=cifar10",
        "model.classes=10",
        "validation=0.1",
        "augment.border=reflect",
        "schedule.milestones=[44000,65806]",
    ],
]
SUP_CIFAR100 = [
    ["sup-resnet50-cifar100"],
    [
        "sup-vgg16-cifar10",
        "data=cifar100",
        "model.classes=100",
        "validation=null",
        "augment.border=zeros",
        "schedule.milestones=[48875,73097]",
    ],
]
"""Sup-tickets' experiments, in the words of the recipes' comments."""

VARIANTS = [
    (
        "resnet50-imagenet",
        ["sparsify.sparsity=0.99", "sparsify.distribution=erk", "sparsify.exclude=[conv1]"],
    ),
    ("mobilenet-v1-imagenet", ["model.width=1.98", "sparsify.distribution=uniform"]),
]
"""Other forms of an experiment whose networks differ, as the recipe's comment gives them."""


TEXTS = {
    "ptb": ["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"],
    "wikitext-2": ["wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"],
    "wikitext-103": ["wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"],
    "gcide": ["gcide.dict.dz"],
}


def write_text(folder: Path, kind: str) -> None:
    """Files in the format of the published ones: sentences of all words, each turned by one more than the last."""
    folder.mkdir()
    lines = [" ".join(ENGLISH[at:] + ENGLISH[:at]) for at in range(len(ENGLISH))] * 12
    content = "".join(f" {line} \n" for line in lines).encode()
    for file in TEXTS[kind]:
        (folder / file).write_bytes(gzip.compress(content) if file.endswith(".dz") else content)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A data set of each kind, by the name a recipe calls it."""
    root = tmp_path_factory.mktemp("published")
    made = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = root / kind
            if kind in ("idx", "fashion-mnist"):
                write_folder(made[kind], size=28)
            elif kind == "cifar10":
                write_cifar10(made[kind])
            elif kind == "cifar100":
                write_cifar100(made[kind])
            elif kind == "imagenet":
                write_images(made[kind], train=6, sizes=[(90, 80), (75, 100), (72, 72)], test_name="val")
            elif kind in TEXTS:
                write_text(made[kind], kind)
            else:
                write_images(made[kind], train=8, sizes=[(32, 32)])
        return made[kind]

    yield folder
    shutil.rmtree(root)


def test_every_recipe_is_here():
    names = {name for name in shipped() if load(name).data.name in DATA}
    assert names == set(SMALL) | set(RESTING)


DATA = ("idx", "fashion-mnist", "cifar10", "cifar100", "image-folder", "python-source", *TEXTS)


def two_steps(name, keys, folders, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load(name).data
    kind = data.name
    if kind == "image-folder":
        kind = "imagenet" if "imagenet" in data.options["folder"] else "jpeg"
    place = [] if kind == "python-source" else [f"data.folder={folders(kind)}"]
    explores = method_of(load(name).method).explores
    length = ["steps=2", "device=cpu"]
    length += ["method.update_every=1", "method.stop_fraction=1"] if explores else []
    recipe = load(name, [*place, *length, *SMALL[name], *keys, f"out={tmp_path / 'run'}"])
    threads = torch.get_num_threads()
    try:
        setup = build(recipe)
        before = {name: mask.clone() for name, mask in regrow.masks(setup.model).items()}
        with RunFolder.create("", recipe.out, name, {}) as folder:
            result = train(setup, folder, lambda status, tested=False: None)
    finally:
        torch.set_num_threads(threads)
    assert result["steps"] == 2
    assert 0 <= result["accuracy"] <= 1
    after = regrow.masks(setup.model)
    had, has = ({n: int(m.sum()) for n, m in masks.items()} for masks in (before, after))
    if explores:
        assert result["moved"] > 0
        assert had == has, "a connection was lost"
    else:
        assert all(has[n] <= had[n] for n in had)
        assert sum(has.values()) < sum(had.values())
    return setup


@pytest.mark.parametrize("name", sorted(SMALL))
def test_two_steps(name, folders, tmp_path, monkeypatch):
    two_steps(name, [], folders, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", sorted(RESTING))
def test_two_steps_where_connections_rest(name, folders, tmp_path):
    steps, own = RESTING[name]
    keys = [f"data.folder={folders('fashion-mnist')}", "steps=2", "device=cpu", "threads=1"]
    recipe = load(name, [*keys, *own, f"out={tmp_path / 'run'}"])
    threads = torch.get_num_threads()
    try:
        setup = build(recipe)
        with RunFolder.create("", recipe.out, name, {}) as folder:
            result = train(setup, folder, lambda status, tested=False: None)
    finally:
        torch.set_num_threads(threads)
    assert (result["steps"], result["moved"]) == (steps, 0)
    assert result["sparsity"] == pytest.approx(recipe.sparsify["sparsity"], abs=1e-4)


@pytest.mark.parametrize(("name", "keys"), VARIANTS)
def test_two_steps_of_a_variant(name, keys, folders, tmp_path, monkeypatch):
    two_steps(name, keys, folders, tmp_path, monkeypatch)


def test_published_values_of_tickets():
    """Sections 1 and 2 of the facts: epochs, rates, cycles and windows, at 352 steps an epoch of 45,000 images."""
    for name, *keys in SUP_CIFAR10 + SUP_CIFAR100:
        recipe, epoch = load(name, keys), 352 if [name, *keys] in SUP_CIFAR10 else 391
        options, length = recipe.tickets.options, 250 * epoch
        plan = find("tickets", recipe.tickets)(length, epoch, **options)
        assert (plan.start, plan.count, plan.length) == (226 * epoch, 3, 8 * epoch)
        assert (options["lr"], options["explore"], options["evolve"]) == ([0.001, 0.005], 0.5, None)
        shorter = [at * plan.start // length for at in recipe.schedule.options["milestones"]]
        assert shorter == [113 * epoch, 169 * epoch]
        assert recipe.tested_on == "test"
        assert (recipe.validation, recipe.drop_last) == (0.1 if epoch == 352 else None, False)
        assert recipe.augment["border"] == ("reflect" if epoch == 352 else "zeros")
    recipe = load("freetickets-wrn-28-10")
    plan = find("tickets", recipe.tickets)(450 * 352, 352, **recipe.tickets.options)
    assert (plan.start, plan.count, plan.length) == (150 * 352, 3, 100 * 352)
    assert recipe.augment["border"] == "reflect"
    assert (recipe.tickets.options["lr"], recipe.tickets.options["explore"]) == ([0.01, 0.001], 0.8)
    for name in ("sup-vgg16-cifar10", "freetickets-wrn-28-10"):
        recipe = load(name)
        method, optimizer = recipe.method.options, recipe.optimizer.options
        assert (method["drop_fraction"], method["update_every"], method["schedule"]) == (
            0.5,
            1000,
            "constant",
        )
        assert (optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == (0.1, 0.9, 5e-4)
        assert (recipe.batch_size, recipe.validation) == (128, 0.1)


@pytest.mark.parametrize("recipe", ["sup-vgg16-cifar10", "sup-resnet50-cifar100"])
def test_granet_under_sup_tickets_is_down_by_epoch_110(recipe, tmp_path):
    """The default of its code; updates come each 1,000 steps."""
    epoch = 352 if "cifar100" not in recipe else 391
    loaded = load(recipe, ["method.name=granet", "method.prune_stop_fraction=0.486726"])
    options = loaded.method.options
    descent = Descent.of_run(226 * epoch, options["update_every"], 0.0, options["prune_stop_fraction"])
    assert descent.stop == 110 * epoch // 1000 * 1000
    assert (options["schedule"], options["drop_fraction"], loaded.initial_sparsity) == ("constant", 0.5, None)
    assert method_of(loaded.method).initial_sparsity == 0.5
    key = "sup-granet.method.prune_stop_fraction=0.486726"
    grid = plan(recipe, ["rigl", "sup-granet"], seeds=1, overrides=[key], folder=tmp_path)
    compared = {run.cell.method: run.recipe.method.options for run in grid.runs}
    assert compared["sup-granet"]["prune_stop_fraction"] == 0.486726
    assert (compared["sup-granet"]["schedule"], compared["sup-granet"]["update_every"]) == ("constant", 1000)


def test_the_dst_ensemble_drops_a_constant_half():
    recipe = load(
        "freetickets-wrn-28-10",
        ["tickets=dst", "epochs=250", "schedule={name: step, milestones: [44000, 65824]}"],
    )
    method = recipe.method.options
    assert (method["schedule"], method["drop_fraction"], method["stop_fraction"]) == ("constant", 0.5, 1.0)
    assert recipe.schedule.options["milestones"] == [125 * 352, 187 * 352]
    assert (recipe.schedule.options["factor"], recipe.tickets.options["tickets"]) == (0.1, 3)


def test_images_as_the_sources_prepare_them():
    """google-research/rigl cifar_resnet/data_helper.py; varun19299/rigl-reproducibility data.py; ITOP's main.py."""
    rigl = load("wrn-22-2-cifar10")
    assert (rigl.data.options["per_image"], rigl.augment["crop"], rigl.augment["border"]) == (
        True,
        4,
        "symmetric",
    )
    assert (rigl.steps, rigl.validation) == (97_656, None)
    again = load("resnet50-cifar")
    assert (again.augment["resized_crop"], again.augment["crop"]) == (32, 0)
    assert (again.validation, again.drop_last, again.tested_on) == (0.1, False, "test")
    assert again.schedule.options["warmup_steps"] == 5 * 352
    itop = load("vgg-cifar", ["method=itop"])
    assert itop.schedule.options["milestones"] == [125 * 352, 187 * 352]
    assert (itop.validation, itop.keep, itop.tested_on, itop.augment["border"]) == (
        0.1,
        "best",
        "test",
        "reflect",
    )
    assert (itop.method.options["update_every"], itop.method.options["drop_fraction"]) == (4000, 0.5)


@pytest.mark.parametrize(
    ("name", "examples", "steps"),
    [
        ("sup-vgg16-cifar10", 45_000, 352),
        ("freetickets-wrn-28-10", 45_000, 352),
        ("sup-resnet50-cifar100", 50_000, 391),
        ("resnet50-cifar", 45_000, 352),
        ("wrn-22-2-cifar10", 50_000, 390),
    ],
)
def test_images_and_steps_of_an_epoch(name, examples, steps, folders):
    recipe = load(name)
    kind = recipe.data.name
    recipe = load(name, [f"data.folder={folders(kind)}"])
    data = find("data", recipe.data)(**recipe.data.options)
    batches = Batches(data, recipe, torch.device("cpu"))
    assert (batches.examples, batches.steps_per_epoch) == (examples, steps)
    last = batches.train(steps - 1)[0]
    assert len(last) == (128 if recipe.drop_last else examples - 128 * (steps - 1))


def test_layers_that_stay_dense(folders, tmp_path, monkeypatch):
    setup = two_steps("mobilenet-v1-imagenet", [], folders, tmp_path, monkeypatch)
    masked = regrow.masks(setup.model)
    assert not any("depthwise" in name or name.startswith("conv1") for name in masked)
    decayed, free = setup.optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (1e-4, 0)
    names = {id(p): n for n, p in setup.model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        n for n, p in setup.model.named_parameters() if p.dim() > 1 and "depthwise" not in n
    }


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.965, 0.98, 0.99])
def test_resnet50_in_all_its_forms(sparsity, distribution):
    longer = ["steps=160000", "schedule.milestones=[46915,109475,140750]", "schedule.warmup_steps=7820"]
    for keys in ([], longer):
        recipe = load(
            "resnet50-imagenet",
            [*keys, f"sparsify.sparsity={sparsity}", f"sparsify.distribution={distribution}"],
        )
        assert (recipe.sparsify["sparsity"], recipe.sparsify["distribution"]) == (sparsity, distribution)
        factor = 5 if keys else 1
        assert recipe.steps == 32_000 * factor
        assert recipe.schedule.options["milestones"] == [9383 * factor, 21895 * factor, 28150 * factor]


def test_published_values():
    """Of section 1.6 of the facts: batch, length, rate, decay, end of the updates."""
    expected = {
        "mnist-mlp": (100, 0.2, 1e-4, 50_000 / 120_000),
        "wrn-22-2-cifar10": (128, 0.1, 5e-4, 75_000 / 97_656),
        "resnet50-imagenet": (4096, 1.6, 1e-4, 25_000 / 32_000),
    }
    for name, (batch, rate, decay, stop) in expected.items():
        recipe = load(name)
        optimizer = recipe.optimizer.options
        assert (recipe.batch_size, optimizer["lr"], optimizer["weight_decay"]) == (batch, rate, decay)
        assert (optimizer["momentum"], optimizer["nesterov"]) == (0.9, True)
        assert recipe.method.options["stop_fraction"] == pytest.approx(stop, abs=1e-6)
        assert (recipe.method.options["drop_fraction"], recipe.method.options["update_every"]) == (0.3, 100)
    assert load("resnet50-imagenet").label_smoothing == 0.1
    assert load("mnist-mlp").data.options["normalize"] is False  # its images are in [0, 1]
    assert load("mnist-mlp").schedule.options["milestones"] == [75 * 600, 95 * 600]
    for name in ("resnet50-imagenet", "mobilenet-v1-imagenet"):
        recipe = load(name)
        assert (recipe.data.options["whole"], recipe.data.options["size"]) == (True, 256)
        assert (recipe.augment["resized_crop"], recipe.augment["scale"]) == (224, [0.08, 1.0])
        assert recipe.augment["ratio"] == [3 / 4, 4 / 3]


def test_published_values_of_text():
    """Of Selfish-RNN's commands, and of RigL's character GRU: sections 3 and 1.6 of the facts."""
    expected = {  # sparsity, drop fraction, rate, length, epochs
        "selfish-lstm-ptb": (0.67, 0.8, 40, 35, 100),
        "selfish-rhn-ptb": (0.528, 0.5, 15, 35, 500),
        "selfish-onlstm-ptb": (0.55, 0.5, 15, 70, 1000),
        "awd-lstm-wikitext2": (0.55, 0.5, 15, 70, 1000),
    }
    for name, (sparsity, drop, rate, length, epochs) in expected.items():
        recipe = load(name)
        optimizer = recipe.optimizer.options
        assert (recipe.sparsify["sparsity"], recipe.sparsify["distribution"]) == (sparsity, "uniform")
        assert (recipe.method.options["drop_fraction"], recipe.data.options["length"]) == (drop, length)
        assert (optimizer["lr"], optimizer["weight_decay"]) == (rate, 1.2e-6)
        assert (recipe.clip_norm, recipe.epochs, recipe.keep) == (0.25, epochs, "best")
        # an update at the end of each epoch
        words = 2_088_628 if "wikitext2" in name else 929_589
        assert recipe.method.options["update_every"] == (words - 1) // length // recipe.batch_size
    gru = load("char-gru")
    assert (gru.batch_size, gru.data.options["length"], gru.steps, gru.clip_norm) == (32, 512, 200_000, 10)
    assert (gru.optimizer.options["lr"], gru.optimizer.options["weight_decay"]) == (7e-4, 5e-4)
    method = gru.method.options
    assert (method["drop_fraction"], method["update_every"], method["stop_fraction"]) == (0.1, 100, 1)


@pytest.mark.parametrize(
    ("name", "masked"), [("selfish-lstm-ptb", 66_000_000), ("selfish-rhn-ptb", 23_455_800)]
)
def test_selfish_rnn_masks_all_weights(name, masked):
    """Embedding and read-out too, once where they are tied."""
    recipe = load(name)
    with torch.device("meta"):
        model = find("model", recipe.model)(**recipe.model.options)
    include, sparsity = recipe.sparsify["include"], recipe.sparsify["sparsity"]
    asked = asked_sparsities(model, sparsity, "uniform", include=include)
    assert sum(model.get_parameter(name).numel() for name in asked) == masked


def test_big_and_sparse_has_the_connections_of_small_and_dense(folders):
    recipe = load("fashion-big-sparse", [f"data.folder={folders('fashion-mnist')}", "device=cpu"])
    summary = regrow.summary(build(recipe).model)
    # 784-300-100-10 has 266,200 weights; each layer rounds its own share
    assert abs(summary.connections - 266_200) <= 3
