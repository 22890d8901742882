"""Settings of the whole test run."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

# Before JAX starts: the tests compile hundreds of small programs and run each of them briefly, so most of their time
# would go into optimising code (the golden tests took half as long again that way). Floating-point rules stay the same.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
LAST_WITH_BOTH_EMITTERS = (0, 10)  # of jaxlib: later versions end at the flag

LONG = ("test_resume.py", "test_conformance.py", "test_sweep.py", "test_probes.py", "test_end_to_end.py")
MAPPINGS = 30_000  # half of what a process may have
TESTS_BETWEEN_COUNTS = 20
tests_since_count = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--former-emitter",
        action="store_true",
        help="compile by the emitter of kernels that XLA had before, where it is still there: takes half the time; the "
        "golden tests hold to the one that users have",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module starts JAX."""
    there = tuple(map(int, version("jaxlib").split(".")[:2])) <= LAST_WITH_BOTH_EMITTERS
    if config.getoption("former_emitter") and there:
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


def forget_programs() -> None:
    """Each compiled program keeps several memory mappings, and a process that passes the system's limit of them
    (65,530 on Linux) dies in the compiler."""
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten() -> Iterator[None]:
    yield
    forget_programs()


@pytest.fixture
def float64() -> Iterator[None]:
    """Arrays of 64 bits, as in the golden records."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def mappings_stay_few() -> Iterator[None]:
    """Within a long module, too."""
    global tests_since_count
    yield
    tests_since_count += 1
    if tests_since_count >= TESTS_BETWEEN_COUNTS:
        tests_since_count = 0
        mappings = Path("/proc/self/maps")
        if mappings.exists() and mappings.read_bytes().count(b"\n") > MAPPINGS:
            forget_programs()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes go first: one that began last would keep one process at work and the others idle."""
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Names the golden cases that were met: what worker processes print is not shown."""
    passed = [report.nodeid.rpartition("/")[2] for report in terminalreporter.stats.get("passed", [])]
    golden = [name.removeprefix("test_golden_") for name in passed if name.startswith("test_golden_") and "[" in name]
    if golden:
        terminalreporter.section("golden cases met")
        for name in sorted(golden):
            terminalreporter.line(name)
