"""Patterns of a topology at the start, in copies and in files."""

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

import regrow
from regrow.errors import RegrowValueError
from regrow.sparsity import modelfile
from regrow.sparsity.distributions import connections
from regrow.weights import sparse_weights
from regrow.weights.patterns import NM, Blocks, FanIn, pattern_of

PATTERNS: list[Any] = ["fan-in", "2:4", "3:8", (1, 4), (2, 2), (4, 1)]
STORAGES = ["masked", "compressed"]


def network() -> nn.Sequential:
    """A convolution and two linear layers whose widths all patterns divide."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 8)
    )


def made(pattern: Any, storage: str = "masked", **how: Any) -> nn.Module:
    """The network at 70%, or as sparse as the pattern says; 3:8 leaves out the layer of 20 inputs."""
    given = {"sparsity": None if ":" in pattern else 0.7, "exclude": "5" if pattern == "3:8" else None}
    return regrow.sparsify(network(), storage=storage, pattern=pattern, **{**given, **how})


def is_kept(mask: Tensor, pattern: Any) -> bool:
    """Whether a mask [outputs, inputs, *kernel] has the pattern, looked at another way than the library does."""
    along = mask.movedim(1, -1)  # [outputs, *kernel, inputs]
    if pattern == "fan-in":
        rows = mask.flatten(1).sum(1)
        return bool(rows.max() - rows.min() <= 1)
    if isinstance(pattern, str):
        n, m = map(int, pattern.split(":"))
        return bool((along.reshape(-1, m).sum(1) == n).all())
    rows, inputs = pattern
    blocks = along.unfold(0, rows, rows).unfold(-2, inputs, inputs)  # [..., rows, inputs]
    filled = blocks.flatten(-2).sum(-1)
    return bool(((filled == 0) | (filled == rows * inputs)).all())


class Scores:
    """A criterion that gives the scores of all layers together, or layer by layer."""

    def __init__(self, per_layer: bool) -> None:
        self.per_layer = per_layer

    def __call__(self, model: nn.Module, shapes: Any) -> dict[str, Tensor]:
        own = torch.Generator().manual_seed(3)
        return {name: torch.randn(shape, generator=own) for name, shape in shapes.items()}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("init", ["random", "magnitude", Scores(True)], ids=["random", "magnitude", "scores"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_topology_has_its_pattern_and_exact_counts(pattern: Any, init: Any, storage: str) -> None:
    model = made(pattern, storage, init=init)
    weights = sparse_weights(model)
    assert len(weights) == (2 if pattern == "3:8" else 3)
    asked = {row.name: row.asked for row in regrow.summary(model).rows}
    for weight in weights:
        assert is_kept(weight.mask(), pattern), weight.name
        assert weight.storage == storage
        size = 1 if isinstance(pattern, str) else math.prod(pattern)
        units = (weight.numel // size,)
        assert weight.nnz == size * connections(units, 1 - asked[weight.name]), weight.name
    other = made(pattern, "masked", init=init)
    assert [w.fingerprint() for w in weights] == [w.fingerprint() for w in sparse_weights(other)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_random_topologies_go_by_the_seed_and_the_name(pattern: Any) -> None:
    one, other = (sparse_weights(made(pattern, seed=seed)) for seed in (1, 2))
    assert all(a.fingerprint() != b.fingerprint() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("pattern", ["2:4", (1, 2), "fan-in"], ids=str)
def test_a_random_topology_is_uniform(pattern: Any) -> None:
    """Each position is a connection as often as the others."""
    kept_to = {"2:4": NM(2, 4), (1, 2): Blocks(1, 2), "fan-in": FanIn()}[pattern]
    own, found = torch.Generator().manual_seed(0), torch.zeros(16)
    for _ in range(500):
        positions = kept_to.draw((2, 8), 8 // kept_to.size, own)
        assert (positions.diff() > 0).all()
        found[positions] += 1
    assert (found / 500 - 0.5).abs().max() < 0.1  # four standard deviations and more


def test_the_largest_by_hand() -> None:
    values = torch.tensor(
        [[9.0, 8.0, 7.0, 6.0, 0.5, 0.4, 0.3, 0.2], [1.0, 5.0, 2.0, 3.0, 4.0, 1.5, 2.5, 3.5]]
    )
    expected = {
        "fan-in": [[1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 1]],
        "1:4": [[1, 0, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0]],
        "1x2": [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]],
        "2x2": [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]],
    }
    for pattern, mask in expected.items():
        layer = nn.Linear(8, 2)
        with torch.no_grad():
            layer.weight.copy_(values)
        sparsity = {"1:4": None, "2x2": 0.5}.get(pattern, 0.625)  # 6 of 16, 3 of 8 blocks, 2 of 4
        model = regrow.sparsify(layer, sparsity, init="magnitude", pattern=pattern, storage="masked")
        assert regrow.masks(model)["weight"].int().tolist() == mask, pattern


def test_the_best_of_a_convolution_go_along_channels() -> None:
    layer = nn.Conv2d(4, 1, (1, 2), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0], [6.0, 4.0]]).view(1, 4, 1, 2))
    regrow.sparsify(layer, init="magnitude", pattern="2:4", storage="masked")
    assert layer.weight_mask.view(4, 2).int().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


@pytest.mark.parametrize("pattern", ["fan-in", (1, 4), (2, 2)], ids=str)
@pytest.mark.parametrize("together", ["distribution", "criterion"])
def test_all_layers_together(pattern: Any, together: str) -> None:
    """How many each layer has is as without a pattern, in units of it; which, as the pattern says."""
    how = (
        {"distribution": "global", "init": Scores(True)}
        if together == "distribution"
        else {"init": Scores(False)}
    )
    weights = sparse_weights(made(pattern, **how))
    size = 1 if pattern == "fan-in" else math.prod(pattern)
    total = sum(weight.numel for weight in weights) // size
    if together == "distribution":
        assert sum(weight.nnz for weight in weights) == size * connections((total,), 0.7)
    assert all(is_kept(weight.mask(), pattern) for weight in weights)
    if pattern == "fan-in":
        free = sparse_weights(regrow.sparsify(network(), 0.7, storage="masked", **how))
        assert [weight.nnz for weight in weights] == [weight.nnz for weight in free]


# --- what cannot be


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"pattern": "4:2"}, r"`pattern` must be \"fan-in\", N of M .*got '4:2'"),
        ({"pattern": "2:4 "}, "`pattern` must be"),
        ({"pattern": "fanin"}, "`pattern` must be .*got 'fanin'"),
        ({"pattern": (1, 1)}, r"`pattern` must be .*got \(1, 1\)"),
        ({"pattern": (0, 4)}, "`pattern` must be"),
        ({"pattern": (1.5, 4)}, "`pattern` must be"),
        ({"pattern": (1, 4, 2)}, "`pattern` must be"),
        ({"pattern": 124}, "`pattern` must be .*got 124"),
        (
            {"pattern": "5:16"},
            r"`pattern` is 5:16, but `0.weight` of shape \(12, 8, 3, 3\) cannot have it: its 8 inputs",
        ),
        ({"pattern": (5, 1)}, "its 12 outputs are no multiple of 5.\nLeave it dense with `exclude`"),
        ({"pattern": (1, 5)}, "its 8 inputs are no multiple of 5"),
        (
            {"pattern": "2:4", "sparsity": 0.7},
            "`pattern` 2:4 gives every weight the sparsity 0.5, got 0.7 as sparsity",
        ),
        (
            {"pattern": "2:4", "distribution": "er", "sparsity": None},
            "`pattern` 2:4 gives .*got distribution 'er'",
        ),
        ({"pattern": "2:4", "distribution": "global", "sparsity": 0.5}, "got distribution 'global'"),
        (
            {"pattern": "2:4", "distribution": {"0": 0.6}, "sparsity": None},
            "got 0.6 as distribution of `0.weight`",
        ),
        ({"pattern": "fan-in", "sparsity": None}, "`sparsity` is None"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_pattern_that_cannot_be_is_refused_before_anything_is_changed(how: Any, text: str) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RegrowValueError, match=text):
        regrow.sparsify(model, **{"sparsity": 0.7, "storage": "masked", **how})
    assert not regrow.is_sparse(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_with_their_inputs_first_and_gates_apart_are_refused() -> None:
    with pytest.raises(RegrowValueError, match="ConvTranspose2d has its inputs first"):
        regrow.sparsify(nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), 0.5, pattern="fan-in")
    with pytest.raises(RegrowValueError, match="its gates are apart"):
        regrow.sparsify(nn.LSTM(4, 4), 0.5, include="*", gates="apart", pattern="fan-in")


def test_masks_must_have_the_pattern() -> None:
    mask = torch.zeros(8, 20, dtype=torch.bool)
    mask[:, :5] = True
    model = regrow.sparsify(network(), init={"5.weight": mask}, include="5", pattern="fan-in")
    assert int(sparse_weights(model)[0].nnz) == 40
    mask[0, :2] = False
    with pytest.raises(
        RegrowValueError, match=r"`init\['5.weight'\]` must have the pattern fan-in of the weight"
    ):
        regrow.sparsify(network(), init={"5.weight": mask}, include="5", pattern="fan-in")


def test_what_superposes_topologies_refuses_patterns() -> None:
    model = made("2:4")
    for refuse in (
        lambda: regrow.tickets.superpose([model, copy.deepcopy(model)]),
        lambda: regrow.tickets.prune_back(model, density=0.1),
        lambda: regrow.SupTickets(
            regrow.RigL(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=9, update_every=3),
            start=6,
            cycle_steps=1,
        ),
    ):
        with pytest.raises(
            RegrowValueError, match="`0.weight` has the pattern 2:4, which pruning by magnitude would"
        ):
            refuse()


# --- copies and files


def patterns_of(model: nn.Module) -> list[str]:
    return [str(weight.record.pattern) for weight in sparse_weights(model)]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_copies_and_files_know_the_pattern(pattern: Any, storage: str, tmp_path: Path) -> None:
    model = made(pattern, storage)
    expected = patterns_of(model)
    assert pattern_of(expected[0]) == sparse_weights(model)[0].record.pattern
    assert patterns_of(copy.deepcopy(model)) == expected
    assert patterns_of(pickle.loads(pickle.dumps(model))) == expected
    assert expected[0] in str(regrow.summary(model))
    file = regrow.save(model, tmp_path / "model.safetensors")
    loaded = regrow.load(file, network())
    assert patterns_of(loaded) == expected
    assert [w.fingerprint() for w in sparse_weights(loaded)] == [
        w.fingerprint() for w in sparse_weights(model)
    ]
    again = made(pattern, storage, seed=9)
    again.load_state_dict(model.state_dict())
    assert patterns_of(again) == expected
    assert [w.fingerprint() for w in sparse_weights(again)] == [
        w.fingerprint() for w in sparse_weights(model)
    ]
    assert patterns_of(regrow.compress(made(pattern, "masked"))) == expected


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_what_is_loaded_must_have_the_pattern(pattern: Any, storage: str, tmp_path: Path) -> None:
    exclude = "5" if pattern == "3:8" else None
    other = regrow.sparsify(network(), 0.5, exclude=exclude, storage=storage)
    file = regrow.save(other, tmp_path / "model.safetensors")
    model = made(pattern, storage)
    before = [weight.to_dense() for weight in sparse_weights(model)]
    for load in (lambda: model.load_state_dict(other.state_dict()), lambda: regrow.load(file, model)):
        with pytest.raises(RegrowValueError, match="`0.weight` must have the pattern"):
            load()
    for weight, values in zip(sparse_weights(model), before, strict=True):
        assert torch.equal(weight.to_dense(), values)


@pytest.mark.parametrize("pattern", ["4:2", "1:5", 3, "fan-out"])
def test_a_file_with_a_pattern_that_cannot_be(pattern: Any) -> None:
    layer = {"shape": [12, 8, 3, 3], "storage": "masked", "pattern": "2:4"}
    assert modelfile.layers_in("a file", json.dumps({"0.weight": layer}))["0.weight"]["pattern"] == "2:4"
    text = json.dumps({"0.weight": {**layer, "pattern": pattern}})
    with pytest.raises(RegrowValueError, match="damaged metadata: `0.weight` cannot have the pattern"):
        modelfile.layers_in("a file", text)


def test_torch_converts_two_of_four_to_its_semi_structured_form_and_back() -> None:
    """The form of sparse tensor cores, by torch's own conversion; what is not 2:4 does not come back."""
    model = nn.Linear(64, 32).half()
    weights = {}
    for name, how in {"2:4": {"pattern": "2:4"}, "free": {"sparsity": 0.5}}.items():
        weights[name] = regrow.densify(
            regrow.sparsify(copy.deepcopy(model), storage="masked", **how)
        ).weight.detach()
        assert int(weights[name].count_nonzero()) == 32 * 64 // 2
    for name, weight in weights.items():
        packed, meta = sparse_semi_structured_from_dense_cutlass(weight)
        assert packed.shape == (32, 32)
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(packed, meta), weight) == (name == "2:4")
