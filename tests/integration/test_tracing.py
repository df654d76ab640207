"""What traces, exports and translates models: torch.fx, torch.export, torch.jit, ONNX."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import regrow
from regrow.errors import RegrowRuntimeError
from regrow.nn import BatchTiles
from regrow.weights.views import sparse_weights


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.conv2(self.conv1(x)) + x)
        return self.head(x.mean((2, 3)))


CASES = pytest.mark.parametrize(
    ("build", "shape"), [(perceptron, (12,)), (Convolutions, (3, 9, 9))], ids=["linear", "convolutions"]
)


def network(build: Callable[[], nn.Module], storage: str = "compressed", fused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = regrow.sparsify(build(), 0.6, storage=storage)
    return regrow.fuse(model) if fused else model


def train(model: nn.Module, shape: tuple[int, ...]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=20, update_every=2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, *shape, generator=generator)), torch.arange(4)).backward()
        optimizer.step()
    method.detach()


@CASES
@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_torch_fx_has_traced_trains_as_the_model(
    build: Callable[[], nn.Module], shape: tuple[int, ...], storage: str, fused: bool
) -> None:
    model = network(build, storage, fused)
    traced = fx.symbolic_trace(copy.deepcopy(model))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    weights = {n.rpartition(".")[0] for n, _ in regrow.masks(model).items()}
    assert weights <= called
    for each in (model, traced):
        train(each, shape)
    for one, other in zip(sparse_weights(model), sparse_weights(traced), strict=True):
        assert torch.equal(one.to_dense(), other.to_dense())
        assert other.to_dense().count_nonzero() <= other.nnz
    assert sum(w.nnz for w in sparse_weights(traced)) < sum(w.numel for w in sparse_weights(traced))
    x = torch.randn(2, *shape)
    assert torch.equal(copy.deepcopy(traced)(x), model(x))
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


class Extractor(fx.Tracer):
    """Names nodes by the module that is called, as torchvision's feature extraction does."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.names = "", {}  # type: ignore[var-annotated]

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.now = self.now, self.path_of_module(m)
        try:
            if not self.is_leaf_module(m, self.now):
                return forward(*args, **kwargs)
            return self.create_proxy("call_module", self.now, args, kwargs)
        finally:
            self.now = before

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(*args, **kwargs)
        self.names[proxy.node] = self.now
        return proxy


def test_a_feature_extractor_finds_sparse_layers() -> None:
    model = network(Convolutions).eval()
    tracer = Extractor()
    graph = tracer.trace(model)
    (node,) = (node for node, name in tracer.names.items() if name == "conv1")
    for output in [node for node in graph.nodes if node.op == "output"]:
        graph.erase_node(output)
    graph.output(node)
    extractor = fx.GraphModule(model, graph)
    extractor.graph.eliminate_dead_code()
    extractor.recompile()
    found: list[Tensor] = []
    model.conv1.register_forward_hook(lambda module, given, output: found.append(output))
    x = torch.randn(2, 3, 9, 9)
    y = extractor(x)
    model(x)
    assert isinstance(y, BatchTiles)
    assert torch.equal(y, found[-1])


def test_a_compressed_layer_alone_has_no_graph() -> None:
    with pytest.raises(
        RegrowRuntimeError, match=r"single call to torch\.fx.*\nTrace the model that it is part of"
    ):
        fx.symbolic_trace(network(perceptron)[0])


UNSEEN = r"compressed storage.*\n.*regrow\.densify\(copy\.deepcopy\(model\)\)"


@CASES
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("fused", [False, True])
def test_torch_jit_refuses_compressed_storage(
    build: Callable[[], nn.Module], shape: tuple[int, ...], fused: bool
) -> None:
    model, x = network(build, fused=fused).eval(), torch.randn(2, *shape)
    with pytest.raises(RegrowRuntimeError, match=UNSEEN):
        torch.jit.trace(model, x)
    with pytest.raises(RegrowRuntimeError, match=UNSEEN):
        torch.jit.script(model)
    dense = regrow.densify(copy.deepcopy(model))
    for translated in (torch.jit.trace(dense, x), torch.jit.script(dense)):
        assert torch.allclose(translated(x), model(x), atol=1e-5)


@CASES
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torch_jit_takes_masked_storage(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = network(build, "masked").eval(), torch.randn(2, *shape)
    for translated in (torch.jit.trace(model, x), torch.jit.script(model)):
        assert torch.allclose(translated(x), model(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torch_jit_traces_what_is_left_of_weights_that_were_written() -> None:
    model, x = network(perceptron, "masked").eval(), torch.randn(2, 12)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.warns(UserWarning, match=r"`0\.weight` was written to"):
        traced = torch.jit.trace(model, x)
    assert not traced.get_submodule("0").weight[~regrow.masks(model)["0.weight"]].any()
    assert torch.allclose(traced(x), model(x), atol=1e-6)


@CASES
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(build: Callable[[], nn.Module], shape: tuple[int, ...], dynamo: bool, tmp_path: Any) -> None:
    import onnx  # which takes long

    model, x = network(build).eval(), torch.randn(2, *shape)
    file = tmp_path / "model.onnx"
    with pytest.raises(RuntimeError, match=UNSEEN):
        torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False)
    for fit in (regrow.densify(copy.deepcopy(model)), network(build, "masked").eval()):
        torch.onnx.export(fit, (x,), file, dynamo=dynamo, verbose=False)
        onnx.checker.check_model(file)


@CASES
@pytest.mark.parametrize("fused", [False, True])
def test_dynamic_batches_are_compiled_twice(
    build: Callable[[], nn.Module], shape: tuple[int, ...], fused: bool
) -> None:
    torch._dynamo.reset()
    model = network(build, fused=fused)
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for batch in (4, 5, 15, 16, 17, 33):
        x = torch.randn(batch, *shape)
        y = compiled(x)
        expected = copy.deepcopy(model)(x)
        assert torch.allclose(y, expected, atol=1e-5)
        y.sum().backward()
    # one for the first batch, one for all others; torch's own convolutions have three
    assert len(graphs) == 2


@CASES
def test_marked_dynamic_batches_are_compiled_once(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch._dynamo.reset()
    model = network(build).eval()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (4, 16, 40):
        x = torch.randn(batch, *shape)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@CASES
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_exported_for_any_batch(
    build: Callable[[], nn.Module], shape: tuple[int, ...], fused: bool, storage: str, tmp_path: Any
) -> None:
    model = network(build, storage, fused).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(8, *shape),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 2, 15, 16, 17, 64):
        x = torch.randn(size, *shape)
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
