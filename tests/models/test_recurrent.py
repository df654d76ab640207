"""The recurrent networks of text: counts of the papers, the state, dropout, and weight drop under sparsity."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import regrow
from regrow import models as zoo
from regrow._torch import tree_leaves, tree_map_only
from regrow.errors import RegrowValueError
from regrow.models.dropouts import DroppedEmbedding, LockedDropout, WeightDropLinear, WeightDropLSTM
from regrow.models.language import MixtureOfSoftmaxes
from regrow.models.onlstm import OrderedLSTM
from regrow.models.rhn import RecurrentHighway
from regrow.sparsity.layers import find_layers

Build = Callable[..., zoo.LanguageModel]
SMALL: dict[str, tuple[Build, dict[str, Any]]] = {
    "char-gru": (zoo.char_gru, {"embedding": 8, "hidden": 12, "readout": 10}),
    "stacked-lstm": (zoo.stacked_lstm, {"embedding": 8, "hidden": 12}),
    "rhn": (zoo.rhn, {"hidden": 12, "depth": 3}),
    "on-lstm": (zoo.on_lstm, {"embedding": 8, "hidden": 12, "chunk": 4}),
    "awd-lstm": (zoo.awd_lstm, {"embedding": 8, "hidden": 12}),
    "mixture": (zoo.awd_lstm, {"embedding": 8, "hidden": 12, "last": 10, "experts": 3}),
}
every = pytest.mark.parametrize("name", SMALL)


def small(name: str, **options: Any) -> zoo.LanguageModel:
    build, own = SMALL[name]
    torch.manual_seed(0)
    return build(**{"classes": 30, **own, **options}).double()


def tokens(length: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(30, (4, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("build", "options", "count"),
    [
        (zoo.char_gru, {}, 256 * 128 + 3 * 512 * (128 + 512 + 2) + 513 * 256 + 257 * 128 + 256),
        (zoo.stacked_lstm, {}, 66_034_000),
        (zoo.rhn, {}, 23_484_060),
        (zoo.on_lstm, {}, 25_232_180),  # 25M
        (zoo.awd_lstm, {"classes": 10_000}, 24_221_600),  # 24M, on Penn Treebank
        (zoo.awd_lstm, {}, 33_556_078),  # 33M, on WikiText-2
        (zoo.awd_lstm, {"experts": 15, "embedding": 300, "last": 650}, 34_909_528),  # 35M
        (
            zoo.awd_lstm,
            {"classes": 10_000, "experts": 15, "embedding": 280, "hidden": 960, "last": 620},
            21_500_620,  # 22M
        ),
    ],
)
def test_parameters_of_the_papers(build: Build, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = build(**options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("build", "weights", "biases"), [(zoo.stacked_lstm, 66_000_000, 34_000), (zoo.rhn, 23_455_800, 28_260)]
)
def test_what_selfish_rnn_masks(build: Build, weights: int, biases: int) -> None:
    """All but biases, what is tied once."""
    with torch.device("meta"):
        model = build()
    counts = {id(p): p.numel() for layer in find_layers(model) for p in [layer.parameter]}
    assert sum(counts.values()) == weights
    assert sum(p.numel() for p in model.parameters() if p.dim() == 1) == biases


def test_each_matrix_holds_all_gates() -> None:
    with torch.device("meta"):
        highway, ordered = zoo.rhn(), zoo.on_lstm()
    shapes = [layer.shape for layer in find_layers(highway) if layer.dense_because is None]
    assert shapes == [(1660, 830)] * 11
    shapes = [layer.shape for layer in find_layers(ordered) if layer.dense_because is None]
    assert shapes == [(4830, 400), (4830, 1150), (4830, 1150), (4830, 1150), (1680, 1150), (1680, 400)]


@every
def test_width_leaves_the_vocabulary(name: str) -> None:
    full, half = (
        {layer.weight_name: layer.shape for layer in find_layers(small(name, width=w))} for w in (2.0, 1.0)
    )
    assert full.keys() == half.keys()
    for weight, shape in full.items():
        ends = weight.startswith(("embedding", "head.weight", "head.decoder"))
        experts = weight == "head.prior.weight"
        assert shape == (half[weight][0] * (1 if ends or experts else 2), half[weight][1] * 2), weight


@every
def test_a_text_in_pieces_is_the_text(name: str) -> None:
    model, text = small(name).eval(), tokens(9)
    whole, end = model.with_state(text)
    first, state = model.with_state(text[:, :4])
    second, after = model.with_state(text[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    for one, other in zip(tree_leaves(after), tree_leaves(end), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(model(text), whole)
    torch.testing.assert_close(model(text[:, 4:], state), second)
    assert not torch.allclose(model(text[:, 4:]), second)


@every
def test_the_batch_is_the_second_dimension_of_the_state(name: str) -> None:
    model, text = small(name).eval(), tokens()
    logits, state = model.with_state(text)
    chosen = tree_map_only(Tensor, lambda leaf: leaf[:, 1:3], state)
    torch.testing.assert_close(model(text[1:3], chosen), model(text, state)[1:3])
    assert logits.shape == (4, 7, 30)


@every
def test_what_comes_later_does_not_matter(name: str) -> None:
    model, text = small(name).eval(), tokens()
    other = text.clone()
    other[0, 5] = (other[0, 5] + 1) % 30
    one, two = model(text), model(other)
    torch.testing.assert_close(one[:, :5], two[:, :5])
    torch.testing.assert_close(one[1:], two[1:])
    assert (one[0, 5:] != two[0, 5:]).any(-1).all()


@every
def test_gradients_reach_every_weight_and_the_state(name: str) -> None:
    model = small(name)
    _, state = model.with_state(tokens(seed=2))
    state = tree_map_only(Tensor, lambda leaf: leaf.detach().requires_grad_(), state)
    F.cross_entropy(model(tokens(), state).flatten(0, 1), tokens(seed=3).flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert all(leaf.grad.abs().sum() > 0 for leaf in tree_leaves(state))


@every
def test_it_learns(name: str) -> None:
    """Overfits one batch: the next token is a function of this one."""
    known = inspect.signature(SMALL[name][0]).parameters
    weak = {option: 0.02 for option in known if "drop" in option or option in ("activity", "slowness")}
    model, text = small(name, **weak), tokens(12)
    following = (7 * text + 3) % 30
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(text).flatten(0, 1), following.flatten())
        (loss + model.regularization()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(30), rel=0.1)
    with torch.no_grad():
        found = F.cross_entropy(model.eval()(text).flatten(0, 1), following.flatten())
    assert found < 0.7 * losses[0]


@every
def test_copies_after_a_forward_pass(name: str) -> None:
    model = small(name)
    model(tokens()).sum().backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.eval()(tokens()), model.eval()(tokens()))
        model.train()


def test_regularisation_is_of_the_last_pass_and_added_once() -> None:
    model = small("awd-lstm", dropout=0.0, activity=3.0, slowness=2.0)
    seen: list[Tensor] = []
    handle = model.after.register_forward_hook(lambda module, args, output: seen.append(output))
    model(tokens())
    handle.remove()
    (y,) = seen
    expected = 3 * y.square().mean() + 2 * (y[:, 1:] - y[:, :-1]).square().mean()
    torch.testing.assert_close(model.regularization(), expected)
    assert model.regularization() == 0
    model(tokens(1))  # no change from one step to the next
    assert model.regularization().isfinite()
    model.eval()(tokens())
    assert model.regularization() == 0
    assert small("char-gru").regularization() == 0


def test_dropouts_are_off_in_evaluation_and_on_in_training() -> None:
    for name in SMALL:
        model, text = small(name), tokens()
        assert torch.equal(model.eval()(text), model(text))
        model.train()
        assert torch.equal(model(text), model(text)) == (name == "char-gru")


def test_locked_dropout_is_the_same_at_all_time_steps() -> None:
    torch.manual_seed(0)
    y = LockedDropout(0.4)(torch.ones(50, 6, 40, dtype=torch.float64))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert not torch.equal(y[0], y[1])
    assert {round(v, 9) for v in y.unique().tolist()} == {0, round(1 / 0.6, 9)}
    assert y.mean() == pytest.approx(1, abs=0.05)


def test_embedding_dropout_drops_a_word_everywhere() -> None:
    torch.manual_seed(0)
    embedding = DroppedEmbedding(2000, 3, 0.3).double()
    words = torch.arange(2000).repeat(4, 1)
    ratio = embedding(words) / embedding.eval()(words)
    torch.testing.assert_close(ratio, ratio[:1, :, :1].expand_as(ratio))
    assert {round(v, 9) for v in ratio.flatten().tolist()} == {0, round(1 / 0.7, 9)}
    assert ratio.mean().item() == pytest.approx(1, abs=0.06)


def test_weight_drop_is_torchs_lstm_with_other_recurrent_weights() -> None:
    torch.manual_seed(0)
    dropping, plain = WeightDropLSTM(5, 6, 0.5).double(), nn.LSTM(5, 6, batch_first=True).double()
    plain.load_state_dict(dropping.state_dict())  # torch's names and shapes
    x, state = torch.randn(3, 4, 5).double(), (torch.randn(1, 3, 6).double(), torch.randn(1, 3, 6).double())
    for given in (None, state):
        got, expected = dropping.eval()(x, given), plain(x, given)
        torch.testing.assert_close(got, expected)
    torch.manual_seed(1)
    got = dropping.train()(x, state)
    torch.manual_seed(1)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(F.dropout(plain.weight_hh_l0, 0.5))
    torch.testing.assert_close(got, plain(x, state))


def test_weight_drop_of_a_linear_layer_is_one_draw_within() -> None:
    torch.manual_seed(0)
    layer, x = WeightDropLinear(20, 10, 0.5), torch.randn(3, 20)
    with layer.one_draw():
        assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer(x), layer(x))
    with pytest.raises(ZeroDivisionError), layer.one_draw():
        raise ZeroDivisionError
    assert not torch.equal(layer(x), layer(x))


DROPPING: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: WeightDropLSTM(6, 8, 0.4),
    "on-lstm": lambda: OrderedLSTM(6, 8, 2, 0.4),
}


class Reading(nn.Module):
    """One layer and what reads its last output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.head = DROPPING[kind](), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layer(x)[0][:, -1])
        return found


