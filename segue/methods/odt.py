"""Online Decision Transformer (Zheng, Zhang, Grover 2022, arXiv:2202.05607; ../spec/baselines.md 16).

A policy that acts on the last K steps and on the return still wanted, g_t; it learns from whole stretches of episodes,
with the returns that they had: g_t = r_t + r_t+1 + ... to the episode's end, undiscounted ("hindsight").

    L_pi     = -E log pi(a_t | g_t-K+1..t, s_t-K+1..t, a_t-K+1..t-1) - sg lambda H       E over true steps, no padding
    L_lambda = lambda sg( H - H_min )                in log lambda: holds H >= H_min = -A, for every action by itself
    H        = -E log pi(a~_t | ...), a~_t ~ pi      one sample a step
    acting:    g_0 = G at an episode's start, then g_t+1 = g_t - r_t; the squashed mean while evaluating, a sample of
               pi with a higher G online

pi is a tanh-Gaussian whose log-std a tanh maps into [-5, 2]; the log-density of a data action is that of the action
clipped to +-(1 - 1e-6). The optimizer is LAMB, its learning rate rising linearly at first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from segue.core.algorithm import Algorithm
from segue.core.model import Adam, Lamb, Model, Scalar
from segue.core.reference import NO_SCORE, chosen
from segue.core.types import Batch, Metrics, Models, Spec
from segue.nets.policies import act_tanh_gaussian, sample_tanh_gaussian, tanh_gaussian_log_density
from segue.nets.transformer import SequencePolicy

ACTION_LIMIT = 1 - 1e-6  # beyond it the data's actions count as this: the atanh of 1 is infinite (baselines.md 16)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything that learning changes."""

    actor: Model
    temperature: Model  # log lambda
    best_return: jax.Array  # [] highest return of an episode that began in a batch; NO_SCORE before the first
    updates: jax.Array  # [] int32


class Draws(NamedTuple):
    """Random numbers of one update."""

    policy_noise: jax.Array  # [B, K, A] standard normal
    dropout: tuple[jax.Array, ...]  # 1 for what is kept, as the network's `dropout_masks`; () without


class History(NamedTuple):
    """What a policy remembers of the episode under way: its last C steps, at the first places of each array."""

    obs: jax.Array  # [C, S]
    action: jax.Array  # [C, A] zero where none has been chosen yet
    earned: jax.Array  # [C] rewards of the episode before each step
    total: jax.Array  # [] rewards of the episode before its latest step
    length: jax.Array  # [] int32 how many places are filled


