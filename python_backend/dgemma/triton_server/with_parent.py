"""Runs a command that is asked to end (SIGTERM) as soon as its parent ends, however that happens.

Used as a script: `python with_parent.py PARENT_PID COMMAND [ARGUMENT…]`. The request survives exec,
so that the command itself needs to know nothing. (Linux: prctl(2), PR_SET_PDEATHSIG.)
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        sys.exit("the parent ended before its child began")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
