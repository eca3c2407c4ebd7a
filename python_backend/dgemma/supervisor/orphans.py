"""Processes whose parents have ended: they become ours, and so does their burial.

Knows Linux's process tree; knows nothing of what they were.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """From now on orphans of our descendants become our children, as those of process 1 do."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def bury(but: Collection[int]) -> None:
    """Release the dead children but those of `but`, whose ends others ask for."""
    while True:
        try:
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if dead is None or dead.si_pid in but:
            return
        os.waitpid(dead.si_pid, os.WNOHANG)
