"""Multi-layer perceptrons on plain pytrees.

Parameters: {"layers_0": {"kernel": [in, out], "bias": [out]}, "norm_0": {"scale": [out], "bias": [out]}, ...}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from segue.core.types import PyTree

LAYER_NORM_EPSILON = 1e-5  # what the papers' programs use (../spec/ssar.md 2.12); flax would take 1e-6

Initializer = Callable[[jax.Array, int, int], tuple[jax.Array, jax.Array]]  # key, fan in, fan out -> kernel, bias


def fan_in_uniform(key: jax.Array, fan_in: int, fan_out: int) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the default of the papers' framework."""
    bound = fan_in**-0.5
    kernel_key, bias_key = jax.random.split(key)
    kernel = jax.random.uniform(kernel_key, (fan_in, fan_out), minval=-bound, maxval=bound)
    return kernel, jax.random.uniform(bias_key, (fan_out,), minval=-bound, maxval=bound)


@dataclass(frozen=True)
class XavierUniform:
    """Kernel from U(-b, b) with b = gain sqrt(6 / (fan_in + fan_out)), zero bias."""

    gain: float = 1.0

    def __call__(self, key: jax.Array, fan_in: int, fan_out: int) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias."""
        bound = self.gain * (6 / (fan_in + fan_out)) ** 0.5
        return jax.random.uniform(key, (fan_in, fan_out), minval=-bound, maxval=bound), jnp.zeros(fan_out)


@dataclass(frozen=True)
class Orthogonal:
    """Orthogonal kernel times `gain`, zero bias."""

    gain: float

    def __call__(self, key: jax.Array, fan_in: int, fan_out: int) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias."""
        return jax.nn.initializers.orthogonal(self.gain)(key, (fan_in, fan_out)), jnp.zeros(fan_out)


@dataclass(frozen=True)
class BoundedUniform:
    """Kernel and bias from U(-bound, bound)."""

    bound: float

    def __call__(self, key: jax.Array, fan_in: int, fan_out: int) -> tuple[jax.Array, jax.Array]:
        """Kernel and bias."""
        kernel_key, bias_key = jax.random.split(key)
        kernel = jax.random.uniform(kernel_key, (fan_in, fan_out), minval=-self.bound, maxval=self.bound)
        return kernel, jax.random.uniform(bias_key, (fan_out,), minval=-self.bound, maxval=self.bound)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = LAYER_NORM_EPSILON) -> jax.Array:
    """Normalise `x [..., H]` over H with the biased variance.

    Means are products with a constant vector: XLA on a CPU vectorises those and not a sum along the last axis.
    """
    average = jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)
    centred = x - x @ average
    return centred * jax.lax.rsqrt(jnp.square(centred) @ average + epsilon) * scale + bias


@dataclass(frozen=True)
class MLP:
    """Affine layers with an activation between them; `sizes` names every width from input to output."""

    sizes: tuple[int, ...]
    layer_norm: bool = False  # between each hidden affine layer and its activation
    initializer: Initializer = fan_in_uniform
    last_initializer: Initializer | None = None  # of the last layer, where it is another
    activation: Literal["relu", "tanh"] = "relu"
    norm_epsilon: float = LAYER_NORM_EPSILON  # beside the variance, where there is a layer norm

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        params: dict[str, dict[str, jax.Array]] = {}
        last = len(self.sizes) - 2
        for i, layer_key in enumerate(jax.random.split(key, last + 1)):
            initializer = self.last_initializer if i == last and self.last_initializer else self.initializer
            kernel, bias = initializer(layer_key, self.sizes[i], self.sizes[i + 1])
            params[f"layers_{i}"] = {"kernel": kernel, "bias": bias}
            if self.layer_norm and i < last:
                width = self.sizes[i + 1]
                params[f"norm_{i}"] = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        return params

    def apply(self, params: PyTree, x: jax.Array, *dropout: jax.Array) -> jax.Array:
        """[..., sizes[0]] -> [..., sizes[-1]]; `dropout` are factors of the hidden layers' outputs [..., H], if any."""
        return self.after_first(params, x @ params["layers_0"]["kernel"], *dropout)

    def after_first(self, params: PyTree, x: jax.Array, *dropout: jax.Array) -> jax.Array:
        """As `apply`, from the product of the input with the first kernel: [..., sizes[1]] -> [..., sizes[-1]]."""
        last = len(self.sizes) - 2
        for i in range(last + 1):
            x = (x @ params[f"layers_{i}"]["kernel"] if i else x) + params[f"layers_{i}"]["bias"]
            if i < last:
                x = layer_norm(x, **params[f"norm_{i}"], epsilon=self.norm_epsilon) if self.layer_norm else x
                x = jax.nn.relu(x) if self.activation == "relu" else jnp.tanh(x)
                x = x * dropout[i] if dropout else x
        return x


