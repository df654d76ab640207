"""Texts in streams: a state carried from batch to batch, in training, in tests and over a resume."""

import json
import math
from pathlib import Path

import own_text
import pytest
import tiny
import torch
from own_text import TEXT, write_recipe
from run_folders import OWN, assert_same_run, records, signalled
from tiny import cli

from regrow.app.recipes import load
from regrow.app.tasks import Carried, Language, cross_entropy, measures_of
from regrow.app.training import build
from regrow.app.training.evaluation import evaluate
from regrow.errors import RegrowValueError

pytestmark = pytest.mark.filterwarnings("ignore:.*leaves no update within")


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def setup_of(recipe, *keys):
    return build(load(str(recipe), keys))


def test_batches_are_of_streams_and_cover_the_text(recipe):
    batches = setup_of(recipe).batches
    text = TEXT.encode()[: len(TEXT) * 9 // 10]
    windows = (len(text) - 1) // 16
    assert (batches.examples, batches.steps_per_epoch) == (windows, windows // 4)
    rows = [b""] * 4
    for step in range(batches.steps_per_epoch):
        inputs, targets = batches.train(step)
        assert inputs.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        rows = [row + bytes(part.tolist()) for row, part in zip(rows, inputs, strict=True)]
    ring = text[: 16 * windows] * 2
    assert all(row in ring for row in rows)
    assert len(set(rows)) == 4
    again = batches.train(3)
    batches.train(batches.steps_per_epoch)  # of the next epoch
    assert all(map(torch.equal, again, batches.train(3)))


def by_hand(model, data, count):
    """Bits, perplexity and accuracy of `count` streams, a symbol at a time."""
    inputs, targets = data.validation_inputs.long(), data.validation_targets.long()
    losses, correct = [], []
    for rows in torch.arange(len(inputs)).tensor_split(count):
        state = None
        for symbol, wanted in zip(inputs[rows].flatten(), targets[rows].flatten(), strict=True):
            logits, state = model.with_state(symbol.view(1, 1), state)
            losses.append(cross_entropy(logits, wanted.view(1, 1)))
            correct.append(bool(logits.argmax() == wanted))
    nll = float(torch.stack(losses).double().mean())
    return nll / math.log(2), nll, sum(correct) / len(correct)


@pytest.mark.parametrize("count", [1, 3, 4, 30])
def test_a_test_sees_each_window_once_and_carries_the_state(recipe, count):
    setup = setup_of(recipe, f"test_batch_size={count}", "optimizer.lr=0.1")
    with torch.no_grad():
        setup.model.gru.weight_hh_l0.mul_(3)  # so that the state matters
        found = evaluate(setup.batches.task, setup.model, setup.batches.test(), "float32")
        again = evaluate(setup.batches.task, setup.model, setup.batches.test(), "float32")
        bits, nll, accuracy = by_hand(setup.model, setup.data, count)
        cold = evaluate(Language(256), setup.model, setup.batches.test(), "float32")
    assert found == again  # each test begins without a state
    assert found["bits"] == pytest.approx(bits, rel=1e-5)
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["accuracy"] == pytest.approx(accuracy)
    assert cold["bits"] != pytest.approx(bits, rel=1e-5)


def test_training_is_truncated_back_propagation_through_time(recipe, tmp_path, capsys):
    """The app's weights after an epoch and a bit are those of a loop by hand."""
    out = tmp_path / "run"
    keys = ["method=dense", "sparsify={}", "data.limit=1600", "steps=30", "clip_norm=0.5", f"out={out}"]
    ended = cli(capsys, "train", recipe, *keys)
    assert ended.code == 0, ended.err
    setup = setup_of(recipe, *keys[:-1])
    assert 10 < setup.steps_per_epoch < 30
    model = setup.model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for step in range(30):
        if step % setup.steps_per_epoch == 0:
            state = None
        inputs, targets = setup.batches.train(step)
        logits, state = model.with_state(inputs, state)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        state = state.detach()
        losses.append(float(loss.detach()))
    kept = torch.load(out / "checkpoint.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept["model"][name], value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(kept["carried"], [state])
    logged = [record["loss"] for record in records(out, "metrics.jsonl") if record["kind"] == "train"]
    assert logged[0] == pytest.approx(sum(losses[:7]) / 7, rel=1e-6)


PARTS = [
    [],
    ["accumulate=2", "model.dropout=0.3"],
    ["model=own_text:Regularized", "keep=best"],
    ["model=own_text:Stateless", "sparsify.include=[out]"],
    ["data.streams=false", "validation=0.1"],
    ["precision=bfloat16", "data.limit=1600"],  # epochs of 22 steps
    ["data.unit=words", "model.classes=1000", "data.length=5"],
]


@pytest.mark.parametrize("keys", PARTS, ids=lambda keys: " ".join(keys) or "plain")
def test_interrupted_and_resumed_bit_for_bit(recipe, tmp_path, monkeypatch, capsys, keys):
    keys = ["--import", OWN, "method.name=signalled", *keys]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = cli(capsys, "train", recipe, f"out={whole}", *keys)
    assert ended.code == 0, ended.err
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    assert cli(capsys, "train", recipe, f"out={broken}", *keys).code == 130
    ended = cli(capsys, "train", "--resume", broken)
    assert ended.code == 0, ended.err
    assert_same_run(whole, broken)
    assert (whole / "samples.txt").read_text() == (broken / "samples.txt").read_text()
    left, right = (torch.load(run / "checkpoint.pt")["carried"] for run in (whole, broken))
    assert len(left) == (
        0 if "Stateless" in str(keys) or "streams=false" in str(keys) else 1 + ("accumulate=2" in keys)
    )
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_parts_of_a_batch_carry_a_state_each(recipe, tmp_path, capsys):
    found = []
    for parts in (1, 2, 4):
        run = tmp_path / str(parts)
        keys = [
            "method=dense",
            "sparsify={}",
            "steps=6",
            f"accumulate={parts}",
            f"out={run}",
            "optimizer=SGD",
            "optimizer.lr=0.1",
        ]
        assert cli(capsys, "train", recipe, *keys).code == 0
        found.append(torch.load(run / "checkpoint.pt"))
    for other in found[1:]:
        for one, two in zip(found[0]["model"].values(), other["model"].values(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            found[0]["carried"][0], torch.cat(other["carried"], 1), rtol=1e-4, atol=1e-6
        )


def test_the_loss_of_a_network_s_own_is_trained_and_not_tested(recipe):
    setup = setup_of(recipe, "model=own_text:Regularized")
    inputs, targets = setup.batches.train(0)
    forward, network = setup.passes[0], setup.model
    assert isinstance(forward, Carried)
    loss = setup.objective.step(forward, inputs, targets)
    plain = cross_entropy(network(inputs), targets)
    torch.testing.assert_close(loss, plain + 0.5 * network.last.square().mean())
    assert forward.state["seen"].tolist() == [16.0] * 4
    assert not forward.state["inner"].requires_grad
    # a network without a state has it too
    windows = setup_of(recipe, "model=own_text:Regularized", "data.streams=false", "validation=null")
    assert windows.passes == [windows.model]
    torch.testing.assert_close(
        windows.objective.step(windows.model, inputs, targets), plain + 0.5 * network.last.square().mean()
    )


def test_a_compiled_network_carries_its_state(recipe, tmp_path, capsys):
    found = []
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        keys = ["method=dense", "sparsify={}", "steps=6", f"compile={compiled}", f"out={run}"]
        ended = cli(capsys, "train", recipe, *keys)
        assert ended.code == 0, ended.err
        found.append(torch.load(run / "checkpoint.pt")["carried"])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_summary_samples_and_vocabulary_of_a_run(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    keys = [
        "data.unit=characters",
        "model.classes=64",
        "keep=best",
        "optimizer.lr=0.02",
        "steps=200",
        "sparsify.sparsity=0.2",
    ]
    ended = cli(capsys, "train", recipe, f"out={run}", *keys, "samples.temperature=0.5")
    assert ended.code == 0, ended.err
    summary = json.loads((run / "summary.json").read_text())
    tests = [record for record in records(run, "metrics.jsonl") if record["kind"] == "test"]
    assert summary["bits"] == min(record["bits"] for record in tests) < 3
    assert summary["bits"] == pytest.approx(summary["nll"] / math.log(2))
    assert tests[0].keys() == {"kind", "step", "on", "loss", "bits", "accuracy"}
    assert measures_of(summary).best.name == "bits"
    text = (run / "summary.txt").read_text().splitlines()[0]
    assert text.startswith(f"bits         {summary['bits']:.4f} of ")
    assert f"bits {tests[-1]['bits']:.4f}" in ended.out
    vocabulary = json.loads((run / "vocabulary.json").read_text())
    assert (vocabulary["unit"], set(vocabulary["symbols"])) == ("characters", set(TEXT))
    about = json.loads((run / "data.json").read_text())
    assert (about["unit"], about["unknown"]["test"]) == ("characters", 0.0)
    samples = (run / "samples.txt").read_text()
    first, second = samples.split("\n[2 of 2, temperature 0.5, seed 0, after ")
    assert first.startswith("[1 of 2, temperature 0.5, seed 0, after ")
    written = first.partition("]\n")[2].removesuffix("\n")
    assert len(written) == 40
    assert set(written) <= set(TEXT)
    assert written not in second
    assert sum(written.count(word) for word in (" s", "e ", ", ", "ed", "he", "is")) > 3


@pytest.mark.parametrize("keys", [[], ["model=own_text:Stateless", "sparsify.include=[out]"]])
def test_samples_without_chance_are_the_likeliest_symbols(recipe, tmp_path, capsys, keys):
    run = tmp_path / "run"
    keys = [*keys, "samples={temperature: 0, count: 1, length: 20, prompt: '7 squared is'}", "steps=20"]
    ended = cli(capsys, "train", recipe, f"out={run}", *keys)
    assert ended.code == 0, ended.err
    setup = setup_of(recipe, *keys)
    setup.model.load_state_dict(torch.load(run / "checkpoint.pt")["model"])
    seen = b"7 squared is"
    for _ in range(20):
        seen += bytes([int(setup.model.eval()(torch.tensor([list(seen)]))[0, -1].argmax())])
    wanted = seen[12:].decode(errors="replace")
    assert (run / "samples.txt").read_text().endswith(f"after '7 squared is']\n{wanted}\n")


def test_words_are_measured_in_perplexity(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    keys = [
        "data.unit=words",
        "data.vocabulary=40",
        "data.length=5",
        "model.classes=40",
        "steps=40",
        "optimizer.lr=0.02",
    ]
    ended = cli(capsys, "train", recipe, f"out={run}", *keys)
    assert ended.code == 0, ended.err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["perplexity"] == pytest.approx(math.exp(summary["nll"]), rel=1e-5)
    assert 1 < summary["perplexity"] < 30
    assert 0.1 < json.loads((run / "data.json").read_text())["unknown"]["test"] < 0.5
    assert "squared" in (run / "samples.txt").read_text()
    assert (
        float(
            Language(9, "words").evaluate([(torch.tensor([[[0.0, 2000.0]]]), torch.tensor([[0]]))])[
                "perplexity"
            ]
        )
        == math.inf
    )


def test_an_ensemble_carries_the_state_of_each_member(recipe):
    setup = setup_of(recipe, "method=dense", "sparsify={}")
    torch.manual_seed(1)
    other = own_text.CharGRU()
    both = setup.batches.task.ensemble([setup.model, other]).eval()
    tokens = torch.randint(0, 256, (2, 12))
    with torch.no_grad():
        first, state = both.with_state(tokens[:, :5])
        second, _ = both.with_state(tokens[:, 5:], state)
        torch.testing.assert_close(torch.cat([first, second], 1), both(tokens))
        found = evaluate(setup.batches.task, both, setup.batches.test(), "float32")
        assert found["bits"] < max(
            evaluate(setup.batches.task, one, setup.batches.test(), "float32")["bits"]
            for one in (setup.model, other)
        )


def test_a_comparison_in_bits(recipe, tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["--import", own_text.__file__, "--methods", "dense,rigl", "--seeds", "1", "--out", out]
    arguments = [*arguments, "steps=20"]
    ended = cli(capsys, "compare", recipe, *arguments, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    for row in result["rows"]:
        summary = json.loads((out / f"{row['method']}-seed0/summary.json").read_text())
        assert (row["mean"], row["nll"]) == (summary["bits"], summary["nll"])
        assert row["training"] is not None
    assert any(Path(path).name.endswith("-flops.png") for path in result["files"])
    head = next(line for line in ended.err.splitlines() if line.startswith("method"))
    assert head.split()[:4] == ["method", "n", "bits", "deviation"]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["validation=0.1"], r"`validation` is 0.1, but `data` text is a text in .*\nTest .*`validation: own`"),
        (["drop_last=false"], r"`drop_last` is false, but the batches of a text in streams are all of one size"),
        (["batch_size=900"], r"`batch_size` must be at most the \d+ training examples, got 900\nGive a longer text"),
        (["data.length=4000"], r"the text has [\d,]+ bytes, allowed are at least 80,020 for examples of `data.l"),
        (["data.unit=characters", "samples.prompt='µ'"], r"`samples.prompt` has 'µ', allowed are the \d+ characters"),
        (["samples.temperature=-1"], r"`samples.temperature` must be .*, got -1"),
        (["samples.lenght=5"], r"`samples.lenght` is not an option of samples, did you mean `samples.length`"),
        (["model.classes=20"], r"not take all 256 bytes of the vocabulary of `data` text: .*\n.*`model.classes=256`"),
        (["model=own_text:Odd"], r"`with_state` of `model` own_text:Odd must .*, \[2, 16, 256\], got \[2, 256\]"),
    ],
)  # fmt: skip
def test_what_cannot_be(recipe, keys, text):
    with pytest.raises(RegrowValueError, match=text):
        setup_of(recipe, *keys)


def test_own_validation_needs_data_that_have_it(recipe, tmp_path):
    images = tiny.write_recipe(tmp_path)
    with pytest.raises(RegrowValueError, match=r"`validation` is own, but `data` idx has no part of its own"):
        setup_of(images, "validation=own")
    with pytest.raises(
        RegrowValueError, match=r"`samples` are of text, and `data` idx is not\nLeave `samples` out"
    ):
        setup_of(images, "samples.count=1")


@pytest.fixture
def stopped(recipe, tmp_path, monkeypatch, capsys):
    """A run of words that stands at step 26 of 60."""
    run = tmp_path / "run"
    signalled(monkeypatch, tmp_path, 25, "SIGINT")
    keys = ["--import", OWN, "method.name=signalled", "data.unit=characters", "model.classes=64"]
    assert cli(capsys, "train", recipe, f"out={run}", *keys).code == 130
    return run


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.replace("cat", "cät"), "it has 34 characters, and the run's 33"),
        (lambda content: content.replace("q", "Q"), "symbol 2"),
    ],
)
def test_another_vocabulary_is_refused(stopped, tmp_path, capsys, change, text):
    del text
    (tmp_path / "a.txt").write_text(change(TEXT))
    ended = cli(capsys, "train", "--resume", stopped)
    assert ended.code == 2
    assert "the vocabulary of `data` text is not that of the run (vocabulary.json): " in ended.err
    assert "Put back the text and the `data` of the recipe as they were" in ended.err


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (
            "batch_size: 4",
            "batch_size: 8",
            "shape [1, 4, 24], and those of CharGRU with 8 streams are [1, 8, 24]",
        ),
        ("accumulate: 1", "accumulate: 2", "there are 1 states, and `accumulate` is 2"),
        ("unit: characters", "unit: bytes", "does not take all 256 bytes of the vocabulary"),
        ("unit: characters", "unit: words", "it is of words, and the run's of characters"),
    ],
)
def test_a_recipe_that_was_changed_is_refused(stopped, capsys, old, new, text):
    config = (stopped / "config.yaml").read_text()
    assert old in config
    config = config.replace(old, new)
    if "words" in new:
        config = config.replace("vocabulary: null", "vocabulary: 30")
    (stopped / "config.yaml").write_text(config)
    ended = cli(capsys, "train", "--resume", stopped)
    assert ended.code == 2
    assert text in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("content", [None, "{}", "[]", "{", '{"unit": "characters", "symbols": 3}'])
def test_a_vocabulary_that_is_gone_or_damaged(stopped, capsys, content):
    file = stopped / "vocabulary.json"
    file.unlink() if content is None else file.write_text(content)
    ended = cli(capsys, "train", "--resume", stopped)
    assert ended.code == 2
    assert "vocabulary.json" in ended.err
    assert "whole run folder again" in ended.err
