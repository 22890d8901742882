"""The matrix products of a training update, read from the program itself.

An update is traced, dead code removed, nested programs unfolded, equal equations made one (as XLA does); what remains
are the products that the update really makes, whoever wrote it. Three things are not counted as they stand:

- A product with a matrix of one repeated number is a sum in disguise (layer norm's means): left out.
- Of a product that is only read in part (the gradient with respect to the action, out of that with respect to
  observation and action together) the part counts.
- Of a branch on data the dearer side counts.

What is no matrix product (biases, norms, losses, optimizers, random numbers) is not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal as Constant
from jax.interpreters import partial_eval

from segue.core.learn import Program, one_update
from segue.core.replay import Memory
from segue.core.types import PyTree

Role = Literal["forward", "weight_gradient", "input_gradient"]

# Which axes of the stored operands are contracted. With a layer y [m, n] = x [m, k] W [k, n] these are the forms in
# which differentiation leaves them: x W contracts (1, 0), xᵀ dy (0, 0) and dy Wᵀ (1, 1).
CONTRACTED: dict[Role, tuple[int, int]] = {"forward": (1, 0), "weight_gradient": (0, 0), "input_gradient": (1, 1)}
ROLES: dict[tuple[int, int], Role] = {axes: role for role, axes in CONTRACTED.items()}

SHAPE_ONLY = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "transpose")


@dataclass(frozen=True)
class Product:
    """An [m, k] by [k, n] product that an update makes `count` times, each time `stack` of them in one batched call."""

    m: int
    k: int
    n: int
    role: Role = "forward"
    count: float = 1.0
    stack: int = 1

    @property
    def flop(self) -> float:
        """Multiplications and additions in one update."""
        return 2.0 * self.stack * self.m * self.k * self.n * self.count


def merged(products: Iterable[Product]) -> list[Product]:
    """Equal products as one, their counts added, so that each is measured once."""
    counts: dict[Product, float] = defaultdict(float)
    for p in products:
        counts[replace(p, count=1.0)] += p.count
    return [replace(p, count=count) for p, count in counts.items()]


def products_of(program: Program, state: PyTree, memory: Memory) -> list[Product]:
    """The products of one update, on average over a round whose last update is the policy step.

    State and memory are one seed's; shapes suffice.
    """
    interval = program.algorithm.policy_update_interval

    def of_steps(policy_step: bool, steps: int) -> list[Product]:
        update = partial(one_update, program, policy_step)
        found = products_in(update, state, memory, jax.random.key(0), jnp.int32(0))
        return [replace(p, count=p.count * steps / interval) for p in found]

    return merged((of_steps(False, interval - 1) if interval > 1 else []) + of_steps(True, 1))


def products_in(f: Callable[..., Any], *arguments: Any) -> list[Product]:
    """The products that `f(*arguments)` makes; the arguments may be shapes."""
    closed = jax.make_jaxpr(f)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    trace = _Trace()
    inputs = [_Value() for _ in jaxpr.invars]
    for value in trace.unfold(jaxpr, closed.consts, inputs, 1):
        value.read_whole = True
    return merged(trace.products())


class _Value:
    """What one variable holds, known by identity."""

    def __init__(self, repeats_one_number: bool = False) -> None:
        self.repeats_one_number = repeats_one_number
        self.readers: list[_Operation] = []
        self.read_whole = False


@dataclass(frozen=True, eq=False)
class _Operation:
    """An equation that is no nested program, executed `count` times."""

    equation: Any
    inputs: list[_Value]
    outputs: list[_Value]
    count: int


def _number_of_constants(scan: dict[str, Any]) -> int:
    """How many of a scan's inputs are the same at every turn; JAX 0.12 tells it in another way than before."""
    return scan["num_consts"] if "num_consts" in scan else len(scan["ft_in"].unpack()[0])


