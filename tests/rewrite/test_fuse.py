"""`fuse`, `unfuse` and `fold`: other modules, the same results."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import register_parametrization
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import regrow
from regrow.models.resnet import resnet18_cifar
from regrow.models.vgg import vgg16
from regrow.models.wrn import wrn
from regrow.nn import BatchTiles, FusedBatchNorm2d, TiledConv2d
from regrow.nn.fused import Fused
from regrow.ops import native
from regrow.ops.reference import ACTIVATIONS
from regrow.tiles import on_convert, to_tiles


def put_in_tiles(model: nn.Module) -> None:
    """Let each convolution give tiles, as a sparse one does."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, given, output: to_tiles(output))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "wrn": lambda: wrn(10, 1, width=0.5),
    "vgg": lambda: vgg16(width=0.1),
    "resnet": lambda: resnet18_cifar(width=0.1),
}


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), torch.arange(len(x)) % 10).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    for training in (True, False):
        one.train(training)
        other.train(training)
        assert torch.allclose(one(x), other(x), rtol=1e-9, atol=1e-11)
        expected, found = gradients(one, x), gradients(other, x)
        assert list(found) == list(expected)
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-7, atol=1e-10), name
    for name, value in one.state_dict().items():
        assert torch.allclose(other.state_dict()[name], value, rtol=1e-9), name


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tiled", [False, True])
def test_networks_stay_what_they_are(name: str, tiled: bool) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    twin = copy.deepcopy(model)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    assert regrow.fuse(model) is model
    assert list(model.state_dict()) == keys
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    fused = [m for m in norms if isinstance(m, FusedBatchNorm2d)]
    # all but those of a residual network's projections
    expected = {"wrn": len(norms), "vgg": len(norms), "resnet": 17}[name]
    assert len(fused) == expected
    twin.load_state_dict(model.state_dict())
    if tiled:
        put_in_tiles(model)
    assert_same(twin, model, torch.randn(18, 3, 32, 32, dtype=torch.float64))
    regrow.densify(model)
    assert not any(isinstance(m, FusedBatchNorm2d) for m in model.modules())


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize("name", NETWORKS)
def test_sparse_networks_convert_at_their_ends_only(name: str) -> None:
    model = NETWORKS[name]()
    stem = "features.0" if name == "vgg" else "conv1"
    regrow.sparsify(model, sparsity=0.9, distribution="uniform", exclude=[stem, "fc"], storage="compressed")
    regrow.fuse(model)
    converted: list[str] = []
    with on_convert(lambda operation, shape, milliseconds: converted.append(operation)):
        model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert converted == ["TiledConv2d"]  # the images; their gradient is not asked for


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
def test_the_relu_finds_its_work_done() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True))
    regrow.fuse(model)
    x = to_tiles(torch.randn(4, 3, 5, 5))
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda module, given, output: seen.extend([given[0], output]))
    y = model(x)
    assert isinstance(y, BatchTiles)
    assert seen[0] is seen[1]
    assert (y.to_dense_layout() >= 0).all()
    assert torch.equal(
        F.relu(y.sub_(0.5)).to_dense_layout(), y.to_dense_layout().relu()
    )  # it was changed since


class Unusual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alone, self.seen, self.twice = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.shared = nn.BatchNorm2d(2)
        self.also = self.shared
        self.good, self.relu = nn.BatchNorm2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.seen(F.relu(self.twice(F.relu(self.twice(self.alone(x))))))
        y = y + F.relu(y)
        return self.relu(self.good(torch.relu(self.shared(y))))


class Branching(Unusual):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.good(x)) if x.sum() > 0 else x


def test_only_what_is_certain_is_fused() -> None:
    model = regrow.fuse(Unusual())
    fused = [name for name, module in model.named_modules() if isinstance(module, FusedBatchNorm2d)]
    assert fused == ["good"]
    with pytest.warns(RuntimeWarning, match="`0` is left as it is"):
        model = regrow.fuse(nn.Sequential(Branching()))
    assert not any(isinstance(module, FusedBatchNorm2d) for module in model.modules())
    hooked = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    hooked[0].register_forward_hook(lambda *_: None)
    assert type(regrow.fuse(hooked)[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.GELU("tanh"), nn.Tanh()])
