"""A network with a nan in it looks so, whatever `fuse` has put together."""

from __future__ import annotations

import pytest
import torch
from machine import ISAS, using
from torch import nn
from torch.nn import functional as F

import regrow
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels were not built")

NAN = float("nan")
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), (8, 20)),
    "norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5)
        ),
        (8, 3, 8, 8),
    ),
    "pool": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 8, 3),
            nn.Flatten(),
            nn.Linear(8, 5),
        ),
        (8, 3, 8, 8),
    ),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("where", ["input", "bias", "gradient"])
def test_nan_reaches_the_loss_and_the_gradients(isa: str, network: str, where: str) -> None:
    """As in torch's dense network: the loss, and which parameters have a gradient that is not finite."""
    found = []
    for fused in (False, True):
        make, shape = NETWORKS[network]
        torch.manual_seed(0)
        model = make()
        x = torch.randn(shape)
        if fused:
            regrow.fuse(regrow.sparsify(model, 0.5, storage="compressed", seed=0))
        if where == "input":
            x[0] = NAN
        elif where == "bias":
            with torch.no_grad():
                model[0].bias[3] = NAN
        with using(isa):
            output = model(x)
            loss = F.cross_entropy(output, torch.zeros(8, dtype=torch.long))
            (loss * (NAN if where == "gradient" else 1.0)).backward()
            evaluated = model.eval()(x)
        gradients = {name: bool(p.grad.isfinite().all()) for name, p in model.named_parameters()}
        biases = {name: finite for name, finite in gradients.items() if name.endswith("bias")}
        found.append((loss.isfinite().item(), evaluated.isfinite().all(1).tolist(), biases))
        assert not all(gradients.values())
    assert found[0] == found[1]
