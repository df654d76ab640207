"""What is sparse by default in networks that people have, and that these networks train so."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import regrow

STEPS = 24
RULES = {"rigl": regrow.RigL, "set": regrow.SET}


def dense(model: nn.Module) -> dict[str, str]:
    """The weights that stayed dense, with the reason that `summary` gives."""
    return {row.name: row.reason for row in regrow.summary(model).rows if row.storage == "dense"}


def train(model: nn.Module, loss: Callable[[], Tensor], method: str = "rigl") -> list[float]:
    """Losses of some steps with an update every third, the invariants checked after each."""
    counts = {name: int(mask.sum()) for name, mask in regrow.masks(model).items()}
    start = regrow.masks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    attached = RULES[method](
        model, optimizer, total_steps=STEPS, update_every=3, drop_fraction=0.4, stop_fraction=1.0
    )
    updates = []
    attached.register_update_hook(updates.append)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        assert_invariants(model, counts)
    assert len(updates) == STEPS // 3 - 1
    assert all(set(update["layers"]) == set(counts) for update in updates)
    now = regrow.masks(model)
    assert all(not torch.equal(start[name], now[name]) for name in counts), "a topology never moved"
    assert sum(losses[-3:]) < sum(losses[:3])
    return losses


def assert_invariants(model: nn.Module, counts: dict[str, int]) -> None:
    for weight in regrow.weights.sparse_weights(model):
        mask = weight.mask()
        assert int(mask.sum()) == counts[weight.name]
        assert not weight.parameter.detach()[~mask].any(), (
            f"{weight.name} has inactive weights that are not zero"
        )
        gradient = weight.parameter.grad
        assert gradient is None or not gradient[~mask].any(), (
            f"{weight.name} has a gradient at inactive weights"
        )


# --- GPT-2: its blocks are Conv1D, its only Linear is tied to the embedding


@pytest.fixture
def gpt2() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers imports what happens to be installed
        import transformers
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return transformers.GPT2LMHeadModel(config)


def test_gpt2(gpt2: nn.Module) -> None:
    model = regrow.sparsify(gpt2, sparsity=0.8)
    blocks = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert set(regrow.masks(model)) == {
        f"transformer.h.{i}.{block}.weight" for i in range(2) for block in blocks
    }
    assert dense(model) == {
        "transformer.wte.weight": "embedding",
        "transformer.wpe.weight": "embedding",
        "lm_head.weight": "tied to the embedding `transformer.wte`",
    }
    sparse = regrow.weights.sparse_weights(model)
    total = sum(weight.numel for weight in sparse)
    assert abs(sum(weight.nnz for weight in sparse) - 0.2 * total) <= len(sparse)
    tokens = torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(1))
    train(model, lambda: model(input_ids=tokens, labels=tokens).loss)


def test_gpt2_saved_by_regrow_comes_back(gpt2: nn.Module, tmp_path) -> None:
    other = copy.deepcopy(gpt2)
    regrow.save(regrow.sparsify(gpt2, sparsity=0.8), tmp_path / "gpt2.safetensors")
    regrow.load(tmp_path / "gpt2.safetensors", into=other)
    tokens = torch.arange(16)[None]
    assert torch.equal(gpt2.eval()(tokens).logits, other.eval()(tokens).logits)
    assert other.lm_head.weight is other.transformer.wte.weight


# --- MobileNet-v1: depthwise convolutions stay dense


def mobilenet() -> nn.Sequential:
    torch.manual_seed(0)

    def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        block(8, 16, 1),
        block(16, 32, 2),
        block(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def test_mobilenet() -> None:
    model = regrow.sparsify(mobilenet(), sparsity=0.7)
    assert set(regrow.masks(model)) == {"0.0.weight", "1.3.weight", "2.3.weight", "3.3.weight", "6.weight"}
    assert dense(model) == {f"{i}.0.weight": "depthwise" for i in (1, 2, 3)}
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator)
    train(model, lambda: nn.functional.cross_entropy(model(x), y))


def test_grouped_convolutions_that_are_not_depthwise_are_sparse() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 16, 3, groups=8), nn.Conv1d(1, 4, 3))
    regrow.sparsify(model, sparsity=0.5)
    assert set(regrow.masks(model)) == {
        "0.weight",
        "2.weight",
    }  # a depth multiplier is depthwise, one channel is not
    assert dense(model) == {"1.weight": "depthwise"}


# --- attention


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


ATTENTION = {
    f"layers.{i}.{weight}.weight".replace("in_proj.weight", "in_proj_weight")
    for i in range(2)
    for weight in ("self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2")
}


@pytest.mark.parametrize("method", RULES)
def test_transformer_encoder(method: str) -> None:
    model = regrow.sparsify(encoder(), sparsity=0.7)
    assert set(regrow.masks(model)) == ATTENTION
    assert {row.storage for row in regrow.summary(model).rows} == {"masked"}
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))
    train(model, lambda: (model(x) - x.roll(1, 1)).square().mean(), method)

    # evaluation, in which torch may take its fused path, against training mode, which cannot
    reference = model.train()(x).detach()
    model.eval()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(model(x), reference)
    plain = regrow.densify(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(plain(x), reference)


def test_a_copy_of_a_transformer_encoder_trains_sparse() -> None:
    """`out_proj` is never called: its owner reads its weight, and a copy has lost the tensor hooks."""
    model = copy.deepcopy(regrow.sparsify(encoder(), sparsity=0.7))
    counts = {name: int(mask.sum()) for name, mask in regrow.masks(model).items()}
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - x.roll(1, 1)).square().mean().backward()
        optimizer.step()
        assert_invariants(model, counts)


def test_attention_with_projections_of_their_own() -> None:
    attention = nn.MultiheadAttention(16, 2, kdim=8, vdim=12, add_bias_kv=True, batch_first=True)
    regrow.sparsify(attention, sparsity=0.6)
    assert set(regrow.masks(attention)) == {
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    }
    assert dense(attention) == {"bias_k": "bias", "bias_v": "bias"}
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, 5, size, generator=generator) for size in (16, 8, 12))
    train(attention, lambda: (attention(q, k, v)[0] - q).square().mean())


def test_transformer_encoder_refuses_compressed_storage_and_auto_says_why() -> None:
    with pytest.raises(regrow.RegrowError, match="MultiheadAttention|TransformerEncoderLayer"):
        regrow.sparsify(encoder(), sparsity=0.7, storage="compressed")
    model = regrow.sparsify(encoder(), sparsity=0.7, storage="auto")
    reasons = {row.name: row.reason for row in regrow.summary(model).rows}
    assert reasons["layers.0.linear1.weight"] == "TransformerEncoderLayer reads its weight directly"
    assert (
        reasons["layers.0.self_attn.out_proj.weight"]
        == "NonDynamicallyQuantizableLinear has no compressed form"
    )


# --- recurrent weights


@pytest.mark.parametrize(
    ("cell", "settings", "expected"),
    [
        (nn.GRU, {}, {"weight_ih_l0", "weight_hh_l0"}),
        (nn.LSTM, {"num_layers": 2}, {f"weight_{kind}_l{i}" for kind in ("ih", "hh") for i in (0, 1)}),
        (
            nn.LSTM,
            {"bidirectional": True, "proj_size": 5},
            {f"weight_{kind}_l0{back}" for kind in ("ih", "hh", "hr") for back in ("", "_reverse")},
        ),
        (nn.RNN, {"bias": False}, {"weight_ih_l0", "weight_hh_l0"}),
    ],
)
# torch's advice on its own speed
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_recurrent_weights(cell: type[nn.RNNBase], settings: dict, expected: set[str]) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"cell": cell(6, 12, batch_first=True, **settings), "out": nn.LazyLinear(3)})
    x = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1))
    model["out"](model["cell"](x)[0])
    regrow.sparsify(model, distribution={"*": 0.6})
    assert set(regrow.masks(model)) == {f"cell.{name}" for name in expected} | {"out.weight"}
    train(model, lambda: (model["out"](model["cell"](x)[0]) - x[..., :3].roll(1, 1)).square().mean())


def test_cells() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.GRUCell(6, 8), nn.LSTMCell(8, 8)])
    regrow.sparsify(model, sparsity=0.5)
    assert set(regrow.masks(model)) == {f"{i}.weight_{kind}" for i in (0, 1) for kind in ("ih", "hh")}
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    h, c = torch.ones(5, 8), torch.ones(5, 8)  # a state of zeros would leave weight_hh without a gradient
    train(model, lambda: (model[1](model[0](x, h), (h, c))[0] - 0.3).square().mean())


# --- lazy modules, embeddings, norms


def test_a_lazy_layer_is_refused_until_it_has_seen_a_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(regrow.RegrowError) as caught:
        regrow.sparsify(model, sparsity=0.5)
    assert str(caught.value) == (
        "`model` holds a lazy layer without a shape: `2`.\nRun one batch through the model first."
    )
    assert isinstance(caught.value, ValueError)
    assert not regrow.is_sparse(model)
    model(torch.zeros(1, 4))
    assert set(regrow.masks(regrow.sparsify(model, sparsity=0.5))) == {"0.weight", "2.weight"}


def test_embeddings_norms_biases_and_other_modules_stay_dense() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 3))

    model = nn.ModuleDict(
        {
            "words": nn.Embedding(10, 4),
            "bag": nn.EmbeddingBag(10, 4),
            "norm": nn.LayerNorm([4, 4]),
            "group": nn.GroupNorm(2, 4),
            "own": Own(),
            "linear": nn.Linear(4, 4),
        }
    )
    regrow.sparsify(model, sparsity=0.5)
    assert set(regrow.masks(model)) == {"linear.weight"}
    reasons = dense(model)
    assert {reasons["words.weight"], reasons["bag.weight"]} == {"embedding"}
    assert reasons["own.table"] == "Own is not sparse by default"
    assert "norm.weight" in reasons
