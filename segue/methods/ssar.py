"""SSAR: selective state-adaptive regularization (ICML 2025, arXiv:2505.19923). Equation numbers of ../spec/ssar.md.

    beta(s) = 1.5 beta_0 sigmoid(z(s))                                               (S1)
    w       = slack(n), what the host says of its data actions                       (S4; S13)
    L_beta  = E [ sg[w] beta(s) m ]          m = 1 on the selected sub-dataset       (S5)
    n      <- min(n_end, n + (n_end - n_start) / 10) every 50,000 updates, until the trusted rows' mean w > 0:
              then n is frozen for good                                              (S15)
    online:   beta is frozen, and its strength annealed by f(N)                      (Eq. 15 of the paper)

`slack` is the whole interface to the host algorithm (TD3+BC here; CQL passes log-densities).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from segue.core.coefficient import Coefficient
from segue.core.model import Adam, Model
from segue.core.types import Batch, Metrics, PyTree, Spec
from segue.nets.networks import MLP, XavierUniform

BETA_MAX_FACTOR = 1.5  # beta lies in (0, 1.5 beta_0)
OUTPUT_BIAS = 0.6931  # about ln 2: 1.5 sigmoid(0.6931) is 1, so beta starts near beta_0
GRADIENT_CLIP = 0.5  # global L2 norm
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class CoefficientNet:
    """z(s): an MLP with Xavier kernels, zero hidden biases and the output bias above; its output is beta(s) (S1)."""

    observation_dim: int
    hidden_sizes: tuple[int, ...]
    scale: float  # beta_0

    @property
    def mlp(self) -> MLP:
        """The network under the sigmoid."""
        return MLP((self.observation_dim, *self.hidden_sizes, 1), initializer=XavierUniform())

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters."""
        params = self.mlp.init(key)
        last = f"layers_{len(self.hidden_sizes)}"
        return params | {last: {"kernel": params[last]["kernel"], "bias": jnp.full(1, OUTPUT_BIAS)}}

    def apply(self, params: PyTree, obs: jax.Array) -> jax.Array:
        """[..., S] -> beta(s) [...]."""
        return BETA_MAX_FACTOR * self.scale * jax.nn.sigmoid(self.mlp.apply(params, obs)[..., 0])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CoefficientState:
    """phi, the threshold's n and whether it is frozen, and when an online phase began."""

    net: Model
    n: jax.Array  # [] standard deviations
    frozen: jax.Array  # [] bool
    online_origin: jax.Array  # [] int32 updates made before the online phase


