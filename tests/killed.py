"""`python -m tests.killed MODULE:FUNCTION N ARGUMENTS...`: `segue ARGUMENTS`, killed in its Nth call of FUNCTION.

With a negative N it hangs there instead, as in a compilation that takes long.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from importlib import import_module
from typing import Any

from segue.cli.main import choose_threads, main


def install(where: str, calls: int) -> None:
    """Replace the function by one that ends the process as `kill -9` does."""
    module, _, path = where.partition(":")
    owner: Any = import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    function, made = getattr(owner, name), [0]

    def deadly(*arguments: Any, **named: Any) -> Any:
        made[0] += 1
        if made[0] == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        if made[0] == -calls:
            time.sleep(60)
        return function(*arguments, **named)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    choose_threads()
    install(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
