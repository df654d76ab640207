"""Label smoothing and the strength of tricks: the arithmetic of the fact sheet, and what is not allowed."""

import pytest
import torch
from torch.nn import functional as F

from regrow import RegrowError, tricks


def test_targets_are_those_of_the_code():
    """C = 4, a = 0.1, true class 0: .9 and .0333 for each other; torch's with .1 are .925 and .025."""
    logits = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0])
    tricks.smoothed_cross_entropy(logits, target, 0.1).backward()
    (torchs,) = torch.autograd.grad(F.cross_entropy(logits, target, label_smoothing=0.1), logits)
    chance = logits.detach().softmax(-1)  # the gradient is this without the target
    torch.testing.assert_close(
        chance - logits.grad, torch.tensor([[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]]).double()
    )
    torch.testing.assert_close(chance - torchs, torch.tensor([[0.925, 0.025, 0.025, 0.025]]).double())


@pytest.mark.parametrize(("classes", "share"), [(4, 0.13333), (10, 0.1111), (100, 0.10101)])
def test_torchs_share(classes, share):
    assert tricks.over_all(0.1, classes) == pytest.approx(share, abs=5e-5)
    logits, targets = torch.randn(6, classes, 3), torch.randint(classes, (6, 3))
    torch.testing.assert_close(
        tricks.smoothed_cross_entropy(logits, targets, 0.1, reduction="none"),
        F.cross_entropy(logits, targets, label_smoothing=tricks.over_all(0.1, classes), reduction="none"),
    )


def test_smoothing_over_a_run():
    smoothing = tricks.LabelSmoothing(0.2, total_steps=100)
    assert [smoothing.at(step) for step in (0, 99, 100)] == [0.2, 0.2, 0.0]
    early = tricks.LabelSmoothing(0.2, total_steps=100, stop_fraction=0.5, shape="linear")
    assert [early.at(step) for step in (0, 25, 50)] == [0.2, 0.1, 0.0]
    logits, targets = torch.randn(5, 3), torch.randint(3, (5,))
    assert torch.equal(early(logits, targets, 50), F.cross_entropy(logits, targets))
    assert torch.equal(early(logits, targets, 0), tricks.smoothed_cross_entropy(logits, targets, 0.2))


def test_strengths_end_at_exactly_nothing():
    for shape, middle in (("linear", 0.75), ("cosine", 0.8535533905932737), ("constant", 1.0)):
        fade = tricks.Fade(100, start_fraction=0.2, stop_fraction=0.6, shape=shape)
        assert (fade.start, fade.stop) == (20, 60)
        assert [fade(step) for step in (0, 20, 30, 60, 61, 1000)] == [1.0, 1.0, middle, 0.0, 0.0, 0.0]
        falls = [fade(step) for step in range(61)]
        assert falls == sorted(falls, reverse=True)
        assert min(falls[:60]) > 0
    at_once = tricks.Fade(10, start_fraction=0.5, stop_fraction=0.5)
    assert [at_once(step) for step in (4, 5)] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tricks.over_all(0.8, 4), r"`smoothing` must be at most 0.75 for 4 classes, got 0.8"),
        (lambda: tricks.over_all(1, 4), r"`smoothing` must be in \[0, 1\), got 1"),
        (lambda: tricks.over_all(0.1, 1), r"`classes` must be a whole number of at least 2, got 1"),
        (
            lambda: tricks.smoothed_cross_entropy(torch.ones(3), torch.ones(3)),
            r"`logits` must be of shape \[N, C, ...\], got \[3\]",
        ),
        (
            lambda: tricks.smoothed_cross_entropy(torch.ones(3, 2), torch.ones(3), reduction="max"),
            r"`reduction` must be one of mean, sum, none, got 'max'",
        ),
        (lambda: tricks.Fade(0), r"`total_steps` must be a whole number of at least 1, got 0"),
        (
            lambda: tricks.Fade(9, start_fraction=0.6),
            r"`start_fraction` must be at most `stop_fraction` 0.5, got 0.6",
        ),
        (lambda: tricks.Fade(9, stop_fraction=1.5), r"`stop_fraction` must be in \[0, 1\], got 1.5"),
        (
            lambda: tricks.Fade(9, stop_fraction=0.01),
            r"`stop_fraction` 0.01 of `total_steps` 9 is before the first step",
        ),
        (lambda: tricks.Fade(9, shape="cosin"), r"`shape` must be one of .*, did you mean `cosine`\?"),
    ],
)
def test_what_is_not_allowed(make, text):
    with pytest.raises(RegrowError, match=text):
        make()
