"""The `width` argument that every network here has: channels ``int(c * width)``, as the RigL paper scales them."""

from __future__ import annotations

from regrow.arguments import require_positive
from regrow.errors import RegrowValueError


def require_width(width: object) -> float:
    """Return `width` as a float above 0.

    Raises:
        RegrowValueError: naming what was given and what is allowed.
    """
    return require_positive("width", width)


def scaled(channels: int, width: float) -> int:
    """Return ``int(channels * width)``, rounded to six digits before it is cut: ``100 * 0.29`` is 28.999999999999996.

    Raises:
        RegrowValueError: a width that leaves no channel.
    """
    count = int(round(channels * width, 6))
    if count < 1:
        raise RegrowValueError(
            f"`width` {width:g} leaves none of {channels} channels, it must be at least {1 / channels:g}"
        )
    return count
