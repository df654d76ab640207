"""A user's file: methods of phases and turns whose process is killed in the middle of one, once.

SIGNAL_AT is the step, SIGNALLED a file that is there once it happened.
"""

import os
import signal
from pathlib import Path

import regrow
from regrow.methods import register


class Killed:
    """Kills the process where the step has been made and is not counted yet."""

    def _after(self, *args):
        happened = Path(os.environ.get("SIGNALLED", "/"))
        if str(self.step) == os.environ.get("SIGNAL_AT") and not happened.exists():
            happened.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._after(*args)


@register(name="killed-rst", paper="none", line="RST whose process is killed")
class KilledRST(Killed, regrow.RST):
    pass


@register(name="killed-core", paper="none", line="a core whose process is killed")
class KilledCore(Killed, regrow.PartiallyMasked):
    pass
