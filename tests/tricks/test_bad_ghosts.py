"""What ghosts refuse, before anything is changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import regrow
from regrow import tricks


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return F.relu(self.conv(x)) if x.sum() > 0 else x


class Drawing(Branching):
    def forward(self, x):
        return F.relu(self.conv(x)) * torch.rand(1)


class Shared(Branching):
    def forward(self, x):
        y = self.conv(x)
        return F.relu(y, inplace=True) + y


class Twice(Branching):
    def forward(self, x):
        return self.conv(F.pad(self.conv(x), (1, 1, 1, 1))[:, :3])


class Optional(Branching):
    def forward(self, x, scale=1.0):
        return F.relu(self.conv(x)) * scale


class Any(Branching):
    def forward(self, *x):
        return F.relu(self.conv(x[0]))


def patched():
    module = Branching()
    module.forward = lambda x: x
    return module


def fused():
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3))
    return regrow.fuse(regrow.sparsify(model, sparsity=0.9, storage="compressed"))


BAD = [
    (Branching(), {}, r"torch.fx cannot trace the forward of `inner` \(Branching\): .*control flow"),
    (Drawing(), {}, r"of `inner` \(Drawing\): it makes a tensor that does not depend on its inputs"),
    (Any(), {}, r"of `inner` \(Any\): it takes any number of arguments"),
    (patched(), {}, r"of `inner` \(Branching\): another function has been put in its place"),
    (
        fused(),
        {},
        r"`model` is fused: `inner.*` does what follows it(?s:.*)Call regrow.unfuse\(model\) first",
    ),
    (Optional(), {"stop_fraction": 1}, r"`stop_fraction` must be below 1, got 1: the network trains on"),
    (
        Optional(),
        {"exclude": "iner"},
        r"`exclude` 'iner' matches no module of the model, did you mean `inner`\?",
    ),
    (Optional(), {"exclude": 3}, r"`exclude` must be a glob"),
    (Optional(), {"total_steps": 0}, r"`total_steps` must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize("kind", [tricks.GhostSkips, tricks.GhostActivations])
@pytest.mark.parametrize(("inner", "options", "text"), BAD, ids=lambda one: "")
def test_refused_by_both(kind, inner, options, text):
    model = nn.Sequential()
    model.add_module("inner", inner)
    names = list(model.state_dict())
    with pytest.raises(regrow.RegrowError, match=text):
        kind(model, **{"total_steps": 10, **options})
    assert list(model.state_dict()) == names
    assert not tricks.has_ghosts(model)


def test_what_excludes_is_in_the_message():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), Branching(), Branching())
    with pytest.raises(regrow.RegrowError, match=r"exclude=\['2', '3'\], or write these without branches"):
        tricks.GhostActivations(model, total_steps=10)
    tricks.GhostActivations(model, total_steps=10, exclude=["2", "3"])
    tricks.GhostSkips(model, total_steps=10, exclude=["2", "3"])
    assert hasattr(model[0], "ghost")
    assert not hasattr(model[2].conv, "ghost")


def test_refused_by_one():
    with pytest.raises(regrow.RegrowError, match="writes into its input, which others read too"):
        tricks.GhostActivations(Shared(), total_steps=10)
    for model in (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 3, 1)), Twice()):
        with pytest.raises(regrow.RegrowError, match="has no convolution that a ghost skip can be put over"):
            tricks.GhostSkips(model, total_steps=10)
    with pytest.raises(regrow.RegrowError, match="has no ReLU in any forward"):
        tricks.GhostActivations(nn.Sequential(nn.Linear(4, 4)), total_steps=10)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    for options, text in (
        (
            {"activation": "swich"},
            "`activation` must be one of swish, mish, softplus, got 'swich', did you mean",
        ),
        ({"beta": 0}, "`beta` must be a number above 0, got 0"),
        ({"end": "never"}, "`end` must be one of sharpen, swap, got 'never'"),
    ):
        with pytest.raises(regrow.RegrowError, match=text):
            tricks.GhostActivations(model, total_steps=10, **options)
    with pytest.raises(regrow.RegrowError, match="`model` is wrapped"):
        tricks.GhostSkips(nn.DataParallel(model), total_steps=10)
    for kind, text in (
        (tricks.GhostSkips, "ghost skips already"),
        (tricks.GhostActivations, "activations already"),
    ):
        kind(model, total_steps=10)
        with pytest.raises(regrow.RegrowError, match=text):
            kind(model, total_steps=10)


def test_optimizers_and_states_that_do_not_fit():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    skips = tricks.GhostSkips(model, total_steps=10)
    with pytest.raises(
        regrow.RegrowError, match="`optimizer` does not hold the parameters of the ghost skips"
    ):
        skips.drive(early)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    skips.drive(optimizer)
    with pytest.raises(regrow.RegrowError, match="follows an optimizer already"):
        skips.drive(optimizer)
    with pytest.raises(RuntimeError, match=r"`0.ghost` is a ghost, and the state was saved without ghosts"):
        model.load_state_dict(plain)


def test_an_optional_argument_that_was_not_traced_is_refused():
    model, x = Optional(), torch.randn(1, 3, 4, 4)
    soft = tricks.GhostActivations(model, total_steps=10)
    assert torch.equal(model(x), model(x, 1.0))
    with pytest.raises(
        regrow.RegrowError, match=r"was called with `scale`, and its forward was traced with the"
    ):
        model(x, scale=2.0)
    soft.remove()
    model(x, scale=2.0)


def test_fuse_leaves_a_network_with_ghosts_alone():
    """torch.fx would show it the forward of the class."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    regrow.sparsify(model, sparsity=0.9, storage="compressed", include="0", init="random", rescale=False)
    tricks.GhostActivations(model, total_steps=10)
    x = torch.randn(2, 64)
    before = model(x)
    assert torch.equal(regrow.fuse(model)(x), before)
    assert model[0].activation is None
