"""A policy that acts on a history: a causal transformer over the tokens of an episode's last steps.

A step t has three tokens, in this order: the return still wanted g_t, the observation s_t, the action a_t. A token
sees itself and what came before it, so that the action of step t is read off the token of s_t, which a_t does not
reach. Sequences begin at their first place: what fills the places after their end is seen by no real token, and its
outputs mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from segue.core.types import PyTree
from segue.nets.networks import fan_in_uniform, layer_norm

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0  # ends of the tanh map of the log-std (../spec/baselines.md 16)
TOKENS = 3  # of a step
KERNEL_STD = 0.02  # of the layers' first kernels, with zero biases [GPT-2's rule; the specification names none]
WIDENING = 4  # hidden units of a layer's network per unit of width [GPT-2]


@dataclass(frozen=True)
class SequencePolicy:
    """pi(a_t | g_t-K+1, s_t-K+1, a_t-K+1, ..., g_t, s_t), a diagonal Gaussian under a tanh; K steps at most.

    Layers with the norm before their two parts, as in GPT-2: x + attention(norm(x)), then x + MLP(norm(x)), whose
    activation is ReLU.
    """

    observation_dim: int
    action_dim: int
    width: int  # H, of every token
    num_layers: int
    num_heads: int  # divides H
    context_length: int  # K
    ordering: bool = False  # tokens also carry a trained vector of their step's place in the sequence
    kind = "sequence"

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        width, hidden = self.width, WIDENING * self.width
        layers, *keys = jax.random.split(key, 6)
        sizes = {"embed_return": 1, "embed_obs": self.observation_dim, "embed_action": self.action_dim}
        params: dict[str, PyTree] = {}
        for name, k, size in zip(sizes, keys, sizes.values(), strict=False):
            params[name] = _affine(*fan_in_uniform(k, size, width))
        params["head"] = _affine(*fan_in_uniform(keys[3], width, 2 * self.action_dim))
        params["norm_tokens"], params["norm_last"] = _norm(width), _norm(width)
        if self.ordering:
            params["places"] = KERNEL_STD * jax.random.normal(keys[4], (self.context_length, width))
        for i, layer_key in enumerate(jax.random.split(layers, self.num_layers)):
            of_layer = zip(
                ("attention_in", "attention_out", "mlp_in", "mlp_out"),
                jax.random.split(layer_key, 4),
                ((width, 3 * width), (width, width), (width, hidden), (hidden, width)),
                strict=True,
            )
            layer = {
                name: _affine(KERNEL_STD * jax.random.normal(k, shape), jnp.zeros(shape[1]))
                for name, k, shape in of_layer
            }
            params[f"layer_{i}"] = layer | {"norm_attention": _norm(width), "norm_mlp": _norm(width)}
        return params

    def apply(
        self, params: PyTree, returns: jax.Array, obs: jax.Array, action: jax.Array, *dropout: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[..., T], [..., T, S], [..., T, A] -> mean before the tanh and log-std [..., T, A]; T up to K.

        `dropout` are factors, if any, shaped as `dropout_masks` makes them.
        """
        factors = iter(dropout)

        def dropped(x: jax.Array) -> jax.Array:
            return x * next(factors) if dropout else x

        x = dropped(self._tokens(params, returns, obs, action))  # [..., 3 T, H]
        for i in range(self.num_layers):
            layer = params[f"layer_{i}"]
            x = x + dropped(self._attention(layer, layer_norm(x, **layer["norm_attention"]), dropped))
            hidden = jax.nn.relu(_applied(layer["mlp_in"], layer_norm(x, **layer["norm_mlp"])))
            x = x + dropped(_applied(layer["mlp_out"], hidden))
        of_obs = layer_norm(x, **params["norm_last"])[..., 1::TOKENS, :]  # [..., T, H]
        mean, raw = jnp.split(_applied(params["head"], of_obs), 2, axis=-1)
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (jnp.tanh(raw) + 1)

    def dropout_masks(self, key: jax.Array, rate: float, rows: int) -> tuple[jax.Array, ...]:
        """1 for what dropout at `rate` keeps of `rows` whole sequences, 0 for the rest; () at rate 0.

        Of the tokens, and in every layer of the attention's weights, its output and the network's output.
        """
        if rate == 0:
            return ()
        length = TOKENS * self.context_length
        tokens, weights = (rows, length, self.width), (rows, self.num_heads, length, length)
        shapes = [tokens, *[weights, tokens, tokens] * self.num_layers]
        keys = jax.random.split(key, len(shapes))
        return tuple(
            jax.random.bernoulli(k, 1 - rate, shape).astype(float) for k, shape in zip(keys, shapes, strict=True)
        )

    def _tokens(self, params: PyTree, returns: jax.Array, obs: jax.Array, action: jax.Array) -> jax.Array:
        """[..., 3 T, H], normalised."""
        embedded = [
            _applied(params["embed_return"], returns[..., None]),
            _applied(params["embed_obs"], obs),
            _applied(params["embed_action"], action),
        ]
        x = jnp.stack(embedded, axis=-2)  # [..., T, 3, H]
        if self.ordering:
            x = x + params["places"][: x.shape[-3], None]
        x = x.reshape(*x.shape[:-3], TOKENS * x.shape[-3], self.width)
        return layer_norm(x, **params["norm_tokens"])

    def _attention(self, layer: PyTree, x: jax.Array, dropped: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Each token's mean of the values of those that it sees: [..., N, H] -> [..., N, H]."""
        heads = _applied(layer["attention_in"], x).reshape(*x.shape[:-1], 3, self.num_heads, -1)
        query, key, value = (heads[..., i, :, :] for i in range(3))  # [..., N, heads, H / heads]
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) * query.shape[-1] ** -0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = dropped(jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1))
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)
        return _applied(layer["attention_out"], mixed)


def _affine(kernel: jax.Array, bias: jax.Array) -> PyTree:
    return {"kernel": kernel, "bias": bias}


def _norm(width: int) -> PyTree:
    return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}


def _applied(layer: PyTree, x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]
