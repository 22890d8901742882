"""A network with its parameters, target copy and optimizer state, as one pytree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from segue.core.types import Models, PyTree
from segue.errors import UserError


@dataclass(frozen=True)
class Adam:
    """Adam (b1 0.9, b2 0.999), after an optional clip of the gradient's global L2 norm.

    A value, not a closure: equal settings are equal objects, so that programs compile once.
    """

    learning_rate: float
    clip_norm: float | None = None
    epsilon: float = 1e-8  # outside the square root

    def transform(self) -> optax.GradientTransformation:
        """The optax transformation with these settings."""
        return optax.adam(self.learning_rate, eps=self.epsilon)

    def clipped(self, grads: PyTree) -> PyTree:
        """`grads`, scaled down to the largest norm."""
        return clipped_to(self.clip_norm, grads)


@dataclass(frozen=True)
class Lamb:
    """LAMB (You et al. 2019, arXiv:1904.00962; b1 0.9, b2 0.999), after an optional clip as Adam's.

    Adam's step plus `weight_decay` times the parameters; of each array, scaled to the array's own norm.
    """

    learning_rate: float
    clip_norm: float | None = None
    weight_decay: float = 0.0
    epsilon: float = 1e-6  # outside the square root

    def transform(self) -> optax.GradientTransformation:
        """The optax transformation with these settings."""
        return optax.lamb(self.learning_rate, eps=self.epsilon, weight_decay=self.weight_decay)

    def clipped(self, grads: PyTree) -> PyTree:
        """`grads`, scaled down to the largest norm."""
        return clipped_to(self.clip_norm, grads)


Optimizer = Adam | Lamb


def clipped_to(clip_norm: float | None, grads: PyTree) -> PyTree:
    """`grads`, scaled down to the largest norm; 1e-6 is the guard of the papers' framework against a zero norm."""
    if clip_norm is None:
        return grads
    norm = jnp.sqrt(sum(jnp.square(x).sum() for x in jax.tree.leaves(grads)))
    scale = jnp.minimum(1.0, clip_norm / (norm + 1e-6))
    return jax.tree.map(lambda x: scale * x, grads)


PART_BYTES = 1 << 19  # half of a core's second-level cache: a layer's activations and their gradient [measured]


