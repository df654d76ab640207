"""Label smoothing in the form of ToST's code: what the true class gives up, the others share."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from regrow.arguments import require_choice, require_count, require_fraction, require_tensor
from regrow.errors import RegrowValueError
from regrow.tricks.fade import Fade


def over_all(smoothing: float, classes: int) -> float:
    """Return torch's ``label_smoothing``, a share spread over all classes, for one spread over the other classes.

    A target of 1 - a for the true class and a / (C - 1) for each other one is torch's with a C / (C - 1).

    Args:
        smoothing: a, at most (C - 1) / C, where all classes have the same target.
        classes: C.

    Raises:
        RegrowValueError: a share outside of that, or fewer than two classes.

    Example:
        >>> round(over_all(0.1, 10), 4)
        0.1111
    """
    share, count = require_fraction("smoothing", smoothing), require_count("classes", classes, least=2)
    most = (count - 1) / count
    if share > most:
        raise RegrowValueError(
            f"`smoothing` must be at most {most:g} for {count} classes, got {share}: the true class would have a lower "
            "target than the others"
        )
    return min(1.0, share / most)


def smoothed_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.1, *, reduction: str = "mean"
) -> Tensor:
    """Return the cross entropy with targets 1 - a for the true class and a / (C - 1) for each other class.

    The form of ToST's code (arXiv 2206.12755), which is not torch's: that spreads the share over all C classes.

    Args:
        logits: of shape [N, C] or [N, C, d1, ...], as for `torch.nn.functional.cross_entropy`.
        targets: class numbers, int64 [N] or [N, d1, ...].
        smoothing: a.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        RegrowValueError: a share that is not allowed, or logits without a dimension of classes.
    """
    require_choice("reduction", reduction, ("mean", "sum", "none"))
    if require_tensor("logits", logits, floating=True).dim() < 2:
        raise RegrowValueError(f"`logits` must be of shape [N, C, ...], got {list(logits.shape)}")
    share = over_all(smoothing, logits.shape[1])
    return F.cross_entropy(logits, targets, reduction=reduction, label_smoothing=share)


class LabelSmoothing:
    """Label smoothing over a run: `smoothed_cross_entropy` with a share that a schedule may take back.

    ToST's code smooths in the whole run, which is the default; its validation loss is smoothed too, regrow's is not.

    Args:
        smoothing: a, the share of the target that the true class gives up.
        total_steps: optimizer steps of the whole run.
        start_fraction, stop_fraction, shape: of the share, see `Fade`.

    Raises:
        RegrowValueError: an argument that is not allowed.
    """

    def __init__(
        self,
        smoothing: float = 0.1,
        *,
        total_steps: int,
        start_fraction: float = 0.0,
        stop_fraction: float = 1.0,
        shape: str = "constant",
    ) -> None:
        self.smoothing = require_fraction("smoothing", smoothing)
        self.fade = Fade(total_steps, start_fraction=start_fraction, stop_fraction=stop_fraction, shape=shape)

    def at(self, step: int) -> float:
        """Return the share at optimizer step `step`."""
        return self.smoothing * self.fade(step)

    def __call__(self, logits: Tensor, targets: Tensor, step: int) -> Tensor:
        """Return the mean loss of `logits` [N, C, ...] and class numbers [N, ...] at optimizer step `step`."""
        return smoothed_cross_entropy(logits, targets, self.at(step))
