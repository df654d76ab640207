"""FLOPs of a training step, by when a method needs the dense gradient and how dense its network is over a run.

A backward pass costs twice its forward pass, so a dense step costs 3 f_D, where f_D are the FLOPs of a dense forward
pass and f_S those of the sparse one. A dense gradient of the weights costs f_D instead of f_S (RigL, arXiv 1911.11134,
appendix H); that of all weights that are trained, where these are more than the connections, f_B.
"""

from __future__ import annotations

from dataclasses import dataclass

from regrow.arguments import require_count, require_flag, require_fraction
from regrow.errors import RegrowValueError

GRADIENTS = NEVER, UPDATE, ALWAYS = "never", "update", "always"
"""When a method needs the dense gradient."""


@dataclass(frozen=True)
class Formula:
    """What a training step costs."""

    text: str
    gradient: str = NEVER
    """When the dense gradient is computed."""
    gradual: bool = False
    """Whether the network becomes sparser over the run."""
    wider: bool = False
    """Whether more weights are trained than are connected."""


BY_NAME = {
    "dense": Formula("3 f_D"),
    "sparse": Formula("3 f_S"),
    "rigl": Formula("(3 f_S dT + 2 f_S + f_D) / (dT + 1)", UPDATE),
    "snfs": Formula("2 f_S + f_D", ALWAYS),
    "pruning": Formula("mean over the steps t of 3 f(s_t)", gradual=True),
    "granet": Formula(
        "mean over the steps t of (3 f(s_t) dT + 2 f(s_t) + f_D) / (dT + 1)", UPDATE, gradual=True
    ),
    "top-kast": Formula("2 f_S + f_B", wider=True),
}
DENSE, SPARSE, SMALL_DENSE = "dense", "sparse", "small-dense"
"""Names of costs; the last is that of a narrower dense network, ``sparse`` with its own FLOPs for f_S."""


def name_of(gradient: str, gradual: bool, wider: bool = False) -> str:
    """Find the name of the formula for a method.

    With the dense gradient always, there is one for all; where more is trained than is connected, one otherwise.
    """
    wider = wider and gradient == NEVER
    fitting = [
        name
        for name, formula in BY_NAME.items()
        if name != DENSE and (formula.gradient, formula.wider) == (gradient, wider)
    ]
    return next((name for name in fitting if BY_NAME[name].gradual == gradual), fitting[0])


def step(gradient: str, forward: float, dense: float, every: int, trained: float | None = None) -> float:
    """Compute the FLOPs of a training step.

    Args:
        gradient: when the dense gradient is computed.
        forward: FLOPs of a forward pass, on the run's average.
        dense: of a dense one, f_D.
        every: steps between two updates, dT.
        trained: of a forward pass with all weights that are trained, f_B, where these are more than the connections.
    """
    if gradient == ALWAYS:
        return 2 * forward + dense
    if trained is not None:
        return 2 * forward + trained
    if gradient == UPDATE:
        return (3 * forward * every + 2 * forward + dense) / (every + 1)
    return 3 * forward


def pruning_levels(
    steps: int = 32_000,
    begin: int = 10_000,
    end: int = 25_000,
    every: int = 1_000,
    *,
    initial: float = 0.0,
    exact: bool = False,
) -> list[float]:
    """Return the sparsity over a run of gradual pruning, as shares of the final one: ``i + (1 - i) (1 - (1 - p)^3)``.

    Args:
        steps: length of the run; the defaults are ResNet-50's in the RigL paper.
        begin: first step of pruning.
        end: last step of pruning.
        every: steps between two prunings.
        initial: the share i at which the run starts: initial over final sparsity; GraNet's sparse to sparse is
            0.5 / 0.9 of the way to 90% already.
        exact: a value for each step, 0 to ``steps - 1``. Default: one each `every` steps, both ends included, as
            the published figures were computed (33 values); it weighs the last step like a thousand others, which
            makes pruning look cheaper by about 0.01.

    Raises:
        RegrowValueError: a schedule that cannot be.
    """
    steps, every, end = (
        require_count("steps", steps),
        require_count("every", every),
        require_count("end", end),
    )
    begin, exact = require_count("begin", begin, least=0), require_flag("exact", exact)
    initial = require_fraction("initial", initial, one=True)
    if not begin < end <= steps:
        raise RegrowValueError(
            f"`begin` must lie before `end`, and `end` within `steps` {steps}, got {begin} and {end}"
        )

    def level(step: int) -> float:
        progress = (step // every * every - begin) / (end - begin)
        return 1 - (1 - initial) * (1 - min(max(progress, 0.0), 1.0)) ** 3

    return [level(step) for step in (range(steps) if exact else range(0, steps + 1, every))]
