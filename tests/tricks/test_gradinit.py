"""GradInit: one step worked out by hand, its invariants, both storages, and what is not allowed."""

import copy
import math

import pytest
import torch
from torch import nn

import regrow
from regrow.tricks import GradInit


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(24, 4)
    ).double()


def batches(count=5, size=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 2, 4, 4, generator=generator, dtype=torch.float64)
    return [(x, x[:, 0, 0].argmax(1)) for x in images]


def squares(output, target):
    return (output * target).mean()


def test_the_first_steps_by_hand():
    """One weight w = 2 and loss = x w for x = 3: the gradient is 3, above gamma 1, and does not depend on w.

    Adam's first step is the rate by the sign of the gradient: none here. With gamma 10 the loss ahead is
    3 (w - eta 3 / 3), whose derivative by the scale is 3 w / eta: 60, clipped to 1; the scale goes down by the rate.
    """
    data = [(torch.tensor([[3.0], [3.0]]), torch.ones(2, 1))]
    for gamma, scale, constrained in ((1.0, 1.0, 1), (10.0, 0.99, 0)):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 2.0)
        found = GradInit(iterations=1, gamma=gamma, eta=0.1)(layer, squares, data)
        assert found.scales == {"weight": pytest.approx(scale)}
        assert found.constrained == constrained
        assert layer.weight.item() == pytest.approx(2 * scale)
        assert found.passes == (9 if constrained else 12)


def test_the_norm_goes_down_its_own_way():
    """Loss (x w)^2 / 2 for x = 1, w = 2: the gradient w is 2, above gamma; its derivative by the scale is w = 2,
    clipped to 1: Adam's first step is the rate."""
    data = [(torch.ones(2, 1), torch.ones(2, 1))]
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    found = GradInit(iterations=3, lr=0.1)(layer, lambda y, _: y.square().mean() / 2, data)
    assert found.constrained == 3
    assert found.scales["weight"] == pytest.approx(1 - 3 * 0.1, abs=1e-6)
    adam = GradInit(iterations=1, target="adam", gamma=3.0, eta=0.5)(
        layer, lambda y, _: y.square().mean() / 2, data
    )
    assert adam.constrained == 0


def test_scales_are_of_whole_tensors_and_zero_stays_zero():
    model = network()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = GradInit(iterations=12)(model, nn.CrossEntropyLoss(), batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert found.iterations == 12
    assert set(found.scales) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "5.weight",
        "5.bias",
    }  # not the norm's zeros
    assert all(scale >= (0 if name.endswith("bias") else 0.01) for name, scale in found.scales.items())
    assert any(abs(scale - 1) > 0.01 for scale in found.scales.values())
    for name, after in model.state_dict().items():
        scale = found.scales.get(name)
        wanted = before[name] if scale is None else before[name] * scale
        torch.testing.assert_close(after, wanted, rtol=1e-14, atol=0)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_weight_never_falls_below_the_smallest_scale():
    model = network()
    found = GradInit(iterations=40, lr=0.1, gamma=1e-6)(model, nn.CrossEntropyLoss(), batches())
    assert min(found.scales.values()) >= 0
    weights = [scale for name, scale in found.scales.items() if name.endswith("weight")]
    assert min(weights) == pytest.approx(0.01)
    assert found.constrained == 40


def test_it_lowers_what_it_looks_at():
    """The loss after one step of SGD by the normalised gradient, on the batches that it saw."""

    def after(model):
        losses = []
        for x, y in batches():
            one = copy.deepcopy(model).eval()
            one[1].train()
            nn.functional.cross_entropy(one(x), y).backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in one.parameters()))
            with torch.no_grad():
                for p in one.parameters():
                    p -= 0.1 * p.grad / norm
                losses.append(float(nn.functional.cross_entropy(one(x), y)))
        return sum(losses)

    model = network()
    before = after(model)
    GradInit(iterations=60, gamma=100.0)(model, nn.CrossEntropyLoss(), batches())
    assert after(model) < before - 0.1


def test_masked_and_compressed_are_the_same():
    found = {}
    for storage in ("masked", "compressed"):
        model = regrow.sparsify(network(), sparsity=0.7, storage=storage)
        masks = regrow.masks(model)
        how = GradInit(iterations=8)(model, nn.CrossEntropyLoss(), batches())
        assert all(torch.equal(mask, masks[name]) for name, mask in regrow.masks(model).items())
        found[storage] = how.scales, {n: v.clone() for n, v in regrow.dense_state_dict(model).items()}
        model(batches()[0][0]).sum().backward()  # values and topology belong together
    assert found["masked"][0] == found["compressed"][0]
    for name, value in found["masked"][1].items():
        assert torch.equal(value, found["compressed"][1][name])


def test_before_masking_and_after_are_two_things():
    dense, sparse = network(), network()
    before = GradInit(iterations=8)(dense, nn.CrossEntropyLoss(), batches()).scales
    regrow.sparsify(sparse, sparsity=0.7)
    assert GradInit(iterations=8)(sparse, nn.CrossEntropyLoss(), batches()).scales != before


def driven():
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, regrow.Static(model, optimizer), optimizer


def test_what_is_not_allowed_leaves_the_model_as_it_was():
    loss, model = nn.CrossEntropyLoss(), network()
    before = copy.deepcopy(model.state_dict())
    for options, text in (
        ({"iterations": 0}, "`iterations` must be a whole number of at least 1, got 0"),
        ({"gamma": 0}, "`gamma` must be a number above 0, got 0"),
        ({"min_scale": -1}, "`min_scale` must be a number of at least 0, got -1"),
        ({"target": "sdg"}, "`target` must be one of sgd, adam, got 'sdg', did you mean `sgd`"),
        ({"when": "later"}, "`when` must be one of before, after, got 'later'"),
        ({"normalize": 1}, "`normalize` must be true or false, got 1"),
    ):
        with pytest.raises(regrow.RegrowError, match=text):
            GradInit(**options)
    for arguments, text in (
        (
            (loss, [(torch.ones(1, 2, 4, 4).double(), torch.ones(1))]),
            "`batches` must hold two examples or more",
        ),
        ((loss, []), "`batches` has none, or none left"),
        ((loss, iter(batches(3))), "`batches` has none, or none left"),
        ((loss, [torch.ones(3)]), r"`batches` must be pairs \(input, target\)"),
        ((lambda y: y, batches()), r"`loss_fn` must be a function \(output, target\)"),
        (
            (lambda y, t: y.sum() * math.inf, batches()),
            "is not finite at iteration 0; the model is as it was",
        ),
    ):
        with pytest.raises(regrow.RegrowError, match=text):
            GradInit(iterations=9)(model, *arguments)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sparse, method, optimizer = driven()
    with pytest.raises(regrow.RegrowError, match=r"(?s)driven by a method.*detach"):
        GradInit()(sparse, loss, batches())
    assert method.optimizer is optimizer
