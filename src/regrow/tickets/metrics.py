"""How good predictions are, and how different those of several networks.

Probabilities are tensors [N, C] whose rows add up to 1, targets integer tensors [N]. Definitions as in FreeTickets
(arXiv 2106.14568) and its published code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations, permutations
from statistics import fmean

import torch
from torch import Tensor, nn

from regrow.arguments import (
    require_count,
    require_iterable,
    require_model,
    require_models,
    require_positive,
    require_sequence,
    require_tensor,
)
from regrow.errors import RegrowValueError
from regrow.tickets.average import check_alike
from regrow.weights.views import named_weights


def _require_pair(probabilities: object, targets: object) -> None:
    """Refuse what are not probabilities [N, C] with targets [N]: others would be broadcast in silence."""
    given = require_tensor("probabilities", probabilities, dims=2, floating=True)
    wanted = require_tensor("targets", targets, dims=1, floating=False)
    if len(wanted) != len(given):
        raise RegrowValueError(
            f"`targets` must be {len(given)}, one for each row of `probabilities`, got {len(wanted)}"
        )


@torch.no_grad()
def probabilities(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the predictions of `model`, in evaluation mode, and the targets.

    Args:
        model: gives logits [n, C]; an `Ensemble` does.
        batches: ``(inputs, targets)``.

    Returns:
        Probabilities [N, C] in float32 or better, and targets [N]. The model's mode is as before.

    Raises:
        RegrowValueError: no batch.
    """
    require_model("model", model, runs=True)
    require_iterable("batches", batches, "batches (inputs, targets)")
    modes = {module: module.training for module in model.modules()}
    found, wanted = [], []
    try:
        model.eval()
        for batch in batches:
            inputs, targets = require_sequence("batches", batch, "pairs (inputs, targets)", count=2)
            logits = model(inputs)
            found.append(logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1))
            wanted.append(targets)
    finally:
        for module, training in modes.items():
            module.training = training
    if not found:
        raise RegrowValueError("`batches` holds nothing\nGive a list, or a DataLoader.")
    return torch.cat(found), torch.cat(wanted)


def accuracy(probabilities: Tensor, targets: Tensor) -> float:
    """Return the share of rows whose largest probability is the target's, in [0, 1]."""
    _require_pair(probabilities, targets)
    return float((probabilities.argmax(1) == targets).double().mean())


def negative_log_likelihood(probabilities: Tensor, targets: Tensor, *, floor: float | None = None) -> float:
    """Return the mean of ``-ln p(target)``.

    Args:
        probabilities: [N, C].
        targets: [N].
        floor: what a smaller probability counts as; None is the smallest normal number of the dtype (a cost of 87.3
            in float32), which keeps a probability of 0 from making the mean infinite.
    """
    _require_pair(probabilities, targets)
    tiny = torch.finfo(probabilities.dtype).tiny
    least = tiny if floor is None else require_positive("floor", floor, zero=True)
    own = probabilities.gather(1, targets[:, None])
    return float(-own.clamp(min=least).double().log().mean())


def expected_calibration_error(
    probabilities: Tensor, targets: Tensor, *, bins: int = 15, edges: int | None = None
) -> float:
    """Return how far confidence is from accuracy: the sum over bins of ``|correct - confidence|``, over N.

    Args:
        probabilities: [N, C]; the confidence is the largest of a row.
        targets: [N].
        bins: of equal width over [0, 1], each closed on the right.
        edges: the number of edges instead, one more than the bins: FreeTickets' code says 15 bins and has 15 edges,
            that is ``edges=15``, 14 bins.
    """
    _require_pair(probabilities, targets)
    bins = require_count("bins", bins)
    if edges is not None:
        bins = require_count("edges", edges, least=2) - 1
    confidence, predicted = probabilities.double().max(1)
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    place = torch.bucketize(confidence, inner)
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, place, (predicted == targets).double() - confidence)
    return float(gaps.abs().sum() / len(targets))


def disagreement(predictions: Sequence[Tensor]) -> float:
    """Return the share of rows that two networks put into different classes, as the mean over all pairs.

    Args:
        predictions: the probabilities [N, C] of each network.

    Raises:
        RegrowValueError: fewer than two networks.
    """
    labels = [p.argmax(1) for p in _several(predictions)]
    return fmean(float((a != b).double().mean()) for a, b in combinations(labels, 2))


def kl_diversity(predictions: Sequence[Tensor]) -> float:
    """Return the mean over ordered pairs of networks, and over rows, of the divergence ``sum_c p ln(p / q)``.

    Args:
        predictions: the probabilities [N, C] of each network.

    Raises:
        RegrowValueError: fewer than two networks.
    """

    def divergence(p: Tensor, q: Tensor) -> float:
        least = torch.finfo(p.dtype).tiny
        ratio = p.clamp(min=least).double().log() - q.clamp(min=least).double().log()
        return float((p.double() * ratio).sum(1).mean())

    return fmean(divergence(p, q) for p, q in permutations(_several(predictions), 2))


def overlap(models: Sequence[nn.Module]) -> Tensor:
    """Return how far the topologies of networks agree: entry (i, j) is the share of i's connections that j has too.

    Counted by positions, over all sparse weights together. Where two networks have equally many connections the
    entry is the same both ways; two random topologies of density d overlap by about d.

    Args:
        models: sparse networks of one architecture, in any storage.

    Returns:
        float64 [M, M], the diagonal 1.

    Raises:
        RegrowValueError: networks of different architectures, or one without connections.
    """
    models = require_models("models", models, runs=True)
    check_alike(models)
    topologies = [{name: weight.positions() for name, weight in named_weights(model)} for model in models]
    sizes = [sum(len(positions) for positions in topology.values()) for topology in topologies]
    if not all(sizes):
        raise RegrowValueError(f"`models` must be sparse networks with connections, got {sizes} connections")
    result = torch.eye(len(models), dtype=torch.float64, device="cpu")
    for i, j in combinations(range(len(models)), 2):
        pairs = ((own, topologies[j][name].to(own.device)) for name, own in topologies[i].items())
        common = sum(_common(own, other) for own, other in pairs)
        result[i, j], result[j, i] = common / sizes[i], common / sizes[j]
    return result


def _common(first: Tensor, second: Tensor) -> int:
    """Return how many entries two ascending lists of positions share."""
    if not len(second):
        return 0
    place = torch.searchsorted(second, first).clamp(max=len(second) - 1)
    return int((second[place] == first).sum())


def _several(predictions: Sequence[Tensor]) -> Sequence[Tensor]:
    predictions = list(require_iterable("predictions", predictions, "tensors [N, C]"))
    for place, own in enumerate(predictions):
        require_tensor(f"predictions[{place}]", own, dims=2, floating=True)
        if own.shape != predictions[0].shape:
            raise RegrowValueError(
                f"`predictions` must be of one shape, got {[tuple(each.shape) for each in predictions]}"
            )
    if len(predictions) < 2:
        raise RegrowValueError(f"`predictions` must be of at least two networks, got {len(predictions)}")
    return predictions