@dataclass(frozen=True)
class ODT(Algorithm[State]):
    """A decision transformer with a stochastic policy, offline and online by the same losses."""

    target_return: float | None = None  # G of evaluation; None: the data's best [ours; baselines.md 16 has it by task]
    exploration_return_factor: float = 2.0  # G online is G + (this - 1) |G| [baselines.md 16, where G is positive]
    return_scale: float = 0.001  # what the network sees is this times g [baselines.md 16; 1 on AntMaze]
    context_length: int = 20  # K, in steps [baselines.md 16]
    acting_context_length: int = 5  # C, steps remembered while acting, this one included [baselines.md 16]
    width: int = 512  # of every token [baselines.md 16; 1,024 on AntMaze]
    num_layers: int = 4  # of the transformer [baselines.md 16]
    num_heads: int = 4  # of attention in each layer [baselines.md 16]
    ordering: bool = False  # tokens know their place in the sequence [baselines.md 16; on for Hopper and AntMaze]
    actor_dropout: float = 0.1  # rate in the actor's loss alone [baselines.md 16]
    batch_size: int = 256  # sequences per update [baselines.md 16]
    discount: float = 0.99  # of estimates of the policy's value; its own returns are undiscounted [the papers']
    actor_learning_rate: float = 1e-4  # LAMB [baselines.md 16]
    weight_decay: float = 5e-4  # of LAMB [baselines.md 16]
    learning_rate_warmup_updates: int = 10_000  # in which the learning rate rises linearly from 0 [baselines.md 16]
    actor_gradient_clip: float | None = 0.25  # largest global norm of the actor's gradient [baselines.md 16]
    initial_temperature: float = 0.1  # lambda at the start [baselines.md 16]
    temperature_learning_rate: float = 1e-4  # Adam on log lambda [baselines.md 16]
    target_entropy_per_dimension: float = -1.0  # H_min = this times A [baselines.md 16]
    policy_update_interval: int = 1  # there is no critic [every update is a policy step]

    columns = ("return_to_go", "time_step", "present")
    gives = ("actor", "temperature", "best_return", "updates")
    policy_kind = "sequence"
    undiscounted = True

    @property
    def window(self) -> int:
        """Its batches hold stretches of K steps."""
        return self.context_length

    def policy(self, spec: Spec) -> SequencePolicy:
        """The actor's network."""
        sizes = (self.width, self.num_layers, self.num_heads, self.context_length)
        return SequencePolicy(*spec, *sizes, ordering=self.ordering)

    def init(self, models: Models, spec: Spec, key: jax.Array) -> State:
        """A fresh or continued actor and temperature."""
        lamb = Lamb(self.actor_learning_rate, self.actor_gradient_clip, self.weight_decay)
        adam, log_lambda = Adam(self.temperature_learning_rate), Scalar(math.log(self.initial_temperature))
        return State(
            actor=Model.take(models, "actor", self.policy(spec), lamb, key),
            temperature=Model.take(models, "temperature", log_lambda, adam, key),
            best_return=models.get("best_return", jnp.asarray(NO_SCORE)),
            updates=models.get("updates", jnp.int32(0)),
        )

    def draw(self, key: jax.Array, spec: Spec) -> Draws:
        """Noise of the sampled actions, and what drops out."""
        noise_key, dropout_key = jax.random.split(key)
        shape = (self.batch_size, self.context_length, spec.action_dim)
        masks = self.policy(spec).dropout_masks(dropout_key, self.actor_dropout, self.batch_size)
        return Draws(jax.random.normal(noise_key, shape), masks)

    def update(self, s: State, batch: Batch, draws: Draws, policy_step: bool) -> tuple[State, Metrics]:
        """The actor, then lambda by the entropy from before that step. Leaves of `batch` are [B, K, ...].

        Steps of an episode that has not ended, whose return nobody knows, count as padding.
        """
        known = batch.extras["present"] * jnp.isfinite(batch.extras["return_to_go"])  # [B, K] 1 for a true step
        to_go = jnp.where(known > 0, batch.extras["return_to_go"], 0.0)  # [B, K]
        lam = jnp.exp(s.temperature())  # []
        dropout = [mask / (1 - self.actor_dropout) for mask in draws.dropout]

        def mean_of_known(x: jax.Array) -> jax.Array:
            assert x.shape == known.shape, (x.shape, known.shape)
            return (known * x).sum() / jnp.maximum(known.sum(), 1.0)

        def loss(actor: Model) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            mean, log_std = actor(self.return_scale * to_go, batch.obs, batch.action, *dropout)  # [B, K, A]
            inside = jnp.clip(batch.action, -ACTION_LIMIT, ACTION_LIMIT)
            log_density = tanh_gaussian_log_density(jnp.arctanh(inside), mean, log_std).sum(-1)  # [B, K]
            likelihood = mean_of_known(log_density)
            entropy = -mean_of_known(sample_tanh_gaussian(mean, log_std, draws.policy_noise)[1])
            return -likelihood - lam * entropy, (likelihood, entropy)

        rate = jnp.minimum((s.updates + 1) / self.learning_rate_warmup_updates, 1.0)  # []
        actor, value, (likelihood, entropy) = s.actor.descend(loss, rate.astype(lam.dtype))
        slack = entropy - self.target_entropy_per_dimension * batch.action.shape[-1]  # [] H - H_min
        temperature, _, _ = s.temperature.descend(lambda log_lambda: (jnp.exp(log_lambda()) * slack, None))
        begins = (known[:, 0] > 0) & (batch.extras["time_step"][:, 0] == 0)  # [B]
        best = jnp.maximum(s.best_return, jnp.where(begins, to_go[:, 0], NO_SCORE).max())
        learned = State(actor, temperature, best, s.updates)
        # A batch without a true step teaches nothing: LAMB would only shrink the weights.
        learned = chosen(known.any(), learned, s)
        metrics = {"actor_loss": value, "log_likelihood": likelihood, "entropy": entropy, "temperature": lam}
        return replace(learned, updates=s.updates + 1), metrics | {"steps_per_sequence": known.sum(-1).mean()}

    def wanted_return(self, s: State, explore: bool) -> jax.Array:
        """G, the return that acting asks for at an episode's start []."""
        wanted = jnp.where(s.best_return > NO_SCORE, s.best_return, 0.0)
        if self.target_return is not None:
            wanted = jnp.full_like(wanted, self.target_return)
        return wanted + (self.exploration_return_factor - 1) * jnp.abs(wanted) if explore else wanted

    def context(self, spec: Spec) -> History:
        """No step yet."""
        length, zeros = self.acting_context_length, jnp.zeros
        obs, action = zeros((length, spec.observation_dim)), zeros((length, spec.action_dim))
        return History(obs, action, zeros(length), zeros(()), jnp.int32(0))

    def act_in(
        self, s: State, context: History, obs: jax.Array, reward: jax.Array, key: jax.Array, explore: bool
    ) -> tuple[jax.Array, History]:
        """tanh of the mean, or a sample while exploring, on the steps remembered and this one."""
        total, full = context.total + reward, context.length == self.acting_context_length
        place = jnp.minimum(context.length, self.acting_context_length - 1)

        def appended(steps: jax.Array, step: jax.Array) -> jax.Array:
            return jnp.where(full, jnp.roll(steps, -1, axis=0), steps).at[place].set(step)

        steps = appended(context.obs, obs)
        earned = appended(context.earned, total)
        actions = appended(context.action, jnp.zeros(context.action.shape[-1]))  # of this step: seen by no token yet
        to_go = self.return_scale * (self.wanted_return(s, explore) - earned)
        mean, log_std = s.actor(to_go, steps, actions)  # [C, A]
        action = act_tanh_gaussian(mean[place], log_std[place], key, explore)
        return action, History(steps, actions.at[place].set(action), earned, total, place + 1)

    def act(self, s: State, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
        """As at an episode's first step."""
        nothing = self.context(Spec(s.actor.net.observation_dim, s.actor.net.action_dim))
        return self.act_in(s, nothing, obs, jnp.zeros(()), key, explore)[0]

    def export(self, s: State) -> Models:
        """The actor, its temperature, the best return met and the count of updates."""
        roles = {"actor": s.actor, "temperature": s.temperature, "best_return": s.best_return}
        return roles | {"updates": s.updates}
