"""Layers whose weight is not what they multiply by: dense by default, with the reason; all others stay sparse."""

import types
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import regrow
from regrow.sparsity.uses import another_weight, meta_copies, overrides


class Standardised(nn.Conv2d):
    """Weight standardisation as it was published."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        self.used = w
        return F.conv2d(input, w, self.bias)


class StandardisedByNorm(nn.Conv2d):
    """timm's StdConv2d."""

    def forward(self, input: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(input, w, self.bias)


class StandardisedInside(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Noisy(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.sigma = nn.Parameter(torch.ones_like(self.weight))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight + self.sigma * torch.randn_like(self.weight), self.bias)


class Scripted(nn.Linear):
    """What its script does with the weight is out of sight."""

    def forward(self, input: Tensor) -> Tensor:
        return SCRIPT(input, self.weight)


def _scripted(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w - w.mean())


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SCRIPT = torch.jit.script(_scripted)


CHANGED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "standardised": (
        lambda: Standardised(4, 8, 3),
        "Standardised.forward computes another weight from it (mean)",
    ),
    "by a batch norm": (
        lambda: StandardisedByNorm(4, 8, 3),
        "StandardisedByNorm.forward computes another weight from it (batch_norm)",
    ),
    "inside": (
        lambda: StandardisedInside(4, 8, 3),
        "StandardisedInside.forward computes another weight from it (mean)",
    ),
    "noisy": (lambda: Noisy(4, 8), "Noisy.forward computes another weight from it (add)"),
    "scripted": (lambda: Scripted(4, 8), "Scripted.forward"),
}


class Same(nn.Conv2d):
    """timm's Conv2dSame."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias, self.stride)


class Cast(nn.Linear):
    """Whisper's Linear."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class CastInput(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.type_as(self.weight))


class CastConvolution(nn.Conv1d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight.to(input.dtype), bias)


class Causal(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (2, 0)))


class Made(nn.Linear):
    """The masked layer of an autoregressive network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.ones(outputs, inputs).tril())

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.mask * self.weight, self.bias)


class MaskedInPlace(Made):
    def forward(self, input: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return F.linear(input, self.weight, self.bias)


class WithNorm(nn.Conv2d):
    """Detectron's Conv2d."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(self.norm(F.conv2d(input, self.weight, self.bias)))


class BesideLowRank(nn.Linear):
    """loralib's Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias) + input @ self.a.T @ self.b.T


class MoreArguments(nn.Linear):
    def forward(self, input: Tensor, gate: Tensor) -> Tensor:
        return super().forward(input) * gate


class LooksAtData(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input / 2 if input.abs().max() > 3 else input)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        return x @ w.T


class OwnGradient(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return Product.apply(input, self.weight)


class LastState(nn.LSTM):
    def forward(self, input: Tensor, state=None) -> Tensor:
        return super().forward(input, state)[0]


class Attention(nn.MultiheadAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        return super().forward(query, key, value, **options)[0]


class Plain(nn.Linear):
    """With another initialiser, and no other forward."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


UNCHANGED: dict[str, Callable[[], nn.Module]] = {
    "same padding": lambda: Same(4, 8, 3, stride=2),
    "cast": lambda: Cast(4, 8),
    "cast input": lambda: CastInput(4, 8),
    "cast convolution": lambda: CastConvolution(4, 8, 3),
    "causal": lambda: Causal(4, 8, 3),
    "masked": lambda: Made(4, 8),
    "masked in place": lambda: MaskedInPlace(4, 8),
    "with a norm": lambda: WithNorm(4, 8),
    "low rank": lambda: BesideLowRank(4, 8),
    "more arguments": lambda: MoreArguments(4, 8),
    "looks at data": lambda: LooksAtData(4, 8),
    "own gradient": lambda: OwnGradient(4, 8),
    "recurrent": lambda: LastState(4, 8),
    "attention": lambda: Attention(8, 2),
    "plain": lambda: Plain(4, 8),
    "regrow's": lambda: regrow.nn.TiledConv2d(4, 8, 3),
}


def reasons(model: nn.Module) -> dict[str, str]:
    return {row.name: row.reason for row in regrow.summary(model).rows if row.storage == "dense"}


@pytest.mark.parametrize("name", CHANGED)
def test_another_weight_is_dense_and_says_why(name: str) -> None:
    make, reason = CHANGED[name]
    layer = make()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    model = nn.Sequential(layer, nn.Linear(64, 64))
    state = torch.get_rng_state()
    regrow.sparsify(model, sparsity=0.5)
    assert list(regrow.masks(model)) == ["1.weight"]
    assert reason in reasons(model)["0.weight"]
    # nothing of the layer was touched, nor of the generator
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert not hasattr(layer, "used")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CHANGED)
def test_who_names_it_has_it_sparse(name: str) -> None:
    for arguments in ({"include": "0", "sparsity": 0.5}, {"distribution": {"0": 0.5}}):
        model = nn.Sequential(CHANGED[name][0](), nn.Linear(64, 64))
        regrow.sparsify(model, **arguments)
        assert "0.weight" in regrow.masks(model)


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_forward_that_uses_the_weight_as_it_is_stays_sparse(name: str) -> None:
    layer = UNCHANGED[name]()
    assert overrides(layer) == (name != "plain")
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    model = nn.Sequential(layer)
    regrow.sparsify(model, sparsity=0.5, storage="masked")
    assert regrow.masks(model)
    assert reasons(model).keys() <= {"0.mask", "0.a", "0.b"}
    for key, value in before.items():  # the run on the meta device has left statistics alone
        if "weight" not in key:
            assert torch.equal(dict(layer.state_dict())[key], value)


