"""From a network to a graph that computes the same."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from inference.traced import check, ops, run, stir
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import regrow
from regrow.inference.graph import Connections, allowed
from regrow.inference.passes import simplify
from regrow.inference.plain import plain_copy
from regrow.inference.reference import interpret
from regrow.inference.trace import NotTraceable, trace
from regrow.models import models


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, stride=2, bias=False),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(288, 100),
        nn.Dropout(),
        nn.Linear(100, 10),
    )


X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def stored(model: nn.Module, storage: str) -> nn.Module:
    """`model` at 90%, in a storage: mixed is both, densified none any more."""
    if storage == "mixed":
        names = list(regrow.masks(regrow.sparsify(model, sparsity=0.9, storage="masked")))
        masks = regrow.masks(model)
        kinds = {name: ("masked", "compressed")[index % 2] for index, name in enumerate(names)}
        return regrow.sparsify(regrow.densify(model), include=names, init=masks, storage=kinds)
    made = regrow.sparsify(model, sparsity=0.9, storage="compressed" if storage == "compressed" else "masked")
    return regrow.densify(made) if storage == "densified" else made


STORAGES = ["masked", "compressed", "mixed", "densified"]


@pytest.mark.parametrize("storage", STORAGES)
def test_a_sparse_network(storage: str) -> None:
    model = stir(stored(net(), storage))
    masks = {name: weight != 0 for name, weight in model.named_parameters() if weight.dim() > 1}
    if storage != "densified":
        masks = regrow.masks(model)
    graph = trace(model, (X,))
    assert graph.shapes == [(1, 3, 8, 8)]
    assert set(graph.weights) == set(masks)
    for name, mask in masks.items():
        weight = graph.weights[name]
        assert isinstance(weight, Connections) == (float(mask.float().mean()) <= 0.5)
        assert torch.equal((weight.dense() if isinstance(weight, Connections) else weight) != 0, mask)
    assert {node.layer for node in graph.nodes} >= {"0", "1", "2", "3", "4", "6", "8"}
    check(model, X, batches=(1, 2, 7))


OPTIONS: dict[str, dict[str, Any]] = {
    "wrn": {"depth": 10, "width": 1},
    "resnet18": {"width": 0.25},
    "resnet50": {"width": 0.25},
    "resnet18-cifar": {"width": 0.25},
    "resnet50-cifar": {"width": 0.25},
    "mobilenet-v1": {"width": 0.25},
    "vgg16": {"width": 0.25},
    "vgg19": {"width": 0.25},
    "vit": {"depth": 2, "dim": 48},
    "gpt": {"depth": 2, "dim": 48},
}
RECURRENT = {"char-gru", "stacked-lstm", "rhn", "on-lstm", "awd-lstm"}
"""What is torch's own in them stays so: the tests of the networks compare them as they are deployed."""


@pytest.mark.parametrize("name", [name for name in models() if name not in RECURRENT])
def test_the_networks_of_the_zoo(name: str) -> None:
    torch.manual_seed(0)
    record, options = models()[name], OPTIONS.get(name, {})
    shape = (1, *record.example_shape(options))
    example = torch.randint(0, 50, shape) if name == "gpt" else torch.rand(shape)
    every = STORAGES if name in ("mlp", "lenet", "allconv", "gpt") else ["mixed", "densified"]
    for storage in every:
        model = stir(stored(record.build(**options), storage))
        simple = check(model, example, batches=(1, 2))
        assert {"regrow.conv2d", "regrow.linear"} & set(ops(simple))
        assert not any("batch_norm" in op for op in ops(simple))


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_become_float32(storage: str, dtype: torch.dtype) -> None:
    model = stored(net(), storage).to(dtype).eval()
    graph = trace(model, (X.to(dtype),))
    assert graph.dtypes == [torch.float32]
    assert {weight.values.dtype for weight in graph.weights.values() if isinstance(weight, Connections)} == {
        torch.float32
    }
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.02}
    torch.testing.assert_close(run(graph, X), model(X.to(dtype)).float(), **near)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_the_model_is_left_as_it_is(storage: str) -> None:
    model = stored(net(), storage).train()
    model[3].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = regrow.RigL(model, optimizer, total_steps=40, update_every=2)
    model(X.expand(4, -1, -1, -1)).sum().backward()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    random, autocast = torch.get_rng_state(), torch.is_autocast_enabled("cpu")
    graph = trace(model, (X,))
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_autocast_enabled("cpu") == autocast
    assert torch.backends.mha.get_fastpath_enabled()
    assert [module.training for module in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    optimizer.step()  # the method still drives it
    assert method.step == 1
    before = run(graph, X)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert not torch.equal(run(trace(model, (X,)), X), before)


def test_a_compressed_weight_is_never_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    model = stored(nn.Sequential(nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 2000)), "compressed")
    copied, held = plain_copy(model)
    assert sorted(held) == ["0.weight", "2.weight"]
    for layer in (copied[0], copied[2]):  # type: ignore[index]
        assert type(layer) is nn.Linear
        assert layer.weight.shape == (2000, 2000)
        assert layer.weight.untyped_storage().nbytes() == 4
    monkeypatch.setattr(Connections, "dense", None)
    simple = simplify(trace(model, (torch.rand(1, 2000),)))
    interpret(simple, [torch.empty(5, 2000, device="meta")])