@pytest.mark.parametrize("kind", DROPPING)
def test_a_dropped_weight_is_no_dropped_connection(kind: str) -> None:
    """Masks and values stay; the gradient is the dropped network's, and RigL grows where that is largest."""
    torch.manual_seed(0)
    model = regrow.sparsify(Reading(kind).double(), 0.5, "uniform", include="layer*", storage="masked")
    names = sorted(regrow.masks(model))
    assert len(names) == 2
    recurrent = next(name for name in names if "hh" in name or "recurrent" in name)
    parameter = model.get_parameter(recurrent)
    optimizer = SGD(model.parameters(), lr=0.05)
    method = regrow.RigL(model, optimizer, total_steps=1000, update_every=3, stop_fraction=1.0)
    kinds = {recurrent: 0, names[1 - names.index(recurrent)]: 0}
    for step in range(12):
        x = torch.randn(16, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        before, values = regrow.masks(model), parameter.detach().clone()
        gradients = reference(model, x, step)
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(x).square().sum().backward()
        for name in names:
            expected = gradients[name].where(before[name], 0)
            torch.testing.assert_close(model.get_parameter(name).grad, expected)
        assert torch.equal(parameter.detach(), values)  # nothing of the draw is left in it
        assert torch.equal(regrow.masks(model)[recurrent], before[recurrent])
        optimizer.step()
        for name, mask in regrow.masks(model).items():
            assert mask.sum() == before[name].sum()
            assert not model.get_parameter(name).detach()[~mask].any()
            grown = mask & ~before[name]
            if (count := int(grown.sum())) > 0:
                best = gradients[name].abs().masked_fill(before[name], -1).flatten().topk(count).indices
                assert torch.equal(grown.flatten().nonzero().flatten(), best.sort().values)
                kinds[name] += 1
    assert all(kinds.values()), kinds
    method.detach()


def reference(model: nn.Module, x: Tensor, seed: int) -> dict[str, Tensor]:
    """The gradient at all positions, of a dense copy with the same values and the same draw."""
    dense = regrow.densify(copy.deepcopy(model))
    torch.manual_seed(seed)
    dense(x).square().sum().backward()
    return {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["on-lstm", "awd-lstm", "mixture"])
def test_weight_drop_leaves_recurrent_weights_sparse_by_default(name: str) -> None:
    model = small(name)
    sparse = set(regrow.masks(regrow.sparsify(model, 0.5)))
    recurrent = "recurrent.weight" if name == "on-lstm" else "weight_hh_l0"
    assert {f"layers.{layer}.{recurrent}" for layer in range(3)} <= sparse
    assert not {"embedding.weight", "head.weight", "head.decoder.weight"} & sparse


def test_weight_drop_of_an_ordered_layer_has_no_compressed_form() -> None:
    with pytest.raises(RegrowValueError, match="WeightDrop.* has no compressed form"):
        regrow.sparsify(small("on-lstm"), 0.5, storage="compressed")


def test_highway_and_ordered_layers_train_alike_in_both_storages() -> None:
    for build, options in (
        (zoo.rhn, SMALL["rhn"][1]),
        (zoo.on_lstm, {**SMALL["on-lstm"][1], "weight_drop": 0}),
    ):
        models = []
        for storage in ("masked", "compressed"):
            torch.manual_seed(0)
            model = build(classes=30, **options).double()
            regrow.sparsify(model, 0.6, "uniform", storage=storage)
            optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
            method = regrow.RigL(model, optimizer, total_steps=20, update_every=3)
            torch.manual_seed(1)
            start = regrow.masks(model)
            for step in range(10):
                optimizer.zero_grad()
                logits = model(tokens(seed=step))
                F.cross_entropy(logits.flatten(0, 1), tokens(seed=step + 1).flatten()).backward()
                optimizer.step()
            method.detach()
            models.append(model.eval())
        masks, others = map(regrow.masks, models)
        assert any(not torch.equal(start[name], mask) for name, mask in masks.items())
        assert all(torch.equal(masks[name], others[name]) for name in masks)
        torch.testing.assert_close(models[0](tokens()), models[1](tokens()))


@pytest.mark.parametrize("name", ["char-gru", "rhn", "on-lstm"])  # torch's LSTM needs AVX-512 for it
def test_autocast_and_bfloat16(name: str) -> None:
    model, text = small(name).float().eval(), tokens()
    exact, state = model.with_state(text)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(text, model.with_state(text)[1])
    torch.testing.assert_close(found.float(), model(text, state), atol=0.03, rtol=0.05)
    half = model.bfloat16()
    found, state = half.with_state(text)
    assert {found.dtype, *(leaf.dtype for leaf in tree_leaves(state))} == {torch.bfloat16}
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0.05)