def test_a_forward_put_on_the_object_is_seen() -> None:
    patched = nn.Linear(64, 64)
    patched.forward = types.MethodType(lambda self, x: F.linear(x, self.weight - 1), patched)
    model = nn.Sequential(patched, nn.Linear(64, 64), nn.Linear(64, 64))
    regrow.sparsify(model, sparsity=0.5)
    assert reasons(model) == {"0.weight": "Linear.forward computes another weight from it (sub)"}
    cast = nn.Linear(512, 512)
    cast.forward = types.MethodType(lambda self, x: F.linear(x, self.weight.to(x.dtype)), cast)
    with pytest.raises(regrow.RegrowError, match="its forward is not its class's"):
        regrow.sparsify(nn.Sequential(cast), sparsity=0.9, storage="compressed")
    assert regrow.summary(regrow.sparsify(nn.Sequential(cast), 0.9)).rows[0].storage == "masked"


def test_a_layer_of_any_size_is_followed_in_no_memory() -> None:
    with torch.device("meta"):
        layer = Noisy(200_000, 200_000)
    assert another_weight(layer, "weight", meta_copies(layer)) is not None


# --- torch.nn.utils


def reparametrized() -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older forms are deprecated
        return nn.Sequential(
            weight_norm(nn.Conv1d(8, 8, 3)),
            spectral_norm(nn.Linear(8, 8)),
            prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5),
            parametrizations.weight_norm(nn.Linear(8, 8)),
            parametrizations.orthogonal(nn.Linear(8, 8)),
            weight_norm(nn.LSTM(8, 8), "weight_hh_l0"),
            nn.Linear(64, 64),
        )


def test_a_weight_that_is_computed_from_parameters_is_dense() -> None:
    model = reparametrized()
    regrow.sparsify(model, sparsity=0.5)
    assert set(regrow.masks(model)) == {"5.weight_ih_l0", "6.weight"}
    gain = "a gain of weight_norm, not the weight"
    assert reasons(model) == {
        "0.weight_g": gain,
        "0.weight_v": "WeightNorm computes the weight from it",
        "1.weight_orig": "SpectralNorm computes the weight from it",
        "2.weight_orig": "L1Unstructured computes the weight from it",
        "3.parametrizations.weight.original0": gain,
        "3.parametrizations.weight.original1": "WeightNorm computes the weight from it",
        "4.parametrizations.weight.original": "Orthogonal computes the weight from it",
        "5.weight_hh_l0_g": gain,
        "5.weight_hh_l0_v": "WeightNorm computes the weight from it",
    }


def test_the_name_of_a_layer_means_its_weight_and_never_its_gains() -> None:
    model = reparametrized()
    other = reparametrized()
    regrow.sparsify(model, sparsity=0.5, include=["0", "3*", "5"])
    assert set(regrow.masks(model)) == {
        "0.weight_v",
        "3.parametrizations.weight.original1",
        "5.weight_ih_l0",
        "5.weight_hh_l0_v",
    }
    regrow.sparsify(other, sparsity=0.5, include=["0.weight_g", "2"])
    assert set(regrow.masks(other)) == {"0.weight_g", "2.weight_orig"}


def test_weights_of_weight_norm_that_are_named_train_sparse() -> None:
    model = reparametrized()
    model = nn.Sequential(model[0], nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6, 4))
    regrow.sparsify(model, sparsity=0.5, include="0")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=8, update_every=2)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, 8, 8)).square().mean().backward()
        optimizer.step()
    model(torch.randn(4, 8, 8))
    assert not model[0].weight.detach()[~regrow.masks(model)["0.weight_v"]].any()


def test_where_most_turns_dense_it_is_said_once_at_the_callers_line() -> None:
    model = nn.Sequential(Standardised(16, 64, 3), Standardised(64, 64, 3), nn.Linear(8, 8))
    message = (
        "100% of the weights of `model` that layers of their kinds have sparse stay dense: Standardised.forward "
        r"computes another weight from it \(mean\).\nName those with `include`"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        regrow.sparsify(model, sparsity=0.5)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(
        regrow.RegrowError, match=r"nothing to sparsify \(0.weight: Standardised.forward computes"
    ):
        regrow.sparsify(nn.Sequential(Standardised(4, 4, 3)), sparsity=0.5)