def parts_for_cache(rows: int, floats_per_row: int) -> int:
    """Into how many equal parts to cut `rows` so that a layer's activations stay in the cache; 1 on accelerators."""
    parts = 1
    if jax.default_backend() == "cpu":
        while rows % (2 * parts) == 0 and rows // parts * floats_per_row * 4 > PART_BYTES:
            parts *= 2
    return parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """`net` has `init(key) -> params` and `apply(params, *inputs)`; `target` is None where a method keeps none."""

    params: PyTree
    target: PyTree
    opt_state: PyTree
    net: Any = field(metadata={"static": True})
    optimizer: Optimizer = field(metadata={"static": True})

    @classmethod
    def create(cls, net: Any, optimizer: Optimizer, key: jax.Array, target: bool = False) -> Model:
        """Fresh parameters from `net.init(key)`, a target equal to them if asked for, an empty optimizer state."""
        params = net.init(key)
        copy = jax.tree.map(jnp.copy, params) if target else None  # a donated state may not hold one buffer twice
        return cls(params, copy, optimizer.transform().init(params), net, optimizer)

    @classmethod
    def take(
        cls,
        models: Models,
        role: str,
        net: Any,
        optimizer: Optimizer,
        key: jax.Array,
        target: bool = False,
        keep_moments: bool = True,
    ) -> Model:
        """The model that an earlier phase made for `role`, going on under `optimizer`, or else a fresh one.

        A continued model that has no target, where one is wanted, gets a copy of its parameters.
        """
        if role not in models:
            return cls.create(net, optimizer, key, target)
        earlier: Model = models[role]
        if target and earlier.target is None:
            earlier = replace(earlier, target=jax.tree.map(jnp.copy, earlier.params))
        return earlier.continued(optimizer, keep_moments)

    def parameter(self, name: str, otherwise: str) -> jax.Array:
        """One of its own parameters. Raises UserError, saying `otherwise`, where its network has none of that name."""
        if name not in self.params:
            raise UserError(otherwise)
        found: jax.Array = self.params[name]
        return found

    def __call__(self, *inputs: jax.Array) -> Any:
        """The network with its current parameters."""
        return self.net.apply(self.params, *inputs)

    def slow(self, *inputs: jax.Array) -> Any:
        """The network with its target parameters."""
        return self.net.apply(self.target, *inputs)

    def step(self, grads: PyTree, rate: jax.Array | float = 1.0) -> Model:
        """One optimizer step along `grads`, a pytree like `params`; `rate` multiplies the learning rate."""
        grads = self.optimizer.clipped(grads)
        updates, opt_state = self.optimizer.transform().update(grads, self.opt_state, self.params)
        if not (isinstance(rate, float) and rate == 1.0):
            updates = jax.tree.map(lambda x: rate * x, updates)
        return replace(self, params=optax.apply_updates(self.params, updates), opt_state=opt_state)

    def descend(
        self, loss: Callable[[Model], tuple[jax.Array, Any]], rate: jax.Array | float = 1.0
    ) -> tuple[Model, jax.Array, Any]:
        """One step down `loss(model) -> (value [], anything)`; returns the new model, the value and the anything.

        `rate` multiplies the learning rate: schedules are the algorithm's, which counts its updates.
        """

        def of_params(params: PyTree) -> tuple[jax.Array, Any]:
            return loss(replace(self, params=params))

        (value, aux), grads = jax.value_and_grad(of_params, has_aux=True)(self.params)
        return self.step(grads, rate), value, aux

    def descend_in_parts(
        self, loss: Callable[[Model, PyTree], tuple[jax.Array, Any]], rows: PyTree, parts: int
    ) -> tuple[Model, jax.Array, Any]:
        """As `descend` with `loss(model, rows)`, but the rows (leaves [B, ...]) are cut into equal parts.

        The value and the anything must be means over rows: what is returned is their mean over the parts. The
        gradient is the same but for rounding; a part's activations fit a processor's cache where all rows' do not.
        """
        if parts == 1:
            return self.descend(lambda model: loss(model, rows))

        def of_params(params: PyTree, part: PyTree) -> tuple[jax.Array, Any]:
            return loss(replace(self, params=params), part)

        gradient = jax.value_and_grad(of_params, has_aux=True)
        cut = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), rows)
        shapes = jax.eval_shape(gradient, self.params, jax.tree.map(lambda x: x[0], cut))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, sums, gradient(self.params, part)), None

        sums, _ = jax.lax.scan(add, zeros, cut)
        (value, aux), grads = jax.tree.map(lambda x: x / parts, sums)
        return self.step(grads), value, aux

    def track(self, rate: float) -> Model:
        """Polyak: target <- (1 - rate) target + rate params."""
        target = jax.tree.map(lambda slow, fast: (1 - rate) * slow + rate * fast, self.target, self.params)
        return replace(self, target=target)

    def frozen(self) -> Model:
        """A copy of the network as it is now, which no optimizer will move."""
        return replace(self, params=jax.tree.map(jnp.copy, self.params), target=None, opt_state=())

    def settled(self) -> Model:
        """The target a hard copy of the parameters."""
        return replace(self, target=jax.tree.map(jnp.copy, self.params))

    def continued(self, optimizer: Optimizer, keep_moments: bool = True) -> Model:
        """The same model under another phase's optimizer settings; moments are kept where their shape is the same."""
        fresh = optimizer.transform().init(self.params)
        want: Any = jax.tree.structure(fresh)
        same = keep_moments and want == jax.tree.structure(self.opt_state)
        return replace(self, optimizer=optimizer, opt_state=self.opt_state if same else fresh)


@dataclass(frozen=True)
class Scalar:
    """One trained number, as a net."""

    value: float

    def init(self, key: jax.Array) -> jax.Array:
        """The start value."""
        return jnp.asarray(self.value)

    def apply(self, params: jax.Array) -> jax.Array:
        """The number itself."""
        return params