def test_shared_memory() -> None:
    model = net()
    copied, _ = plain_copy(model)
    for mine, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert mine.data_ptr() == other.data_ptr()
        assert mine is not other


class Returning(nn.Module):
    """Calls its layer as it is told."""

    def __init__(self, forward: Any, **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            if isinstance(child, nn.Module | nn.Parameter):
                setattr(self, name, child)
            else:
                self.register_buffer(name, child)
        self._forward = (forward,)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward[0](self, *args, **kwargs)


def test_arguments_and_outputs() -> None:
    model = Returning(
        lambda self, x, y, *, scale, z=None, flag=True: {
            "sum": self.l(x) + y * scale,
            "rest": (z if flag else x, [x, {"none": None}], 3),
        },
        l=nn.Linear(4, 4),
    )
    x, y, z = torch.rand(1, 4), torch.rand(1, 4), torch.rand(1, 2)
    graph = check(model, x, y, scale=2.0, z=z)
    assert graph.signature == {
        "tuple": [
            {"tuple": [{"tensor": 0}, {"tensor": 1}]},
            {"dict": {"scale": {"value": 2.0}, "z": {"tensor": 2}}},
        ]
    }
    assert list(graph.structure["dict"]) == ["sum", "rest"]
    check(model, x, y, scale=0.5, flag=False)


def test_tokens() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 16)
    head = nn.Linear(16, 50, bias=False)
    head.weight = embedding.weight  # tied
    model = Returning(lambda self, t: self.head(self.e(t) + self.p[: t.shape[1]]), e=embedding, head=head)
    model.p = nn.Parameter(torch.rand(12, 16))
    tokens = torch.randint(0, 50, (1, 12))
    with torch.no_grad():
        embedding.weight[torch.rand(50, 16) < 0.8] = 0
    graph = trace(model, (tokens,))
    assert graph.dtypes == [torch.int64]
    assert graph.weights == {}  # the embedding reads it too
    simple = check(model, tokens)
    assert [type(weight) for weight in simple.weights.values()] == [Connections]
    assert [node.layer for node in simple.nodes if node.op == "regrow.linear"] == ["head"]


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_a_module_called_twice(storage: str) -> None:
    model = Returning(
        lambda self, x: self.l(F.relu(self.l(x))) + self.n(self.l(x)),
        l=nn.Linear(16, 16),
        n=nn.BatchNorm1d(16),
    )
    if storage == "masked":
        model.again = model.l  # compressed storage refuses a second name
    regrow.sparsify(model, include=["l"], sparsity=0.8, storage=storage)
    check(stir(model), torch.rand(1, 16))


def test_a_weight_of_two_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU())
    model[2].weight = model[0].weight
    simple = check(stir(model), torch.rand(1, 8))
    assert ops(simple) == ["regrow.linear", "regrow.linear"]
    assert len(simple.weights) == 2


def test_modules_of_regrow_that_are_fused() -> None:
    model = regrow.fuse(stored(net(), "compressed"))
    check(stir(model), X)
    linear = regrow.sparsify(nn.Sequential(nn.Linear(64, 32)), sparsity=0.9, storage="compressed")
    linear[0].activation = "gelu"
    assert linear[0].register_forward_hook(lambda module, args, output: output * 2)
    simple = check(linear, torch.randn(1, 64))
    assert simple.nodes[0].args[-1] == "gelu"


def test_hooks_of_others_are_followed() -> None:
    model = stored(net(), "masked")
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    model[3].register_forward_hook(lambda module, args, output: output.clamp(max=0.1))
    check(stir(model), X)


