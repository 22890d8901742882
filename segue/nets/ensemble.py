"""Several agents' networks as one network of the usual form, and how models that were learned side by side become it.

Models of members carry a leading axis [N] on every leaf, as `segue.core.independent` keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from segue.core.model import Model
from segue.core.types import PyTree
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy


@dataclass(frozen=True)
class MomentMatchedPolicy:
    """One squashed Gaussian with the mean and the variance, before the tanh, of N members' equal mixture.

    mean = mean_i(m_i), variance = mean_i(s_i^2) + mean_i((m_i - mean)^2). Its parameters are a tuple of the members'.
    """

    member: TanhGaussianPolicy
    count: int
    kind = "tanh_gaussian"

    @property
    def observation_dim(self) -> int:
        """The members'."""
        return self.member.observation_dim

    @property
    def action_dim(self) -> int:
        """The members'."""
        return self.member.action_dim

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The members'."""
        return self.member.hidden_sizes

    def init(self, key: jax.Array) -> PyTree:
        """Fresh parameters of every member."""
        return tuple(self.member.init(k) for k in jax.random.split(key, self.count))

    def apply(self, params: PyTree, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., S] -> mean before the tanh [..., A], log-std [..., A]."""
        means, log_stds = (jnp.stack(x) for x in zip(*(self.member.apply(p, obs) for p in params), strict=True))
        mean = means.mean(0)
        # Not mean(m^2 + s^2) - mean^2, which rounding can leave below 0.
        variance = jnp.exp(2 * log_stds).mean(0) + jnp.square(means - mean).mean(0)
        return mean, 0.5 * jnp.log(variance)


def joined_policy(members: Model) -> Model:
    """The moment match of members' policies, for the next phase's optimizer to begin with."""
    params = _each(members.params)
    return Model(params, None, (), MomentMatchedPolicy(members.net, len(params)), members.optimizer)


def joined_critics(members: Model) -> Model:
    """Every member's critics in one row, a member's own beside each other; targets likewise."""
    net: Critics = members.net
    assert net.later_hidden_sizes is None, "critics of several sizes cannot stand in one row"
    params, target = (sum(_each(tree), ()) for tree in (members.params, members.target))
    return Model(params, target, (), replace(net, count=len(params)), members.optimizer)


def _each(stacked: PyTree) -> tuple[PyTree, ...]:
    """Leaves [N, ...] -> N trees."""
    count = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count))
