"""Printing layers that hold nothing."""

from torch import nn

import regrow


def test_a_sparse_model_on_the_meta_device_is_printed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    regrow.sparsify(model, 0.5, storage="compressed")
    assert "connections=?" not in repr(model)
    model.to("meta")
    assert repr(model).count("connections=?") == 2
