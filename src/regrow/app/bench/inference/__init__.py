"""``regrow bench --what inference``: a deployed sparse network against dense engines on the same weights.

`networks` builds them, `handed` writes the file that each of the `engines` loads, `process` is one engine at work, and
`turns` lets all of them measure.
"""

from __future__ import annotations

from regrow.app.bench.inference.networks import QUICK, STANDARD, Network, own
from regrow.app.bench.inference.rows import Inference, LeftOut
from regrow.app.bench.inference.turns import installed, measure, not_installed

__all__ = [
    "QUICK",
    "STANDARD",
    "Inference",
    "LeftOut",
    "Network",
    "installed",
    "measure",
    "not_installed",
    "own",
]