class _Trace:
    """The equations in order of execution, nested programs unfolded into it, equal ones made one."""

    def __init__(self) -> None:
        self.operations: dict[Any, _Operation] = {}
        self.constants: dict[Any, _Value] = {}

    def unfold(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Value], count: int) -> list[_Value]:
        """Add the equations of `jaxpr`, executed `count` times on `inputs`; returns its outputs."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= zip(jaxpr.constvars, map(self.constant, consts), strict=True)

        def read(atom: Any) -> _Value:
            return self.constant(atom.val) if isinstance(atom, Constant) else values[atom]

        for equation in jaxpr.eqns:
            outputs = self.execute(equation, [read(atom) for atom in equation.invars], count)
            values |= zip(equation.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def constant(self, number: Any) -> _Value:
        """The value of a number or array in the program."""
        if not jnp.issubdtype(jnp.result_type(number), jnp.number):
            return _Value()
        array = np.asarray(number)
        key = (array.dtype.name, array.shape, array.tobytes())
        return self.constants.setdefault(key, _Value(repeats_one_number=bool((array == array.flat[0]).all())))

    def execute(self, equation: Any, inputs: list[_Value], count: int) -> list[_Value]:
        """Add one equation, or what it calls; returns its outputs."""
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            closed, fixed = params["jaxpr"], _number_of_constants(params)
            turning = [_Value() for _ in inputs[fixed:]]
            ends = self.unfold(closed.jaxpr, closed.consts, inputs[:fixed] + turning, count * params["length"])
            for value in inputs[fixed:] + ends:
                value.read_whole = True
            return [_Value() for _ in equation.outvars]
        if name == "cond":
            dearest = max(params["branches"], key=_flop_of)
            return self.unfold(dearest.jaxpr, dearest.consts, inputs[1:], count)
        if name == "while":
            if any(_flop_of(params[part]) for part in ("cond_jaxpr", "body_jaxpr")):
                raise ValueError("a while loop multiplies matrices: how often cannot be read from the program")
            for value in inputs:
                value.read_whole = True
            return [_Value() for _ in equation.outvars]
        called = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
        if called is not None:
            return self.unfold(getattr(called, "jaxpr", called), getattr(called, "consts", ()), inputs, count)
        key = (name, str(params), tuple(map(id, inputs)), count)
        if key not in self.operations:
            repeats = name in SHAPE_ONLY and inputs[0].repeats_one_number
            operation = _Operation(equation, inputs, [_Value(repeats) for _ in equation.outvars], count)
            self.operations[key] = operation
            for value in inputs:
                value.readers.append(operation)
        return self.operations[key].outputs

    def products(self) -> list[Product]:
        """Those of all equations so far."""
        multiplications = [o for o in self.operations.values() if o.equation.primitive.name == "dot_general"]
        return [_product(o) for o in multiplications if not any(value.repeats_one_number for value in o.inputs)]


def _flop_of(closed: Any) -> float:
    """Of one execution of a nested program by itself."""
    trace = _Trace()
    for value in trace.unfold(closed.jaxpr, closed.consts, [_Value() for _ in closed.jaxpr.invars], 1):
        value.read_whole = True
    return sum(p.flop for p in trace.products())


def _product(operation: _Operation) -> Product:
    """The form of one `dot_general`: axes of a kind are one axis."""
    left, right = (atom.aval.shape for atom in operation.equation.invars)
    (left_sum, right_sum), (stacked, right_stacked) = operation.equation.params["dimension_numbers"]
    left_free = tuple(i for i in range(len(left)) if i not in (*left_sum, *stacked))
    right_free = tuple(i for i in range(len(right)) if i not in (*right_sum, *right_stacked))
    # Stacked axes, the left operand's, the right one's.
    shape = _extent(_part_read(operation.outputs[0], operation.equation.outvars[0].aval.shape))
    first_right = len(stacked) + len(left_free)
    stack, m, n = prod(shape[: len(stacked)]), prod(shape[len(stacked) : first_right]), prod(shape[first_right:])
    k = prod(left[i] for i in left_sum)
    # A matrix that is stored with its summed axes before the free ones is contracted over axis 0.
    axes = (int(left_sum > left_free), int(right_sum > right_free))
    readers = [reader.equation.primitive.name for reader in operation.outputs[0].readers]
    if axes == (0, 1) or (axes == (0, 0) and readers == ["transpose"]):  # xᵀ y read as (yᵀ x)ᵀ
        m, n, axes = n, m, (axes[1], axes[0])
    return Product(m, k, n, ROLES[axes], operation.count, stack)


def _extent(part: tuple[Any, Any]) -> tuple[int, ...]:
    """Of a part, in each axis."""
    start, limit = part
    return tuple(int(x) for x in limit - start)


def _part_read(value: _Value, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """First and last (exclusive) indices of what is read of a value."""
    if value.read_whole or not value.readers:
        return np.zeros(len(shape), int), np.array(shape)
    parts = [part for reader in value.readers for part in _parts(reader, shape)]
    starts, limits = zip(*parts, strict=True)
    return np.min(starts, axis=0), np.max(limits, axis=0)


def _parts(reader: _Operation, shape: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
    """The parts that one operation reads of a value with this shape."""
    name, params = reader.equation.primitive.name, reader.equation.params
    if name == "slice":
        yield params["start_indices"], params["limit_indices"]
    elif name == "split":
        ends = np.cumsum(params["sizes"])
        for part, size, end in zip(reader.outputs, params["sizes"], ends, strict=True):
            if part.readers or part.read_whole:
                start, limit = np.zeros(len(shape), int), np.array(shape)
                start[params["axis"]], limit[params["axis"]] = end - size, end
                yield start, limit
    elif name == "add_any":  # gradients from several sides, added
        yield _part_read(reader.outputs[0], shape)
    else:
        yield np.zeros(len(shape), int), np.array(shape)
