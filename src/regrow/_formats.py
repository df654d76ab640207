"""The versions of what regrow writes, and how each is read: docs/formats.md says what the formats hold.

A number goes up when an older regrow would read what is written wrongly; whoever raises one writes the reader for the
number before. What has no number was written before there were any, and is laid out as number 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from regrow.errors import RegrowValueError

MODEL_FILE = 1
"""Of `regrow.save`, in the metadata under ``regrow``."""
DEPLOYED = 1
"""Of `Deployed.save`, in the metadata under ``regrow_deployed``."""
STATE_DICT = 1
"""Of a model with sparse weights, in torch's metadata of the state dict under ``regrow``, module by module."""
OPTIMIZER = 1
"""Of a method's entries in ``param_groups[0]`` and ``state``, under ``regrow_format``."""
TICKETS = 1
"""Of the state of `SupTickets`, `FreeTickets` and `EarlyTicket`, under ``format``."""
CHECKPOINT = 1
"""Of ``checkpoint.pt`` in a run folder, under ``format``."""
SUMMARY = 1
"""Of ``summary.json`` in a run folder, under ``format``."""


def require_format(what: str, holder: Mapping[str, object], key: str, newest: int) -> int:
    """Return the format's number that `holder` has under `key`, at most `newest`; 1 where it has none.

    Args:
        what: is read, for the message.
        holder: of the number.
        key: its name there.
        newest: the number that this regrow writes.

    Raises:
        RegrowValueError: a newer format, or no number.
    """
    found = holder.get(key, 1)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise RegrowValueError(
            f"{what} is damaged: its format must be a number, got {str(found)[:40]!r}\nCopy or fetch it again."
        )
    if found > newest:
        raise RegrowValueError(
            f"{what} is of format {found}, and this regrow reads formats up to {newest}\n"
            "It was written by a newer regrow: install that one."
        )
    return found
