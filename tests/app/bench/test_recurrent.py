"""`regrow bench --what recurrent`: training steps of networks of text, and their recurrent layers alone."""

from __future__ import annotations

import pytest
from tiny import cli

from regrow.app.bench.plan import plan
from regrow.app.bench.recurrent import Cells, Text, measure
from regrow.app.bench.rows import Comparison, Settings, Step
from regrow.nn import SparseGRU, SparseLSTM
from regrow.weights import sparse_weights


def test_a_row_of_the_network_and_two_of_its_layer() -> None:
    text = Text("char-gru", 20, 4)
    rows = measure(text, 2, (0.75, 0.9), Settings(seconds=0.01, compiled=False))
    steps, cells = (
        [row for row in rows if type(row) is kind and row.sparsity == 0.9] for kind in (Step, Comparison)
    )
    (step,) = steps
    assert (step.subject, step.batch, step.what) == ("char-gru, 20 classes, 4 tokens", 2, "step")
    assert step.bound > 1
    assert [(row.subject, row.what) for row in cells] == [
        ("GRU 512 of 128, 4 steps", what) for what in ("forward", "forward + backward")
    ]
    weights = 3 * 512 * (128 + 512)
    assert cells[0].flops is not None
    assert cells[0].flops[0] == 2 * weights * 2 * 4
    assert cells[0].flops[1] == pytest.approx(0.1 * cells[0].flops[0], rel=1e-4)
    assert step.flops is not None
    saved = step.flops[0] - step.flops[1]
    assert saved == pytest.approx(3 * (cells[0].flops[0] - cells[0].flops[1]), rel=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("char-gru", SparseGRU), ("stacked-lstm", SparseLSTM)])
def test_recurrent_weights_alone_are_sparse(name: str, kind: type) -> None:
    text = Text(name, 20, 4)
    if name == "char-gru":
        model = text.sparsify(text.build(), 0.9)
        assert [weight.name for weight in sparse_weights(model)] == [
            "layers.0.weight_ih_l0",
            "layers.0.weight_hh_l0",
        ]
        assert isinstance(model.get_submodule("layers.0"), kind)
        assert int(text.tokens(3).max()) < 20
    assert (
        str(Cells(text))
        == {"char-gru": "GRU 512 of 128", "stacked-lstm": "LSTM 2x1500 of 1500"}[name] + ", 4 steps"
    )


def test_the_standard_set() -> None:
    names = [case.name for case in plan(what="recurrent").cases]
    start = "recurrent layers and training steps of"
    assert names[:2] == [f"{start} char-gru, 256 classes, 128 tokens, batch {size}" for size in (32, 128)]
    assert f"{start} stacked-lstm, 10,000 classes, 35 tokens, batch 128" in names
    assert len(plan(what="recurrent", quick=True).cases) == 1
    assert not [case for case in plan().cases if "tokens" in case.name]


def test_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--batch", "1", "--sparsity", "0.98", "--seconds", "0.01", "--no-compile"]
    ended = cli(capsys, "bench", "--what", "recurrent", *options, "--threads", "1")
    assert ended.code == 0, ended.err
    assert "training steps, sparse against dense" in ended.out
    assert "GRU 512 of 128, 128 steps" in ended.out
    ended = cli(capsys, "bench", "--what", "recurrent", "--conv", "64x64x16")
    assert "`--conv` has no part in what is measured: recurrent" in ended.err
