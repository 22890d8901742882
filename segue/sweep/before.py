"""What is done before a grid begins: its commands checked, its data made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable

from segue.errors import UserError
from segue.sweep.cells import Cell


def check(cells: Iterable[Cell], file: str, make_data: bool) -> None:
    """Raise UserError if a command of these cells is wrong or (if `make_data`) a dataset of theirs cannot be had.

    Built-in data is generated here, before several runs would want to do it at the same time.
    """
    lines = {(cell.label, cell.dataset): cell.line() for cell in cells}
    request = [[f"{file}: {label} on {dataset}", line] for (label, dataset), line in lines.items()]
    command = [sys.executable, "-m", "segue.sweep.check", str(os.getpid()), "data" if make_data else "commands"]
    done = subprocess.run(command, input=json.dumps(request), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        said = done.stdout.strip().splitlines()
        raise UserError(said[-1] if said else f"{file}: the check of its commands broke off (exit {done.returncode})")