@dataclass(frozen=True)
class StateAdaptive(Coefficient):
    """The learned coefficient, for an offline phase."""

    coefficient_hidden_sizes: tuple[int, ...] = (512, 512, 512)  # of the coefficient network [ssar.md 2.3]
    coefficient_learning_rate: float = 3e-8  # Adam, after clipping to norm 0.5 [ssar.md B27; 1e-8 on CQL]
    n_start: float = 1.0  # threshold at the start, in standard deviations [paper, Sec. 4]
    n_end: float = 3.0  # its cap [paper, Sec. 4]
    n_num_increments: int = 10  # steps from n_start to n_end [released program, ssar.md B2]
    threshold_update_interval: int = 50_000  # updates between checks of the stopping rule [ssar.md 2.6]
    mask_coefficient_loss: bool = True  # learn the coefficient on the selected sub-dataset only [paper, Eq. 9]
    mask_regularizer: bool = False  # regularize the selected sub-dataset only [paper, Eq. 14; presets differ]

    @property
    def columns(self) -> tuple[str, ...]:
        """The trust flags of the selected sub-dataset."""
        return ("trust",)

    def init(self, spec: Spec, key: jax.Array, beta_0: float) -> CoefficientState:
        """A fresh phi, n = n_start."""
        net = CoefficientNet(spec.observation_dim, self.coefficient_hidden_sizes, beta_0)
        model = Model.create(net, Adam(self.coefficient_learning_rate, GRADIENT_CLIP), key)
        return CoefficientState(model, jnp.asarray(self.n_start), jnp.asarray(False), jnp.int32(0))

    def __call__(self, c: CoefficientState, batch: Batch, updates: jax.Array) -> jax.Array:
        """beta(s) [B], zero on rows outside the sub-dataset if the regularizer is masked (2.7)."""
        beta = jax.lax.stop_gradient(c.net(batch.obs))
        return beta * batch.extras["trust"] if self.mask_regularizer else beta

    def update(
        self, c: CoefficientState, batch: Batch, updates: jax.Array, slack: Callable[[jax.Array], jax.Array]
    ) -> tuple[CoefficientState, Metrics]:
        """One step of phi with the weights of the current n (S5), and the stopping rule (S15)."""
        w = jax.lax.stop_gradient(slack(c.n))  # [B]
        mask = batch.extras["trust"] if self.mask_coefficient_loss else jnp.ones_like(w)

        def loss(params: PyTree) -> jax.Array:
            return (w * mask * c.net.net.apply(params, batch.obs)).mean()

        value, grads = jax.value_and_grad(loss)(c.net.params)
        check = (updates % self.threshold_update_interval == 0) & ~c.frozen
        covered = (w * mask).sum() > 0  # the sign of the trusted rows' mean; without any, n grows
        grown = jnp.minimum(self.n_end, c.n + (self.n_end - self.n_start) / self.n_num_increments)
        n = jnp.where(check & ~covered, grown, c.n)
        metrics = {
            "coefficient_loss": value,
            "coefficient_grad_norm": optax.tree.norm(grads),
            "threshold_gap_mean": w.mean(),
            "num_outside_threshold": (w < 0).sum().astype(w.dtype),
            "threshold_n": n,
        }
        return replace(c, net=c.net.step(grads), n=n, frozen=c.frozen | (check & covered)), metrics

    def begin_online(self, c: CoefficientState, updates: jax.Array) -> CoefficientState:
        """Remembers when the online phase began: N counts from there."""
        return replace(c, online_origin=updates)

    def diagnose(self, c: CoefficientState, batch: Batch, updates: jax.Array) -> Metrics:
        """Quantiles of the coefficient over states, its mean on and off the sub-dataset, n."""
        beta, trust = c.net(batch.obs), batch.extras["trust"]

        def mean_where(mask: jax.Array) -> jax.Array:
            return (beta * mask).sum() / jnp.maximum(mask.sum(), 1)

        return {
            "coefficient_quantiles": jnp.quantile(beta, jnp.asarray(QUANTILES)),
            "coefficient_mean": beta.mean(),
            "coefficient_min": beta.min(),
            "coefficient_max": beta.max(),
            "coefficient_trusted_mean": mean_where(trust),
            "coefficient_untrusted_mean": mean_where(1 - trust),
            "threshold_n": c.n,
        }


@dataclass(frozen=True)
class Annealed(Coefficient):
    """A learned coefficient online: phi and n frozen, its strength times f(N) after N online updates.

    Linear: f(N) = 1 - N / steps. Cosine: f(N) = cos(pi/2 min(N / steps, 1)), on CQL (ssar.md B13).
    """

    offline: StateAdaptive
    anneal_steps: int | None = 400_000  # None: no annealing
    floor_at_zero: bool = True  # the paper's reading; the released program goes on below zero (ssar.md A2)
    shape: Literal["linear", "cosine"] = "linear"

    @property
    def columns(self) -> tuple[str, ...]:
        """The trust flags."""
        return self.offline.columns

    def init(self, spec: Spec, key: jax.Array, beta_0: float) -> CoefficientState:
        """As offline: a phase without a learned coefficient before it starts near beta_0."""
        return self.offline.init(spec, key, beta_0)

    def factor(self, c: CoefficientState, updates: jax.Array) -> jax.Array | float:
        """f(N) [], N = 1 on the first online update (2.9.5)."""
        if self.anneal_steps is None:
            return 1.0
        online_updates = (updates - c.online_origin).astype(c.n.dtype)
        if self.shape == "cosine":
            return jnp.cos(jnp.pi / 2 * jnp.minimum(online_updates / self.anneal_steps, 1))
        f = 1 - online_updates / self.anneal_steps
        return jnp.maximum(f, 0) if self.floor_at_zero else f

    def __call__(self, c: CoefficientState, batch: Batch, updates: jax.Array) -> jax.Array:
        """f(N) beta(s) [B], masked as offline."""
        return self.offline(c, batch, updates) * self.factor(c, updates)

    def update(
        self, c: CoefficientState, batch: Batch, updates: jax.Array, slack: Callable[[jax.Array], jax.Array]
    ) -> tuple[CoefficientState, Metrics]:
        """Nothing is learned online."""
        return c, {}

    def begin_online(self, c: CoefficientState, updates: jax.Array) -> CoefficientState:
        """Remembers when the online phase began."""
        return self.offline.begin_online(c, updates)

    def diagnose(self, c: CoefficientState, batch: Batch, updates: jax.Array) -> Metrics:
        """As offline, and the annealing factor."""
        factor = jnp.asarray(self.factor(c, updates))
        return self.offline.diagnose(c, batch, updates) | {"anneal_factor": factor}