def dropout_masks(key: jax.Array, rate: float, rows: int, hidden_sizes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """1 for each output [rows, H] of a hidden layer that dropout at `rate` keeps, 0 for the others; () at rate 0."""
    if rate == 0:
        return ()
    keys = jax.random.split(key, len(hidden_sizes))
    kept = (jax.random.bernoulli(k, 1 - rate, (rows, width)) for k, width in zip(keys, hidden_sizes, strict=True))
    return tuple(mask.astype(float) for mask in kept)


@dataclass(frozen=True)
class Critics:
    """Independent action-value functions Q_i(s, a). Their parameters are a tuple, one entry a critic:
    on a CPU separate products are faster than one batched product over stacked kernels."""

    observation_dim: int
    action_dim: int
    hidden_sizes: tuple[int, ...]
    layer_norm: bool = False
    count: int = 2
    initializer: Initializer = fan_in_uniform
    last_initializer: Initializer | None = None
    later_hidden_sizes: tuple[int, ...] | None = None  # of the critics after the first, where they are others
    norm_epsilon: float = LAYER_NORM_EPSILON  # beside the variance, where there is a layer norm

    def mlp(self, i: int) -> MLP:
        """The network of critic `i` (from 0)."""
        hidden = self.later_hidden_sizes if i > 0 and self.later_hidden_sizes else self.hidden_sizes
        sizes = (self.observation_dim + self.action_dim, *hidden, 1)
        return MLP(sizes, self.layer_norm, self.initializer, self.last_initializer, norm_epsilon=self.norm_epsilon)

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters of every critic."""
        return tuple(self.mlp(i).init(k) for i, k in enumerate(jax.random.split(key, self.count)))

    def apply(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[..., S], [..., A] -> [count, ...]."""
        x = jnp.concatenate([obs, action], axis=-1)
        return jnp.stack([self.mlp(i).apply(p, x)[..., 0] for i, p in enumerate(params)])

    def of_several(self, params: PyTree, obs: jax.Array, actions: jax.Array) -> jax.Array:
        """K actions at each observation: [B, S], [B, K, A] -> [count, B, K].

        The first layer is linear, so what it makes of an observation is computed once, not K times. The other layers
        see plain rows [B K, ...]: XLA on a CPU is faster with them than with three axes.
        """
        values = []
        for i, p in enumerate(params):
            of_obs, of_action = jnp.split(p["layers_0"]["kernel"], [self.observation_dim])
            hidden = (obs @ of_obs)[:, None] + actions @ of_action
            rows = hidden.reshape(-1, hidden.shape[-1])
            values.append(self.mlp(i).after_first(p, rows).reshape(actions.shape[:2]))
        return jnp.stack(values)

    def first(self, params: PyTree, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Q_1 alone: [..., S], [..., A] -> [...]."""
        return self.mlp(0).apply(params[0], jnp.concatenate([obs, action], axis=-1))[..., 0]
