"""`storage="auto"`: compressed where it is faster, masked elsewhere, and the reason in `summary`."""

import warnings

import pytest
import torch
from torch import nn

import regrow
from regrow.ops import native
from regrow.ops.building import NoKernels
from regrow.sparsity.layers import find_layers
from regrow.sparsity.storage import DENSEST, NARROWEST, choose_storages

needs_kernels = pytest.mark.skipif(not native.available(), reason="no kernels here")


def stored(layer: nn.Module, sparsity: float) -> tuple[str, str]:
    row = regrow.summary(regrow.sparsify(nn.Sequential(layer), sparsity)).rows[0]
    return row.storage, row.reason


@needs_kernels
@pytest.mark.parametrize(
    ("layer", "sparsity", "storage", "reason"),
    [
        (nn.Linear(784, 512), 0.9, "compressed", "faster so on this device"),
        (nn.Linear(784, 512).double(), 0.9, "compressed", "faster so"),
        (nn.Linear(784, 512), 0.45, "masked", "faster masked at a density above 0.5"),
        (nn.Linear(512, 10), 0.9, "masked", "too small to be faster compressed"),
        (nn.Linear(100, 100), 0.9, "masked", "too small"),
        (nn.Linear(256, 256), 0.9, "compressed", "faster so"),
        (nn.Linear(256, 256), 0.6, "masked", "above 0.3"),
        (nn.Linear(784, 512).half(), 0.9, "masked", "no kernels for torch.float16"),
        (nn.Conv2d(64, 128, 3), 0.9, "compressed", "faster so"),
        (nn.Conv2d(64, 128, 3), 0.4, "masked", "above 0.5"),
        (nn.Conv2d(3, 128, 3), 0.9, "masked", "without a larger convolution"),
        (nn.Conv2d(64, 128, 1), 0.9, "masked", "without a larger convolution"),
        (nn.ConvTranspose2d(64, 64, 3), 0.9, "masked", "ConvTranspose2d has no compressed form"),
    ],
)
def test_the_rule(layer: nn.Module, sparsity: float, storage: str, reason: str) -> None:
    found = stored(layer, sparsity)
    assert found[0] == storage
    assert reason in found[1]


@needs_kernels
def test_the_rule_goes_by_the_density_of_each_layer() -> None:
    """ERK leaves small layers denser: those stay masked beside compressed ones."""
    model = regrow.sparsify(nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 128)), 0.8)
    wide, narrow = regrow.summary(model).rows
    assert wide.storage == "compressed"
    assert narrow.density > 0.5
    assert narrow.storage == "masked"


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    why = NoKernels("there is no C++ compiler", "Install one.", "details")
    monkeypatch.setattr(native, "_provided", lambda: why)
    monkeypatch.setattr(native, "_said", [])


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(
    ("layer", "sparsity", "storage", "reason"),
    [
        (nn.Linear(784, 512), 0.9, "compressed", "faster so without kernels too"),
        (nn.Linear(784, 512), 0.85, "masked", "faster masked at a density above 0.1"),
        (nn.Linear(784, 128), 0.95, "masked", "there are no kernels: there is no C++ compiler"),
        (nn.Conv2d(64, 128, 3), 0.95, "masked", "there are no kernels"),
    ],
)
def test_the_rule_without_kernels(layer: nn.Module, sparsity: float, storage: str, reason: str) -> None:
    with pytest.warns(RuntimeWarning, match="without its kernels"):
        found = stored(layer, sparsity)
    assert found[0] == storage
    assert reason in found[1]


@pytest.mark.usefixtures("no_kernels")
def test_without_kernels_all_that_tells_times_says_so() -> None:
    model = nn.Sequential(nn.Linear(784, 512))
    message = "several times slower: there is no C.. compiler\ndetails\nInstall one"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        regrow.sparsify(model, 0.9)
    assert [warning.filename for warning in caught] == [__file__]
    said = "the reference runs, several times slower than the kernels: there is no C++ compiler\nInstall one."
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it has been said
        assert str(regrow.summary(regrow.sparsify(nn.Sequential(nn.Linear(784, 512)), 0.9))).endswith(said)
    assert said in str(regrow.explain(model, torch.randn(8, 784), seconds=0.01))
    masked = regrow.sparsify(nn.Sequential(nn.Linear(784, 512)), 0.9, storage="masked")
    assert regrow.summary(masked).reference is None  # asked for: no kernel would run


@needs_kernels
def test_where_the_kernels_do_not_run_it_is_masked() -> None:
    model = nn.Sequential(nn.Linear(784, 512, device="meta"))
    assert choose_storages(find_layers(model), model, {"0.weight": 40_000}) == {
        "0.weight": ("masked", "the kernels run on the CPU, the weight is on meta")
    }


def test_the_limits_grow_with_the_weight() -> None:
    assert sorted(DENSEST) == list(DENSEST)
    assert all(0 < most <= 1 and size >= NARROWEST**2 for size, most in DENSEST)


@needs_kernels
def test_what_was_chosen_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    regrow.sparsify(model, 0.9)
    assert isinstance(model[0], regrow.SparseLinear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrow.RigL(model, optimizer, total_steps=30, update_every=5)
    x, y = torch.randn(64, 784), torch.randint(10, (64,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@needs_kernels
def test_convolutions_go_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 1), nn.Conv2d(64, 64, 3), nn.Linear(9, 9))
    rows = regrow.summary(regrow.sparsify(model, 0.9)).rows
    assert [row.storage for row in rows] == ["compressed", "compressed", "compressed", "masked"]
    assert rows[0].density > 0.99  # under ERK
    depthwise = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 64, 1))
    rows = regrow.summary(regrow.sparsify(depthwise, 0.9, "uniform", include=["2"])).rows
    assert rows[-1].storage == "masked"
