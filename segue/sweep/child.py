"""`python -m segue.sweep.child SWEEP WORDS...`: `segue WORDS`, asked to stop should the sweep itself be killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def stop_with(parent: int) -> None:
    """Have SIGTERM sent to this process when the process `parent` ends, however that ends (where Linux is)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    stop_with(int(sys.argv[1]))
    sys.argv = ["segue", *sys.argv[2:]]  # the run's config.json keeps it as the command to make the run again
    from segue.cli.main import main

    sys.exit(main())
