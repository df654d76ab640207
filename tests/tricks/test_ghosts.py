"""Ghosts: what they compute, that they end without a trace, and that a run goes on from the middle of them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow import tricks
from regrow.methods import Static
from regrow.models import models

storages = pytest.mark.parametrize("storage", ["masked", "compressed"])


class Block(nn.Module):
    """A residual block with a function for ReLU, a list of modules, dropout by function and an optional argument."""

    def __init__(self, width=8):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, input, scale=None):
        y = self.act(self.bn1(self.convs[0](input)))
        y = F.dropout(self.bn2(self.convs[1](y)), 0.2, self.training)
        if scale is not None:
            y = y * scale
        return F.relu(y + input)


def network(seed=0):
    torch.manual_seed(seed)
    stem = nn.Conv2d(2, 8, 5, stride=2)
    return nn.Sequential(stem, nn.ReLU(), Block(), nn.Flatten(), nn.Linear(8 * 16, 4))


def batch(seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 2, 11, 11, generator=generator)
    return images, images[:, 0, 0, :4].argmax(1)


def ghosts(model, total=20, **options):
    return [
        tricks.GhostSkips(model, total_steps=total, **options),
        tricks.GhostActivations(model, total_steps=total, **options),
    ]


def train(model, optimizer, steps):
    model.train()
    for step in steps:
        torch.manual_seed(step)  # of dropout
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_soft_activations_by_hand():
    """Parametric Swish of 1: .8808 with beta 2, .7311 with 1, 1 in the limit; of -1: 0."""
    one = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert tricks.soft(one, beta=2)[0].item() == pytest.approx(0.8808, abs=5e-5)
    assert torch.equal(tricks.soft(one), tricks.soft(one, beta=2))
    assert tricks.soft(one, beta=1)[0].item() == pytest.approx(0.7311, abs=5e-5)
    torch.testing.assert_close(
        tricks.soft(one, beta=100), torch.tensor([1.0, 0.0]).double(), atol=1e-12, rtol=0
    )
    x = torch.linspace(-5, 5, 41, dtype=torch.float64)
    for name, function in (("mish", F.mish), ("softplus", F.softplus)):
        torch.testing.assert_close(tricks.soft(x, name), function(x))
    for name in ("swish", "mish", "softplus"):
        torch.testing.assert_close(tricks.soft(x, name, 3.0), tricks.soft(3 * x, name, 1.0) / 3)
        torch.testing.assert_close(tricks.soft(x, name, 1e6), F.relu(x), atol=1e-6, rtol=0)
        assert tricks.soft(torch.tensor([1e4, -1e4]).half(), name, 1e3).tolist() == [1e4, 0]  # beta x is inf


def test_a_skip_by_hand():
    """``bn(conv(x)) + s norm(conv1x1(x))``, the 1x1 kernel on the middle of each window."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)).double()
    plain, x = copy.deepcopy(model), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    skips = tricks.GhostSkips(model, total_steps=10, stop_fraction=0.8)
    ones = torch.full((1, 3, 1, 1), 1e-4, dtype=torch.float64)
    summed = F.conv2d(x, ones, stride=2)
    normed = F.batch_norm(summed, None, None, training=True)
    torch.testing.assert_close(model(x), plain(x) + normed)
    skips.strength.value = 0.25
    torch.testing.assert_close(model(x), plain(x) + 0.25 * normed)
    model.eval()
    plain.eval()
    ghost = model[0].ghost
    torch.testing.assert_close(model(x), plain(x) + 0.25 * ghost.norm(summed.expand(-1, 4, -1, -1)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 5),
        nn.Conv2d(4, 6, 3, padding=2, dilation=1),
        nn.Conv2d(4, 6, (1, 3), stride=(2, 3), padding=(0, 1)),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, 4, padding="valid"),
        nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="circular"),
        nn.Conv1d(4, 6, 3, stride=2),
        nn.Conv3d(4, 6, 3, padding=1),
    ],
    ids=str,
)
def test_skips_see_the_middle_of_each_window(layer):
    """A kernel that is 1 at its middle alone gives what the 1x1 convolution does."""
    dims = len(layer.kernel_size)
    x = torch.randn(3, 4, *(11, 10, 9)[:dims])
    model = nn.Sequential(layer)
    tricks.GhostSkips(model, total_steps=4)
    ghost = layer.ghost
    nn.init.normal_(ghost.conv.weight)
    middle = torch.zeros_like(layer.weight)
    middle[(slice(None), slice(None), *(size // 2 - (1 - size % 2) for size in layer.kernel_size))] = (
        ghost.conv.weight.flatten(1)
    )
    with torch.no_grad():
        layer.weight.copy_(middle)
        nn.init.zeros_(layer.bias)
        plain = type(layer).forward(layer, x)
        seen = ghost.conv(F.pad(x, ghost.padding))
    assert seen.shape == plain.shape
    if layer.padding_mode == "zeros":
        torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-5)


@storages
@pytest.mark.parametrize("mode", [True, False])
def test_they_end_without_a_trace(storage, mode):
    """Outputs at strength 0 and after removal are equal to the last bit, and the model is what it was."""
    model = regrow.sparsify(network(), sparsity=0.6, storage=storage)
    names, x = list(model.state_dict()), batch()[0]
    before = [type(module) for module in model.modules()]
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    plain = copy.deepcopy(model).train(mode)
    both = ghosts(model)
    assert tricks.has_ghosts(model)
    assert set(names) < set(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for one in both:
        one.drive(optimizer)
    train(model, optimizer, range(9))
    assert [one.step for one in both] == [9, 9]
    assert all(0 < one.strength.value < 1 for one in both)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for one in both:
        one.strength.value = 0.0
    model.train(mode)
    torch.manual_seed(7)
    faded = model(x)
    model.load_state_dict(kept)
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    for one in both:
        one.remove()
    torch.manual_seed(7)
    assert torch.equal(model(x), faded)
    assert not tricks.has_ghosts(model)
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == before
    assert {n: vars(m).get("forward") for n, m in model.named_modules()} == forwards
    assert held - sum(len(group["params"]) for group in optimizer.param_groups) == 3 * 3
    assert len(optimizer.state) == len(list(model.parameters()))
    plain.load_state_dict({name: kept[name] for name in names})
    torch.manual_seed(7)
    assert torch.equal(plain(x), faded)


def test_they_end_by_themselves_and_a_scheduler_does_not_mind():
    model = network()
    both = ghosts(model, 20, stop_fraction=0.3, start_fraction=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for one in both:
        one.drive(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    strengths = []
    for step in range(20):
        strengths.append(both[0].strength.value)
        assert [one.are_in for one in both] == [step < 6] * 2
        train(model, optimizer, [step])
        scheduler.step()
    assert strengths == [1, 1, 1, 0.75, 0.5, 0.25] + [0] * 14
    assert repr(both[0]) == "GhostSkips(6 steps made of 6; ended)"


def test_each_kind_ends_alone():
    model, x = network().eval(), batch()[0]
    plain = copy.deepcopy(model)
    skips, soft = ghosts(model)
    soft.remove()
    alone = copy.deepcopy(plain)
    tricks.GhostSkips(alone, total_steps=20)
    assert torch.equal(model(x), alone(x))
    assert not torch.equal(model(x), plain(x))
    skips.remove()
    assert torch.equal(model(x), plain(x))


@storages
@pytest.mark.parametrize("stop", [9, 14, 21])
def test_a_run_goes_on_from_the_middle(storage, stop):
    """Before, at and after the middle of a schedule that ends at 14; bit for bit."""

    def begin():
        model = regrow.sparsify(network(), sparsity=0.6, storage=storage)
        both = ghosts(model, 28)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for one in both:
            one.drive(optimizer)
        return model, optimizer, Static(model, optimizer)

    whole, optimizer, _ = begin()
    train(whole, optimizer, range(28))
    model, optimizer, _ = begin()
    train(model, optimizer, range(stop))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    again, other, method = begin()
    other.load_state_dict(saved[1])
    again.load_state_dict(saved[0])
    assert tricks.has_ghosts(again) == (stop < 14)
    train(again, other, range(stop, 28))
    assert method.step == 28
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_copy_fades_with_its_model_and_can_lose_its_ghosts():
    model, x = network().eval(), batch()[0]
    plain = copy.deepcopy(model)
    both = ghosts(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    assert twin[0].ghost is not model[0].ghost
    with torch.no_grad():
        twin[4].weight.zero_()
    assert not torch.equal(twin(x), model(x))  # its forward has its own layers
    for one in both:
        one.strength.value = 0.0
    assert torch.equal(model(x), plain(x))
    assert not tricks.has_ghosts(tricks.remove_ghosts(twin))
    assert tricks.has_ghosts(model)
    small = nn.Sequential(nn.Conv2d(2, 2, 3), nn.ReLU())
    ghosts(small)
    with pytest.raises(regrow.RegrowError, match="cannot be pickled"):
        pickle.dumps(small)


def test_costs_count_a_skip_while_it_is_there():
    """A basic block of c channels: 2 c^2 s^2 multiply-adds of skips against 18 c^2 s^2: 11% more."""
    block, example = Block(8), torch.zeros(1, 8, 6, 6)
    plain = regrow.costs(block, example)
    skips = tricks.GhostSkips(block, total_steps=4)
    more = regrow.costs(block, example)
    assert plain.multiply_adds["dense"] == 18 * 64 * 36
    assert more.multiply_adds["dense"] - plain.multiply_adds["dense"] == 2 * 64 * 36
    skips.strength.value = 0.0  # not computed any more
    assert regrow.costs(block, example).multiply_adds["dense"] == plain.multiply_adds["dense"]
    skips.remove()
    assert regrow.costs(block, example).layers == plain.layers


@pytest.mark.parametrize("name", ["lenet", "allconv", "wrn-22-2", "resnet18-cifar", "vgg16"])
def test_the_networks_of_regrow_take_both(name):
    record = models()[name]
    options = {"width": 0.1}
    model = record.build(**options).eval()
    x = torch.randn(2, *record.example_shape(options))
    plain = model(x)
    both = ghosts(model)
    assert not torch.equal(model(x), plain)
    for one in both:
        one.remove()
    assert torch.equal(model(x), plain)
