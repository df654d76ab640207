"""What `costs` counts for each kind of layer, worked out by hand, and that it leaves the model alone."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
from regrow.accounting import stored_size
from regrow.errors import RegrowValueError


def uses(model: nn.Module, example: object, convention: str = "clean") -> dict[str, float]:
    counted = regrow.costs(model, example, convention=convention)  # type: ignore[arg-type]
    return {layer.name: layer.uses for layer in counted.layers}


def test_linear() -> None:
    counted = regrow.costs(nn.Linear(10, 3), torch.zeros(4, 10))
    (layer,) = counted.layers
    assert (layer.name, layer.shape, layer.parameters, layer.connections) == ("weight", (3, 10), 30, 30)
    assert layer.flops_dense == layer.flops_sparse == 3 * (10 + 9 + 1 + 1)
    assert counted.multiply_adds == {"dense": 30, "sparse": 30}
    assert counted.other_parameters == 3
    assert uses(nn.Linear(10, 3), torch.zeros(4, 7, 10)) == {"weight": 7}  # tokens


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv1d(4, 6, 3), (4, 9), 7),
        (nn.Conv2d(4, 6, 3, 2, 1), (4, 9, 8), 5 * 4),
        (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 9), 25),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 9, 9), 49),
        (nn.Conv2d(4, 8, 3, groups=4), (4, 9, 9), 49),
        (nn.Conv3d(2, 2, 2), (2, 3, 3, 3), 8),
        (nn.ConvTranspose2d(4, 6, 3, 2), (4, 5, 5), 25),
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (4, 5, 5), 25),
    ],
)
def test_convolutions(module: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    counted = regrow.costs(module, torch.zeros(2, *shape))
    (layer,) = counted.layers
    assert layer.uses == expected
    # a multiply-add in each product that the convolution makes: counted with ones
    ones = copy.deepcopy(module)
    for parameter in ones.parameters():
        nn.init.ones_(parameter)
    nn.init.zeros_(ones.bias)
    if not isinstance(module, nn.ConvTranspose2d) and module.padding == (0,) * len(module.kernel_size):
        assert counted.multiply_adds["dense"] == ones(torch.ones(1, *shape)).sum().item()
    outputs = module(torch.zeros(1, *shape)).numel()
    assert counted.flops["dense"] == 2 * counted.multiply_adds["dense"] + outputs


def test_the_published_counter_pads_by_half_a_kernel() -> None:
    padded = nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(3, 8, 7, 2))
    assert uses(padded, torch.zeros(1, 3, 224, 224)) == {"1.weight": 112**2}
    assert uses(padded, torch.zeros(1, 3, 224, 224), "rigl") == {"1.weight": 115**2}
    inside = nn.Conv2d(3, 8, 7, 2, 3)  # the same map, and the counter sees the padding once
    assert uses(inside, torch.zeros(1, 3, 224, 224), "rigl") == {"weight": 112**2}
    assert uses(nn.Conv2d(3, 8, 1, 2), torch.zeros(1, 3, 9, 9), "rigl") == {"weight": 25}


def test_the_published_counter_gives_a_depthwise_kernel_one_output() -> None:
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    clean, rigl = (regrow.costs(depthwise, torch.zeros(1, 8, 4, 4), convention=c) for c in ("clean", "rigl"))
    assert clean.flops["dense"] == 16 * (2 * 72 + 8)
    assert rigl.flops["dense"] == 16 * (2 * 72 + 1)
    assert clean.size_megabytes["dense"] - rigl.size_megabytes["dense"] == pytest.approx(7 * 4 / 1e6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_weights_work_once_a_step(batch_first: bool) -> None:
    model = nn.GRU(5, 7, num_layers=2, batch_first=batch_first)
    example = torch.zeros(4, 4, 5)
    assert set(uses(model, example).values()) == {4}
    assert uses(nn.LSTMCell(5, 7), torch.zeros(3, 5)) == {"weight_ih": 1, "weight_hh": 1}


def test_a_packed_sequence() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(5, 7, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 1]), batch_first=True)
            result: Tensor = self.rnn(packed)[1]
            return result

    assert uses(Packed(), torch.zeros(2, 3, 5)) == {"rnn.weight_ih_l0": 2, "rnn.weight_hh_l0": 2}


def test_multi_head_attention() -> None:
    class Cross(nn.Module):
        def __init__(self, **sizes: int) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, x: Tensor) -> Tensor:
            memory = x[:, :3, : self.attention.kdim]
            result: Tensor = self.attention(x, memory, value=memory)[0]
            return result

    assert uses(Cross(), torch.zeros(2, 6, 8)) == {
        "attention.in_proj_weight": 4,  # 6, 3 and 3 tokens for a third of the rows each
        "attention.out_proj.weight": 6,
    }
    assert uses(Cross(kdim=5, vdim=5), torch.zeros(2, 6, 8)) == {
        "attention.q_proj_weight": 6,
        "attention.k_proj_weight": 3,
        "attention.v_proj_weight": 3,
        "attention.out_proj.weight": 6,
    }


def test_a_stock_encoder_layer_in_evaluation_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    assert set(uses(model, torch.zeros(2, 5, 8)).values()) == {5}
    assert torch.backends.mha.get_fastpath_enabled() == fast
    sparse = regrow.sparsify(copy.deepcopy(model), 0.75, "uniform", include="*")
    counted = regrow.costs(sparse, torch.zeros(2, 5, 8))
    assert counted.multiply_adds["sparse"] == pytest.approx(0.25 * counted.multiply_adds["dense"], rel=1e-3)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.twice = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)
        self.free = nn.Parameter(torch.zeros(3, 3))
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.twice(F.relu(self.twice(self.embedding(x)))))
        return result


def test_shared_reused_and_idle_weights() -> None:
    counted = regrow.costs(Shared(), torch.zeros(2, 6, dtype=torch.int64))
    rows = {layer.name: (layer.parameters, layer.uses) for layer in counted.layers}
    assert rows == {
        "free": (9, 0),
        "embedding.weight": (44, 0),
        "twice.weight": (16, 12),
        "idle.weight": (16, 0),
        "head.weight": (0, 6),
    }
    assert counted.parameters["dense"] == sum(p.numel() for p in Shared().parameters() if p.dim() > 1)
    assert counted.uncounted == ("free", "idle.weight")
    assert "without a rule, 0 FLOPs: free, idle.weight" in str(counted)


def test_a_network_of_transformers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    tokens = torch.zeros(3, 7, dtype=torch.int64)
    counted = regrow.costs(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    rows = {layer.name: layer.uses for layer in counted.layers}
    assert {name for name, count in rows.items() if count == 7} == {
        *(
            f"transformer.h.0.{part}.weight"
            for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
        "lm_head.weight",
    }


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_as_sparse_as_the_model_is(storage: str) -> None:
    model = regrow.sparsify(mlp(), distribution={"0": 0.9}, storage=storage)
    counted = regrow.costs(model, torch.zeros(3, 30))
    first, last = counted.layers
    assert (first.name, first.parameters, first.connections, first.density) == ("0.weight", 600, 60, 0.1)
    assert first.flops_sparse == 2 * 60 + 20
    assert (last.connections, last.density) == (200, 1)
    assert counted.parameters == {"dense": 800, "sparse": 260}
    assert counted.other_parameters == 20 + 20 + 20 + 10
    bits = 32 * 260 + 600 + 32 * 30
    assert counted.size_megabytes["sparse"] == pytest.approx(bits / 8e6)
    assert counted.size_megabytes["dense"] == pytest.approx((32 * 800 + 32 * 30) / 8e6)
    assert stored_size(model) == counted.size_megabytes["sparse"]


def test_unrounded_densities_until_the_topology_has_another_count() -> None:
    model = regrow.sparsify(mlp(), 0.777, "uniform", include="*")
    exact = regrow.costs(model, torch.zeros(1, 30), convention="rigl").flops["sparse"]
    assert exact == pytest.approx(2 * 0.223 * 800 + 30)
    real = regrow.costs(model, torch.zeros(1, 30)).flops["sparse"]
    assert real == 2 * (134 + 45) + 30
    (first, _) = regrow.weights.sparse_weights(model)
    first.assign(first.positions()[:50], first.values()[:50])  # as pruning would
    assert regrow.costs(model, torch.zeros(1, 30), convention="rigl").flops["sparse"] == pytest.approx(
        2 * (50 + 0.223 * 200) + 30
    )


def test_the_model_stays_as_it_is() -> None:
    model = regrow.sparsify(nn.Sequential(mlp(), nn.Dropout(0.5)), 0.5)
    model[0][1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    regrow.costs(model, torch.zeros(3, 30))
    with pytest.raises(RegrowValueError):
        regrow.costs(model, torch.zeros(3, 31))
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_size_of_the_batch_does_not_matter() -> None:
    one, many = (regrow.costs(mlp(), torch.zeros(n, 30)).to_dict() for n in (1, 5))
    assert one == many


def test_a_small_dense_network_to_compare_with() -> None:
    small = nn.Sequential(nn.Linear(30, 2), nn.ReLU(), nn.Linear(2, 10))
    counted = regrow.costs(mlp(), torch.zeros(1, 30), small_dense=small)
    assert counted.training_multiple["small-dense"] == (2 * 80 + 12) / (2 * 800 + 30)
    assert regrow.costs(mlp(), torch.zeros(1, 30)).training_multiple["small-dense"] is None


def test_as_json_and_as_text() -> None:
    counted = regrow.costs(regrow.sparsify(mlp(), 0.8), torch.zeros(1, 30), multiplier=5)
    document = json.loads(json.dumps(counted.to_dict()))
    assert document["layers"][0]["shape"] == [20, 30]
    assert document["flops"] == counted.flops
    assert document["training_multiple"]["rigl"] > 1
    text = str(counted)
    for word in (
        "0.weight",
        "20 x 30",
        "training at 5x the steps",
        "rigl 1.",
        "small-dense -",
        "all counted",
    ):
        assert word in text


def test_the_network_behind_torch_compile() -> None:
    compiled = torch.compile(mlp(), backend="eager")
    assert uses(compiled, torch.zeros(1, 30)) == {"0.weight": 1, "3.weight": 1}


def test_training_flops_of_a_run() -> None:
    counted = regrow.costs(nn.Linear(10, 3), torch.zeros(1, 10))
    assert counted.training_flops("dense", steps=7, batch_size=5) == 3 * 63 * 35
    with pytest.raises(
        RegrowValueError, match="`method` must be one of dense, .*got 'stactic', did you mean `static`"
    ):
        counted.training_flops("stactic", steps=7, batch_size=5)
    with pytest.raises(RegrowValueError, match="`method` must be one of dense, .*got 'small-dense'"):
        counted.training_flops("small-dense", steps=7, batch_size=5)
    with pytest.raises(RegrowValueError, match="`steps` must be a whole number of at least 1, got 0"):
        counted.training_flops("dense", steps=0, batch_size=5)


@pytest.mark.parametrize(
    ("model", "example", "arguments", "text"),
    [
        (nn.Linear(3, 2), torch.zeros(1, 4), {}, r"`example` does not go through `model`: shape \(1, 4\): "),
        (
            nn.Linear(3, 2),
            torch.zeros(0, 3),
            {},
            r"at least one example in its first dimension, got shape \(0, 3\)",
        ),
        (nn.Linear(3, 2), torch.tensor(1.0), {}, r"in its first dimension, got shape \(\)"),
        (nn.Linear(3, 2), 7, {}, "`example` must be a batch: a tensor, .*got int"),
        (nn.Linear(3, 2), {}, {}, "`example` must be a batch: .*got dict"),
        (nn.ReLU(), torch.zeros(1, 4), {}, "`model` has no weights of two or more dimensions"),
        (
            nn.Embedding(4, 2),
            torch.tensor([1]),
            {},
            r"`model` used none of its weights on `example`: \['weight'\]",
        ),
        (F.relu, torch.zeros(1, 4), {}, "`model` must be a torch.nn.Module, got the function relu"),
        (nn.LazyLinear(4), torch.zeros(1, 4), {}, "`model` holds a lazy layer without a shape"),
        (
            nn.Linear(3, 2),
            torch.zeros(1, 3),
            {"convention": "riggl"},
            "`convention` must be one of clean, rigl, got 'riggl', did you mean `rigl`",
        ),
        (nn.Linear(3, 2), torch.zeros(1, 3), {"update_every": 0}, "`update_every` must be a whole number"),
        (
            nn.Linear(3, 2),
            torch.zeros(1, 3),
            {"multiplier": -1},
            "`multiplier` must be a number above 0, got -1",
        ),
    ],
)
def test_bad_input(model: nn.Module, example: object, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(RegrowValueError, match=text):
        regrow.costs(model, example, **arguments)  # type: ignore[arg-type]