def test_activations_behind_linear_layers(activation: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 10), nn.Flatten()).double()
    regrow.sparsify(model, sparsity=0.5, storage="compressed")
    twin, keys = copy.deepcopy(model), list(model.state_dict())
    regrow.fuse(model)
    name = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}.get(type(activation))
    folded = name in ACTIVATIONS and getattr(activation, "approximate", "none") == "none"
    assert isinstance(model[1], Fused) == folded
    assert model[0].activation == (name if folded else None)
    assert model[2].activation is None
    assert list(model.state_dict()) == keys
    assert_same(twin, model, torch.randn(5, 8, dtype=torch.float64))
    restored = copy.deepcopy(model)
    regrow.densify(restored)
    assert type(restored[1]) is type(activation)
    assert torch.allclose(restored(torch.ones(2, 8).double()), model(torch.ones(2, 8).double()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("storage", ["dense", "masked", "compressed"])
def test_fold(name: str, storage: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    if storage != "dense":
        regrow.sparsify(model, sparsity=0.5, storage=storage)
    regrow.fuse(model)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.data = torch.rand_like(tensor) + 0.5
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = regrow.fold(model)
    assert torch.allclose(folded(x), model.eval()(x), rtol=1e-9)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert left == {"wrn": 4, "vgg": 0, "resnet": 0}[name]  # norms before the first convolution of a block
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if storage != "dense":
        assert all(
            torch.equal(mask, regrow.masks(model)[weight]) for weight, mask in regrow.masks(folded).items()
        )


def test_fold_into_compressed_linear_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    ).double()
    regrow.sparsify(model, sparsity=0.5, storage="compressed")
    model(torch.randn(50, 8, dtype=torch.float64) * 3 + 1)
    folded = regrow.fold(model)
    x = torch.randn(5, 8, dtype=torch.float64)
    assert type(folded[1]) is nn.Identity
    assert torch.allclose(folded(x), model.eval()(x))


def test_what_is_used_twice_in_a_chain_stays_in_its_place() -> None:
    torch.manual_seed(0)
    dropout, act = nn.Dropout(), nn.PReLU()
    model = nn.Sequential(nn.Linear(8, 8), act, dropout, nn.Linear(8, 8), act, nn.GELU()).double()
    regrow.sparsify(model, 0.5, storage="compressed")
    x = torch.randn(5, 8, dtype=torch.float64)
    expected = model.eval()(x)
    assert torch.equal(regrow.fuse(model)(x), expected)
    assert model[3].activation is None


class TwoReaders(nn.Module):
    """In training the norm's output has a second reader."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return (torch.relu(y), y.sum()) if self.training else torch.relu(y)


def test_a_reader_in_training_alone_is_seen_in_evaluation() -> None:
    model = regrow.fuse(TwoReaders().eval())
    assert type(model.norm) is nn.BatchNorm2d
    assert not model.training


def test_fold_leaves_what_does_more_or_is_tied() -> None:
    torch.manual_seed(0)
    fused = nn.Sequential(nn.Conv2d(3, 4, 3), FusedBatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(regrow.fold(fused)(x), fused(x))
    tied = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    tied[2].weight = tied[0].weight
    tied[1].running_var.fill_(4.0)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(regrow.fold(tied)(x), tied.eval()(x))


class Sums(nn.Module):
    """Blocks' ways to add a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        names = "plain right in_place method with_relu alpha number other both twice late into_other returned"
        for name in names.split():
            self.add_module(name, nn.Conv2d(2, 2, 1))
        self.norm, self.bare = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Any:
        x = self.plain(x) + x
        x = x + self.right(x)
        y = self.in_place(x)
        y += x
        x = self.method(y).add(x)
        x = F.relu(self.with_relu(x) + x)
        x = torch.add(self.alpha(x), x, alpha=2)
        x = self.number(x) + 1
        x = self.other(x) - x
        x = self.both(x) * x
        y = self.twice(x)
        x = y + y
        y = self.late(x)
        x = x.tanh()
        x = y + x
        x += self.into_other(x)
        x = F.relu(self.norm(x) + x)
        x = self.bare(x) + x
        y = self.returned(x)
        y.add_(x)
        return x, y


def test_only_certain_sums_are_fused() -> None:
    model = Sums().double()
    twin = copy.deepcopy(model)
    for each in (model, twin):
        torch.manual_seed(0)
        regrow.sparsify(each, 0.5, storage="compressed", init="magnitude")
    regrow.fuse(model)
    summed = [name for name, module in model.named_modules() if getattr(module, "summed", False)]
    # torch.fx takes += for +: that the sum goes into another tensor is seen when it is done
    assert summed == ["plain", "right", "in_place", "method", "with_relu", "into_other", "norm"]
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    for one, other in zip(twin(x), model(x), strict=True):
        assert torch.allclose(one + torch.zeros_like(x), other + torch.zeros_like(x), rtol=1e-10)
    regrow.unfuse(model)
    assert not any(getattr(module, "summed", False) for module in model.modules())


class Difference(nn.Module):
    """What is not a sum."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return -(one + other)


class CalledAdd(nn.Module):
    """A child that is named as a sum is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.add = nn.BatchNorm2d(2, dtype=torch.float64), Difference()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.add(self.norm(x), x))


def test_a_child_called_add_is_no_sum() -> None:
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    model = CalledAdd()
    expected = model(x)
    assert torch.allclose(regrow.fuse(model)(to_tiles(x)) + torch.zeros_like(x), expected)


HOOKS: dict[str, Callable[[nn.Module, list[Tensor]], Any]] = {
    "norm's gradient": lambda m, seen: m[0].register_full_backward_hook(
        lambda *each: seen.append(each[2][0])
    ),
    "input": lambda m, seen: m[1].register_forward_pre_hook(lambda *each: seen.append(each[1][0])),
    "ReLU": lambda m, seen: m[1].register_forward_hook(lambda *each: seen.append(each[1][0])),
    "gradient": lambda m, seen: m[1].register_full_backward_hook(lambda *each: seen.append(each[1][0])),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_see_what_they_see_without_fusion(hook: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    seen: list[Tensor] = []
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()).double()
    HOOKS[hook](model, seen)
    for fused in (False, True):
        given = to_tiles(x) if fused else x
        y = (regrow.fuse(model) if fused else model)(given.requires_grad_())
        (y * y).sum().backward()
    assert torch.allclose(seen[0], seen[1] + torch.zeros_like(x))


class _BufferSums(TorchDispatchMode):
    """Counts the sums of whole activations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.add and args[0].dim() == 4 and not func._schema.is_mutable:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize("name", ["wrn", "resnet"])
def test_sums_of_branches_cost_no_pass_of_their_own(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    regrow.sparsify(model, 0.7, "uniform", exclude=["conv1", "fc"], storage="compressed")
    twin = copy.deepcopy(model)
    regrow.fuse(model)
    x = torch.randn(18, 3, 32, 32, dtype=torch.float64)
    for training in (True, False):
        found, counts = [], []
        for each in (twin, model):
            each.train(training)
            with _BufferSums() as sums:
                found.append(gradients(each, x))
            counts.append(sums.count)
        assert counts == {"wrn": [4, 0], "resnet": [13, 0]}[name]
        for key, gradient in found[0].items():
            assert torch.allclose(found[1][key], gradient, rtol=1e-10, atol=1e-12), key
    for key, value in twin.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, rtol=1e-10), key
    for each in (twin, model):
        each.load_state_dict((model if each is twin else twin).state_dict())
    restored = regrow.densify(copy.deepcopy(model)).eval()
    folded = regrow.fold(model)
    with torch.no_grad():
        for other in (twin.eval(), restored, folded, regrow.fuse(folded)):
            assert torch.allclose(other(x), model.eval()(x), rtol=1e-9)


@pytest.mark.skipif(not native.available(), reason="the kernels were not built")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("watched", [False, True])
def test_a_dense_stem_is_in_tiles(name: str, watched: bool) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    stem = next(layer for layer, m in model.named_modules() if isinstance(m, nn.Conv2d))
    regrow.sparsify(model, 0.5, "uniform", exclude=[stem, "*fc"], storage="compressed")
    twin, seen = copy.deepcopy(model), []
    if watched:  # then the norm behind it is the first in tiles
        model.get_submodule(stem).register_forward_hook(lambda module, given, output: None)
    regrow.fuse(model)
    assert isinstance(model.get_submodule(stem), TiledConv2d) is not watched
    norm = next(m for m in model.modules() if isinstance(m, FusedBatchNorm2d) and m.tiled)
    norm.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    assert_same(twin, model, torch.randn(4, 3, 32, 32, dtype=torch.float64))
    assert all(isinstance(x, BatchTiles) is not watched and isinstance(y, BatchTiles) for x, y in seen)
    regrow.unfuse(model)
    assert not any(isinstance(m, FusedBatchNorm2d | TiledConv2d) for m in model.modules())


def test_a_norm_that_others_read_stays_in_its_layout() -> None:
    class Two(nn.Module):
        def __init__(self, read: bool) -> None:
            super().__init__()
            self.norm, self.conv, self.read = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), read

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.norm(x))
            return self.conv(y).mean() + (y.mean() if self.read else x.mean())

    for read in (False, True):
        model = Two(read)
        regrow.sparsify(model, 0.5, "uniform", storage="compressed")
        regrow.fuse(model)
        assert model.norm.tiled is not read


def stem() -> nn.Sequential:
    """A dense convolution before a sparse one, with a norm between them; not fused."""
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers).double()
    regrow.sparsify(model, 0.5, "uniform", exclude=["0"], storage="compressed")
    return model


class Checkpointed(nn.Module):
    """A model whose stem is computed again in the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model[3:](checkpoint(self.model[:3], x, use_reentrant=False))
        return y


def test_checkpoints_count_batches_as_torch_does() -> None:
    torch.manual_seed(0)
    model = stem()
    twin = Checkpointed(copy.deepcopy(model))
    fused = Checkpointed(regrow.fuse(model))
    for _ in range(2):
        assert_same(twin, fused, torch.randn(3, 3, 6, 6, dtype=torch.float64))


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("layer", [0, 1])
def test_what_was_parametrized_after_fuse_outlives_unfuse(layer: int) -> None:
    torch.manual_seed(0)
    model = stem()
    twin = copy.deepcopy(model)
    regrow.fuse(model)
    for each in (twin, model):
        register_parametrization(each[layer], "weight", Doubled())
    assert_same(twin, regrow.unfuse(model), torch.randn(3, 3, 6, 6, dtype=torch.float64))
