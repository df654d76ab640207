import dataclasses
from types import SimpleNamespace

import pytest
import torch
from published import write_images
from run_folders import assert_same_run, signalled
from tiny import cli, write_recipe

from regrow.app.recipes import load
from regrow.app.tasks import cross_entropy
from regrow.app.training.batches import Batches
from regrow.data import Augment, Dataset, order
from regrow.errors import RegrowValueError

# these runs are a few steps long, shorter than the intervals of their recipes
pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no update within")

CPU = torch.device("cpu")
DATA = Dataset(
    "numbers",
    torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(40, 3, 8, 8).contiguous(),
    torch.arange(40) % 4,
    torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 8, 8).contiguous(),
    torch.arange(10) % 4,
    classes=4,
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 1.0, 2.0),
)


@pytest.fixture
def recipe(tmp_path):
    return lambda *keys: load(str(write_recipe(tmp_path)), ["batch_size=8", *keys])


def test_a_batch_is_normalised_images_in_the_order_of_its_epoch(recipe):
    batches = Batches(DATA, recipe("seed=7"), CPU)
    assert (batches.steps_per_epoch, batches.examples, len(batches.during)) == (5, 40, 10)
    for step in (0, 4, 5, 12, 3):  # forwards and back again
        inputs, targets = batches.train(step)
        wanted = order(7, step // 5, 40)[step % 5 * 8 :][:8]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (DATA.mean, DATA.std))
        torch.testing.assert_close(
            inputs, (wanted.view(8, 1, 1, 1) / 255 - mean) / std * torch.ones(8, 3, 8, 8)
        )
        assert targets.tolist() == (wanted % 4).tolist()


def test_images_normalised_by_themselves_are_so_before_they_are_cut(recipe):
    """TensorFlow's per_image_standardization: over all values, with a deviation of at least 1 / sqrt(values)."""
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[0] = 7  # plain
    data = dataclasses.replace(DATA, train_inputs=images, test_inputs=images[:10], per_image=True)
    values = images.double().flatten(1)
    mean, std = values.mean(1, keepdim=True), values.var(1, correction=0, keepdim=True).sqrt()
    wanted = ((values - mean) / std.clamp(min=1 / 192**0.5)).view(40, 3, 8, 8).float()
    assert not wanted[0].any()
    torch.testing.assert_close(data.prepare(images), wanted)
    batches = Batches(data, recipe("augment={crop: 2, border: symmetric}"), CPU)
    inputs, _ = batches.train(0)
    chosen = wanted[order(0, 0, 40)[:8]]
    torch.testing.assert_close(inputs, Augment(crop=2, border="symmetric").train(chosen, 0, 0))
    # and the centre of a test image by the statistics of the whole one
    batches = Batches(data, recipe("augment={resized_crop: 6}"), CPU)
    torch.testing.assert_close(next(batches.test())[0], wanted[:10, :, 1:7, 1:7])
    torch.testing.assert_close(batches.example(2), wanted[:2, :, 1:7, 1:7])


def test_the_last_examples_of_an_epoch_may_make_a_smaller_batch(recipe):
    batches = Batches(DATA, recipe("batch_size=12", "drop_last=false"), CPU)
    assert (batches.steps_per_epoch, batches.examples) == (4, 40)
    seen = [batches.train(step)[0][:, 0, 0, 0] for step in range(4)]
    assert [len(some) for some in seen] == [12, 12, 12, 4]
    assert len(torch.cat(seen).unique()) == 40
    assert Batches(DATA, recipe("batch_size=12"), CPU).steps_per_epoch == 3


def test_parts_of_a_smaller_batch_add_up_to_it(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    runs = []
    for parts in (1, 3):  # the last 80 of 200 examples in 27, 27 and 26
        run = tmp_path / str(parts)
        keys = (
            f"accumulate={parts}",
            "batch_size=120",
            "drop_last=false",
            "epochs=1",
            "method.stop_fraction=0",
        )
        ended = cli(capsys, "train", recipe, f"out={run}", *keys)
        assert ended.code == 0, ended.err
        runs.append(torch.load(run / "checkpoint.pt")["model"])
    for one, other in zip(*(run.values() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_data_without_prepare_is_given_as_it_is(recipe):
    own = SimpleNamespace(**{field.name: getattr(DATA, field.name) for field in dataclasses.fields(DATA)})
    inputs, _ = Batches(own, recipe(), CPU).train(0)
    assert inputs.dtype == torch.uint8


def test_a_validation_set_is_held_out_and_the_same_for_every_seed(recipe):
    held_out = []
    for seed in (1, 2):
        batches = Batches(DATA, recipe(f"seed={seed}", "validation=0.25"), CPU)
        assert (batches.examples, batches.steps_per_epoch, len(batches.during)) == (30, 3, 10)
        tested = torch.cat([inputs[:, 0, 0, 0] for inputs, _ in batches.test()])
        trained = {float(v) for step in range(30) for v in batches.train(step)[0][:, 0, 0, 0]}
        assert trained.isdisjoint(tested.tolist())
        assert len(trained) == 30
        held_out.append(tested)
    assert torch.equal(*held_out)


def test_the_result_is_tested_on_what_the_recipe_says(recipe):
    def tested(*keys):
        batches = Batches(DATA, recipe(*keys), CPU)
        values = [
            torch.cat([i[:, 0, 0, 0] for i, _ in batches.test(e)]) for e in (batches.during, batches.final)
        ]
        return (batches.during.name, batches.final.name), torch.equal(*values)

    held_out = "validation=0.25"
    assert tested() == (("test", "test"), True)
    assert tested(held_out) == (("validation", "validation"), True)
    assert tested(held_out, "test_on=test") == (("validation", "test"), False)
    assert tested(held_out, "tickets=edst") == (("validation", "test"), False)
    assert tested(held_out, "tickets=sup", "test_on=validation") == (("validation", "validation"), True)


def test_the_centre_is_tested_and_shown_to_the_network(recipe):
    batches = Batches(DATA, recipe("augment.resized_crop=6"), CPU)
    assert batches.train(0)[0].shape == (8, 3, 6, 6)
    assert [inputs.shape for inputs, _ in batches.test()] == [(10, 3, 6, 6)]
    assert batches.example(2).shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("batch_size=41", r"`batch_size` must be at most the 40 training examples, got 41"),
        ("augment.resized_crop=9", r"`augment.resized_crop` must be at most the images' size, 8, got 9"),
        ("augment.crop=-1", r"`augment.crop` must be a whole number of at least 0, got -1"),
    ],
)
def test_what_does_not_fit(recipe, key, text):
    with pytest.raises(RegrowValueError, match=text):
        Batches(DATA, recipe(key), CPU)


def test_loss_over_places_is_their_mean():
    logits, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    places = [cross_entropy(logits[:, i], targets[:, i]) for i in range(5)]
    torch.testing.assert_close(cross_entropy(logits, targets), torch.stack(places).mean())
    smooth = cross_entropy(logits, targets, smoothing=0.1)
    spread = -logits.log_softmax(-1).mean()
    torch.testing.assert_close(smooth, 0.9 * cross_entropy(logits, targets) + 0.1 * spread)


COLOUR = [
    "model={name: wrn, depth: 10, widen: 1, classes: 3}",
    "augment={crop: 1, flip: true}",
    "batch_size=4",
    "label_smoothing=0.1",
    "no_decay=[norms, biases]",
    "optimizer.weight_decay=1e-3",
    "clip_norm=1.0",
    "validation=0.1",
]


@pytest.mark.parametrize("keys", [COLOUR, [*COLOUR, "augment={resized_crop: 8, flip: true}", "accumulate=2"]])
def test_augmented_run_is_interrupted_and_resumed_bit_for_bit(tmp_path, monkeypatch, capsys, keys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "animals", train=10, sizes=[(12, 12)])
    recipe = write_recipe(tmp_path)
    own = ["--import", "tests/own_parts.py", "method.name=signalled"]
    keys = [*own, f"data={{name: image-folder, folder: {tmp_path / 'animals'}}}", *keys]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = cli(capsys, "train", recipe, f"out={whole}", *keys)
    assert ended.code == 0, ended.err
    assert "of 3 validation examples" in (whole / "summary.txt").read_text()
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    assert cli(capsys, "train", "--resume", broken).code == 0
    assert_same_run(whole, broken)


def test_parts_of_a_batch_add_up_to_it(tmp_path, capsys):
    recipe = write_recipe(tmp_path)
    runs = []
    for parts in (1, 4):
        run = tmp_path / str(parts)
        keys = (f"out={run}", f"accumulate={parts}", "steps=3", "method.stop_fraction=0")
        assert cli(capsys, "train", recipe, *keys).code == 0
        runs.append(torch.load(run / "checkpoint.pt")["model"])
    for one, other in zip(*(run.values() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