def test_parametrized_weights() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Conv1d(1, 2, 3))

    class Half(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * (w > 0.1)

    parametrizations.weight_norm(model[0])
    parametrize.register_parametrization(model[1], "weight", Half())
    simple = check(Returning(lambda self, x: self.m[1](self.m[0](x)), m=model), torch.rand(1, 16))
    assert ops(simple) == ["regrow.linear", "regrow.linear"]
    assert [node.layer for node in simple.nodes] == ["m.0", "m.1"]
    assert {type(weight) for weight in simple.weights.values()} == {Tensor, Connections}


def test_recurrent_layers() -> None:
    model = Returning(lambda self, x: self.cell(x[:, 0], x[:, 1]) + self.gru(x)[0][:, -1])
    model.cell, model.gru = nn.GRUCell(8, 8), nn.GRU(8, 8, batch_first=True)
    check(model, torch.rand(1, 5, 8))


@pytest.mark.parametrize("first", [True, False])
def test_attention_of_torch(first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=first)
    regrow.sparsify(layer, sparsity=0.6, storage="masked")
    simple = check(layer, torch.rand(1, 5, 16))
    layers = {node.layer for node in simple.nodes if node.op == "regrow.linear"}
    assert layers == {"self_attn", "self_attn.out_proj", "linear1", "linear2"}


def test_what_is_made_of_nothing() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        start = torch.zeros(x.shape[0], 4) + torch.full((x.shape[0], 1), 0.5) + x.new_ones(x.shape[0], 4)
        return x + start + torch.arange(4) + torch.tensor(2.0) + torch.empty_like(x).fill_(1)

    simple = check(Returning(forward), torch.rand(1, 4))
    assert not {"aten.zeros.default", "aten.full.default", "aten.arange.default"} & set(ops(simple))
    assert all(allowed(op) for op in ops(simple))


def test_a_batch_that_the_code_asks_for() -> None:
    """Code that does otherwise for another batch is taken for the example's alone."""
    for forward in (
        lambda self, x: x * 2 if x.shape[0] > 3 else x,
        lambda self, x: x * 2 if x.shape[0] != 7 else x,
        lambda self, x: x.view(2, 4) if x.shape[0] == 2 else x,
        lambda self, x: x / float(x.shape[0]),
        lambda self, x: x * torch.arange(x.shape[0])[:, None],
    ):
        for batch in (1, 2):
            check(Returning(forward), torch.rand(batch, 4), batches=(1,))


def test_inputs_of_one_batch_and_others() -> None:
    two = Returning(lambda self, x, y: x @ y.t())
    assert trace(two, (torch.rand(3, 4), torch.rand(3, 4))).dynamic
    check(Returning(lambda self, x, y: x + y), torch.rand(1, 4), torch.rand(1, 4))
    check(Returning(lambda self, x, m: x @ m), torch.rand(1, 4), torch.rand(4, 4), batches=(1,))


def test_a_parameter_called_as_a_node() -> None:
    model = Returning(
        lambda self, t_0: t_0 * self.add + self.t_0, add=nn.Parameter(torch.rand(4)), t_0=torch.rand(4)
    )
    check(model, torch.rand(1, 4))


def test_wrappers_and_order() -> None:
    model = stored(net(), "compressed")
    assert set(trace(torch.compile(model), (X,)).weights) == set(trace(model, (X,)).weights)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x + self.seen


def in_place(self: nn.Module, x: Tensor) -> Tensor:
    x += 1
    return x


def with_gradients(self: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return x.sum(1).sigmoid()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Counting(), "Counting writes to `seen`"),
        (Returning(in_place), "Returning writes to"),
        (Returning(lambda self, x: x if x.sum() > 0 else -x), "cannot be traced: Could not guard on data"),
        (Returning(lambda self, x: x + torch.rand_like(x)), "uses aten.rand_like.default"),
        (Returning(lambda self, x: x + torch.rand(4)), "draws random numbers in its forward pass"),
        (Returning(lambda self, x: F.dropout(x)), "uses aten"),
        (Returning(lambda self, x: x.nonzero()), "uses aten.nonzero.default"),
        (Returning(lambda self, x: x.as_strided((2, 2), (1, 1))), "uses aten.as_strided.default"),
        (
            Returning(
                lambda self, x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1)
            ),
            "drops attention at random",
        ),
        (Returning(lambda self, x: OrderedDict(a=x)), "OrderedDict, which is neither a tensor"),
        (Returning(lambda self, x: torch.ones(2).numpy() + x), "cannot be traced"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_traced_says_why(
    model: nn.Module, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotTraceable) as raised:
        trace(model, (torch.rand(3, 4),))
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2
    assert isinstance(raised.value, regrow.errors.RegrowValueError)
    assert capfd.readouterr() == ("", "")


def test_what_no_graph_can_take() -> None:
    with pytest.raises(NotTraceable, match=r"the example holds Generator, which is neither a tensor"):
        trace(net(), (torch.Generator(),))
    with pytest.raises(NotTraceable, match="the example holds no tensor"):
        trace(net(), ())


def test_gradients_may_be_asked_for_inside() -> None:
    check(Returning(with_gradients), torch.rand(1, 4))


def test_warnings_do_not_leak() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(net(), (X,))
    assert caught == []


@pytest.mark.parametrize(
    ("op", "is_allowed"),
    [
        ("aten.conv2d.default", True),
        ("aten.gelu.default", True),
        ("regrow.linear", True),
        ("int.floordiv", True),
        ("getitem", True),
        ("int.pow", False),
        ("regrow.save", False),
        ("aten.add_.Tensor", False),
        ("aten.relu.out", False),
        ("aten.from_file.default", False),
        ("aten.rand_like.default", False),
        ("aten.dropout.default", False),
        ("aten.zeros.default", False),
        ("aten.arange.start", False),
        ("aten.item.default", False),
        ("aten.nonzero.default", False),
        ("aten.as_strided.default", False),
        ("aten._unsafe_index.Tensor", False),
        ("aten.set_.source_Storage", False),
        ("aten.__class__.default", False),
        ("aten.add.__class__", False),
        ("aten.add", False),
        ("aten", False),
        ("", False),
        ("prims.add.default", False),
        ("os.system", False),
    ],
)
def test_what_a_graph_may_hold(op: str, is_allowed: bool) -> None:
    assert allowed(op) == is_allowed
