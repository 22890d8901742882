"""Who may import whom, and where programs are compiled: read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "segue"
METHODS = sorted(path.stem for path in (ROOT / "methods").glob("*.py") if path.stem != "__init__")
ALLOWED = ("segue.core.", "segue.nets.", "segue.losses")
COMPILED = {"core/learn.py", "core/replay.py", "selection.py", "critic_check.py"}  # but for the first no learning:
# the ring's store, the selecting critics over all rows, a critic over many actions


def imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of every import; name is "" for `import module`."""
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return found


def sources() -> dict[str, Path]:
    return {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*.py")}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_imports_the_core_and_at_most_one_function_of_another(method: str) -> None:
    others = []
    for module, name in imports(ROOT / "methods" / f"{method}.py"):
        if module.startswith("segue.methods"):
            others.append((module, name))
        elif module.startswith("segue"):
            assert f"{module}.".startswith(ALLOWED), f"methods/{method}.py imports {module}"
    assert len(others) <= 1, others
    for module, name in others:
        tree = ast.parse((ROOT / "methods" / f"{module.rpartition('.')[2]}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{name} is no function"


def test_a_method_does_not_sample_compile_save_or_step() -> None:
    """Equations and sockets only: nothing outside JAX, NumPy-like numerics and the standard library's basics."""
    known = {"__future__", "collections", "dataclasses", "math", "typing", "jax", "optax", "segue"}
    for method in METHODS:
        roots = {module.partition(".")[0] for module, _ in imports(ROOT / "methods" / f"{method}.py")}
        assert roots <= known, f"methods/{method}.py imports {roots - known}"


def test_only_recipes_and_the_selection_know_methods() -> None:
    users = {
        name
        for name, path in sources().items()
        if not name.startswith(("methods/", "recipes/"))
        and any(module.startswith("segue.methods") for module, _ in imports(path))
    }
    assert users == {"selection.py", "offline_evaluation.py"}


def test_the_core_knows_nothing_of_what_is_around_it() -> None:
    around = ("segue.core", "segue.errors")
    for name, path in sources().items():
        if name.startswith(("core/", "nets/")) or name == "losses.py":
            allowed = around if name.startswith("core/") else (*around, "segue.nets")
            inner = {module for module, _ in imports(path) if module.startswith("segue")}
            assert all(module.startswith(allowed) for module in inner), f"{name} imports {inner}"


def test_programs_are_compiled_in_few_places() -> None:
    """`jax.jit`, `pmap` or a name imported from jax that compiles."""
    found = set()
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text())):
            of_torch = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch"
            if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit", "pmap") and not of_torch:
                found.add(name)
        assert not {word for module, word in imports(path) if module.startswith("jax")} & {"jit", "pjit", "pmap"}, name
    assert found == COMPILED