def test_deployed() -> None:
    model = regrow.sparsify(small("char-gru").float(), 0.5, storage="masked").eval()
    deployed = regrow.deploy(model, tokens())
    for seed in range(2):
        torch.testing.assert_close(
            deployed(tokens(seed=seed)), model(tokens(seed=seed)), atol=1e-5, rtol=1e-4
        )


def test_a_highway_step_by_hand() -> None:
    torch.manual_seed(0)
    layer, x = RecurrentHighway(3, 4, 2, 0.0).double(), torch.randn(2, 2, 3).double()
    outputs, last = layer(x)
    s = torch.zeros(2, 4).double()
    for t in range(2):
        for step in range(2):
            matrix, bias = layer.recurrent[step].weight, layer.recurrent[step].bias
            gates = s @ matrix.T + bias
            if step == 0:
                gates = gates + x[:, t] @ layer.input.weight.T + layer.input.bias
            new, transfer = gates[:, :4].tanh(), gates[:, 4:].sigmoid()
            s = new * transfer + s * (1 - transfer)
        torch.testing.assert_close(outputs[:, t], s)
    torch.testing.assert_close(last, s[None])


def test_an_ordered_step_by_hand() -> None:
    """Unit by unit, as the paper's equations have it."""
    torch.manual_seed(0)
    layer, x = OrderedLSTM(3, 6, 2, 0.0).double(), torch.randn(1, 1, 3).double()
    h, c = torch.randn(1, 1, 6).double(), torch.randn(1, 1, 6).double()
    outputs, (_, after) = layer(x, (h, c))
    weight, recurrent = layer.input, layer.recurrent
    rows = (weight.weight @ x[0, 0] + weight.bias + recurrent.weight @ h[0, 0] + recurrent.bias).tolist()
    cumax = [[], []]
    for master in range(2):
        exps = [math.exp(v) for v in rows[3 * master : 3 * master + 3]]
        cumax[master] = [sum(exps[: k + 1]) / sum(exps) for k in range(3)]
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    for unit in range(6):
        write, keep = 1 - cumax[0][unit // 2], cumax[1][unit // 2]
        out, new, enter, forget = (rows[6 + 6 * gate + unit] for gate in range(4))
        both = write * keep
        f, i = sigmoid(forget) * both + keep - both, sigmoid(enter) * both + write - both
        cell = f * c[0, 0, unit].item() + i * math.tanh(new)
        assert after[0, 0, unit].item() == pytest.approx(cell)
        assert outputs[0, 0, unit].item() == pytest.approx(sigmoid(out) * math.tanh(cell))


def test_the_mixture_by_hand() -> None:
    torch.manual_seed(0)
    head, x = MixtureOfSoftmaxes(5, 4, 7, 3, 0.2).double().eval(), torch.randn(2, 3, 5).double()
    prior = (x @ head.prior.weight.T).softmax(-1)
    mean = torch.zeros(2, 3, 7).double()
    for expert in range(3):
        own = head.latent.weight[4 * expert : 4 * expert + 4], head.latent.bias[4 * expert : 4 * expert + 4]
        logits = head.decoder(F.linear(x, *own).tanh())
        mean += prior[..., expert, None] * logits.softmax(-1)
    torch.testing.assert_close(head(x).exp(), mean)
    targets = torch.randint(7, (6,))
    loss = F.cross_entropy(head(x).flatten(0, 1), targets)  # as of logits
    torch.testing.assert_close(loss, F.nll_loss(head(x).flatten(0, 1), targets))


@pytest.mark.parametrize(
    ("build", "options", "text"),
    [
        (zoo.char_gru, {"hidden": 0}, "`hidden` must be a whole number of at least 1, got 0"),
        (zoo.char_gru, {"width": 0}, "`width` must be a number above 0, got 0"),
        (zoo.stacked_lstm, {"layers": 1.5}, "`layers` must be a whole number of at least 1, got 1.5"),
        (zoo.stacked_lstm, {"dropout": 1}, r"`dropout` must be in \[0, 1\), got 1"),
        (zoo.rhn, {"depth": 0}, "`depth` must be a whole number of at least 1, got 0"),
        (zoo.rhn, {"input_dropout": -0.1}, r"`input_dropout` must be in \[0, 1\), got -0.1"),
        (zoo.on_lstm, {"hidden": 1155}, "`hidden` must be a multiple of `chunk`, got 1155 and 10"),
        (zoo.on_lstm, {"width": 0.001}, "`width` 0.001 leaves none of 40 channels"),
        (zoo.on_lstm, {"slowness": -1}, "`slowness` must be .*, got -1"),
        (
            zoo.awd_lstm,
            {"last": 650},
            "`last` must be `embedding` = 400 where one softmax is tied to it, got 650",
        ),
        (zoo.awd_lstm, {"experts": 0}, "`experts` must be a whole number of at least 1, got 0"),
        (zoo.awd_lstm, {"weight_drop": 1.0}, r"`weight_drop` must be in \[0, 1\), got 1.0"),
        (zoo.awd_lstm, {"activity": "much"}, "`activity` must be .*, got 'much'"),
    ],
)
def test_bad_options(build: Build, options: dict[str, Any], text: str) -> None:
    with torch.device("meta"), pytest.raises(RegrowValueError, match=text):
        build(**options)


@every
def test_bad_tokens_and_states(name: str) -> None:
    model = small(name)
    _, state = model.with_state(tokens())
    with pytest.raises(RegrowValueError, match=r"`state` must be of 2 sequences, as `tokens` are"):
        model(tokens()[:2], state)
    with pytest.raises(RegrowValueError, match="`state` must have one entry for each of"):
        model(tokens(), torch.zeros(1, 4, 12))
    with pytest.raises(
        RegrowValueError, match=r"`tokens` must be of shape \[B, T\], none of them 0, got \[7\]"
    ):
        model(tokens()[0])
    with pytest.raises(RegrowValueError, match=r"`tokens` must be of shape .*, got \[4, 0\]"):
        model(tokens(0))
