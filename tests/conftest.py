"""Settings of the whole test run."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

# Before JAX starts: the tests compile hundreds of small programs and run each of them briefly, so most of their time
# would go into optimising code (the golden tests took half as long again that way). Floating-point rules stay the same.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten() -> Iterator[None]:
    """Each compiled program keeps several memory mappings, and a process that passes the system's limit of them
    (65,530 on Linux) dies in the compiler."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names the golden cases that were met: what worker processes print is not shown."""
    passed = [report.nodeid.rpartition("/")[2] for report in terminalreporter.stats.get("passed", [])]
    golden = [name.removeprefix("test_golden_") for name in passed if name.startswith("test_golden_") and "[" in name]
    if golden:
        terminalreporter.section("golden cases met")
        for name in sorted(golden):
            terminalreporter.line(name)
