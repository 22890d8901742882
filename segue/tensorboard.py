"""A run's scalars for TensorBoard, beside `metrics.jsonl`; tensorboardX is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segue.errors import UserError

NOT_SCALARS = {"step", "seed", "episodes"}


class TensorBoard:
    """Writes the numbers of train and evaluation lines to a folder, as KIND/NAME/seed_K."""

    def __init__(self, folder: Path, next_step: int):
        """`next_step`: what an interrupted process wrote from there on is taken back.

        Raises UserError if tensorboardX is missing.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                '--tensorboard needs tensorboardX; install it with: pip install "segue[tensorboard]"'
            ) from None
        self.writer = SummaryWriter(str(folder), purge_step=next_step)

    def write(self, line: dict[str, Any], step: int) -> None:
        """One line of `metrics.jsonl`; `step` counts through all phases."""
        for name, value in line.items():
            is_number = isinstance(value, int | float | np.number | np.ndarray) and np.ndim(value) == 0
            if is_number and name not in NOT_SCALARS:
                self.writer.add_scalar(f"{line['kind']}/{name}/seed_{line['seed']}", float(value), step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
