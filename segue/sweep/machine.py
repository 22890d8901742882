"""What the machine has: cores, and memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

GB = 1e9
MEMINFO = Path("/proc/meminfo")
CONTAINERS = (  # folder, files with limit and use of a container's memory, and what of it is cache: cgroups 2, then 1
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def places(jobs: int, cores_per_job: int, cores: list[int]) -> list[list[int]]:
    """For each of `jobs` its cores: its own as long as there are enough."""
    return [
        sorted({cores[(job * cores_per_job + i) % len(cores)] for i in range(cores_per_job)}) for job in range(jobs)
    ]


def share(jobs: int | None, cores_per_job: int | None, cores: int, memory: float) -> tuple[int, int]:
    """(jobs, cores per job) from what the user says, the cores, and how many jobs the `memory` is enough for."""
    wanted = jobs or max(1, cores // (cores_per_job or 1))
    fitting = max(1, int(min(wanted, memory)))
    return fitting, cores_per_job or max(1, cores // fitting)


def free_memory() -> float:
    """Bytes that new processes can have, in this container if it has a limit; infinite where that is not known."""
    free = _field(MEMINFO, "MemAvailable:") * 1024
    for folder, limit_file, use_file, cache in CONTAINERS:
        limit, use = _number(folder / limit_file), _number(folder / use_file)
        if limit is not None and use is not None:
            free = min(free, limit - use + _field(folder / "memory.stat", cache, 0.0))
    return free


def resident(process: int) -> float:
    """Bytes of memory that a process has taken; 0 where that is not known."""
    return _field(Path(f"/proc/{process}/status"), "VmRSS:", 0.0) * 1024


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # ValueError: "max"
        return None


def _field(path: Path, name: str, otherwise: float = float("inf")) -> float:
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] == [name]:
                return float(words[1])
        return otherwise
    except OSError:
        return otherwise
