"""One thread for torch, here and in the processes that tests start.

Small networks do not gain by more, and two processes that share the cores with two OpenMP threads each wait for one
another ten times longer than they compute.
"""

import os
import signal

collect_ignore = ["bitmask.py"]  # registers a storage when it is imported, as doctests do

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
