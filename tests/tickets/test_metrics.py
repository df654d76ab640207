"""Metrics and the ensemble, with the examples of the published definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import regrow
from regrow.tickets import (
    Ensemble,
    accuracy,
    disagreement,
    expected_calibration_error,
    kl_diversity,
    negative_log_likelihood,
    overlap,
    probabilities,
)


class Fixed(nn.Module):
    """Gives these probabilities, as logits with an offset, to every row."""

    def __init__(self, p: list[float], offset: float = 0.0) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(p).double().log() + offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def rows(confidence: list[float], classes: int = 2) -> Tensor:
    """Probabilities whose largest is that of class 0."""
    rest = [[(1 - c) / (classes - 1)] * (classes - 1) for c in confidence]
    return torch.tensor(
        [[c, *others] for c, others in zip(confidence, rest, strict=True)], dtype=torch.float64
    )


def labelled(labels: list[int]) -> Tensor:
    return functional.one_hot(torch.tensor(labels), 3).double()


def test_the_mean_of_probabilities() -> None:
    ensemble = Ensemble([Fixed([0.9, 0.1], offset=5.0), Fixed([0.2, 0.8], offset=-2.0)])
    x, y = torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)
    assert ensemble(x).exp()[0].tolist() == pytest.approx([0.55, 0.45])
    assert functional.cross_entropy(ensemble(x), y).item() == pytest.approx(0.5978, abs=5e-5)
    p, targets = probabilities(ensemble, [(x[:2], y[:2]), (x[2:], y[2:])])
    assert p.tolist() == [pytest.approx([0.55, 0.45])] * 3
    assert targets.tolist() == [0, 0, 0]
    assert negative_log_likelihood(p, targets) == pytest.approx(0.5978, abs=5e-5)
    mean_of_logarithms = -(math.log(0.9) + math.log(0.2)) / 2
    assert mean_of_logarithms == pytest.approx(0.8574, abs=5e-5)


def test_the_likelihood_of_what_was_thought_impossible_is_finite() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert negative_log_likelihood(p, torch.tensor([0, 1])) == pytest.approx(87.3365 / 2, rel=1e-5)
    assert negative_log_likelihood(p, torch.tensor([0, 1]), floor=1e-3) == pytest.approx(math.log(1000) / 2)


def test_the_calibration_error_of_four_predictions() -> None:
    p, y = rows([0.95, 0.95, 0.65, 0.65]), torch.tensor([0, 1, 0, 0])  # correct: 1, 0, 1, 1
    assert expected_calibration_error(p, y) == pytest.approx(0.40)
    assert expected_calibration_error(p, y, bins=1) == pytest.approx(abs(3 - 3.2) / 4)


def test_bins_are_closed_on_the_right_and_the_published_code_has_fourteen() -> None:
    # 10/15 is in the tenth of 15 bins, with 0.62; of 14 bins 0.62 is in the ninth and 10/15 in the tenth
    p, y = rows([10 / 15, 0.62]), torch.tensor([0, 1])
    together = abs(1 - (10 / 15 + 0.62)) / 2
    apart = (abs(1 - 10 / 15) + 0.62) / 2
    assert expected_calibration_error(p, y) == pytest.approx(together)
    assert expected_calibration_error(p, y, edges=16) == pytest.approx(together)
    assert expected_calibration_error(p, y, edges=15) == pytest.approx(apart)
    certain = rows([1.0, 1.0])
    assert expected_calibration_error(certain, torch.tensor([0, 1])) == pytest.approx(0.5)


def test_disagreement_and_accuracy() -> None:
    first, second = labelled([0, 1, 2, 2]), labelled([0, 2, 2, 1])
    assert disagreement([first, second]) == 0.5
    assert disagreement([first, second, first]) == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert accuracy(first, torch.tensor([0, 2, 2, 1])) == 0.5
    with pytest.raises(regrow.RegrowError, match="`predictions` must be of at least two networks, got 1"):
        disagreement([first])


def test_kl_diversity_is_the_mean_over_ordered_pairs() -> None:
    p, q = torch.tensor([[0.9, 0.1]]).double(), torch.tensor([[0.5, 0.5]]).double()
    one = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    other = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert one == pytest.approx(0.3681, abs=5e-5)
    assert kl_diversity([p, q]) == pytest.approx((one + other) / 2)
    assert kl_diversity([p, p]) == 0
    assert math.isfinite(kl_diversity([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]))


def test_overlap_counts_positions_over_all_layers() -> None:
    def network(storage: str, *masks: list[int]) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 4))
        flat = [torch.zeros(4, dtype=torch.bool).scatter_(0, torch.tensor(mask), True) for mask in masks]
        init = {"0.weight": flat[0].view(1, 4), "1.weight": flat[1].view(4, 1)}
        return regrow.sparsify(model, init=init, storage=storage)

    models = [
        network("masked", [0, 1, 2], [0]),
        network("compressed", [0, 3], [0, 3]),
        network("masked", [3], [1]),
    ]
    expected = [[1, 2 / 4, 0], [2 / 4, 1, 1 / 4], [0, 1 / 2, 1]]
    torch.testing.assert_close(overlap(models), torch.tensor(expected, dtype=torch.float64))


def test_predicting_leaves_the_modes_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    model[2].eval()
    x = torch.randn(4, 2)
    p, _ = probabilities(model, [(x, torch.zeros(4))])
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert torch.equal(p, model.eval()(x).softmax(-1))
    assert torch.equal(p.sum(1), torch.ones(4)) or torch.allclose(p.sum(1), torch.ones(4))
    with pytest.raises(regrow.RegrowError, match="`batches` holds nothing"):
        probabilities(model, [])


def test_ensembles_that_make_no_sense() -> None:
    with pytest.raises(regrow.RegrowError, match="`models` must hold at least one network"):
        Ensemble([])
    with pytest.raises(regrow.RegrowError, match=r"outputs of one shape, got \[\(1, 2\), \(1, 3\)\]"):
        Ensemble([Fixed([0.5, 0.5]), Fixed([0.2, 0.3, 0.5])])(torch.zeros(1, 1))
