"""Off2On against the released program's recorded numbers: stratified draws, density ratio, ensemble, in float64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core import sum_tree
from segue.core.model import Adam, Model, Scalar
from segue.core.types import Batch, Metrics, Spec
from segue.losses import td_target
from segue.methods.balanced_replay import BalancedReplay, DensityRatio, Pairs, Ratio
from segue.methods.off2on import Draws, Off2On, State, in_pairs
from segue.nets.ensemble import MomentMatchedPolicy
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy, sample_tanh_gaussian
from tests.golden_files import FIELDS, Record, assert_gradient, assert_near, assert_parameters, model

pytestmark = pytest.mark.usefixtures("float64")

SPEC, HIDDEN = Spec(5, 2), (16, 16)
FIND = jax.jit(lambda tree, first, rest: sum_tree.find(tree, sum_tree.at_fraction(tree, first, rest)))
REPLACED = jax.jit(sum_tree.replaced)
# Of priorities, which the record rounds to single precision, and ours to a multiple of this.
FLOAT32, STORED = 1e-6, 2.0**-sum_tree.FRACTION_BITS


@pytest.fixture(scope="module")
def record() -> Record:
    return Record("ocr_cft/off2on_balanced_replay")


def policies(tree: dict[str, Any]) -> Any:
    """The record's heads of mean and log-std (layers 2 and 3) as halves of one layer."""
    members = []
    for i in (1, 2):
        layers = dict(tree[f"actor_{i}"])
        mean, log_std = layers["layers_2"], layers.pop("layers_3")
        joined = {name: jnp.concatenate([mean[name], log_std[name]], -1) for name in ("kernel", "bias")}
        members.append(layers | {"layers_2": joined})
    return tuple(members)


def critics(tree: dict[str, Any], name: str) -> Any:
    """The record stacks members [member, in, out] in its first and second critics: ours stand member by member."""
    return tuple(
        {n: {"kernel": x["kernel"][member], "bias": x["bias"][member, 0]} for n, x in tree[f"{name}_{k}"].items()}
        for member in (0, 1)
        for k in (1, 2)
    )


def start(record: Record) -> tuple[Off2On, State, Ratio]:
    h, tree = record.hparams, record.tree("init")
    assert h["target_entropy"] == -h["action_dim"] and h["ensemble_size"] == 2
    algorithm = Off2On(
        batch_size=h["batch_size"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
        temperature_learning_rate=h["alpha_lr"],
        initial_temperature=h["alpha_init"],
    )
    policy = MomentMatchedPolicy(TanhGaussianPolicy(*SPEC, HIDDEN), 2)
    net = Critics(*SPEC, HIDDEN, count=4)
    models = {
        "actor": model(policy, policies(tree), Adam(h["actor_lr"])),
        "critic": model(net, critics(tree, "critic"), Adam(h["critic_lr"]), critics(tree, "target_critic")),
        "temperature": model(Scalar(0.0), tree["log_alpha"], Adam(h["alpha_lr"])),
    }
    network = model(DensityRatio(*SPEC, HIDDEN), tree["density_ratio"], Adam(h["density_ratio_lr"]))
    own = Ratio(network, jnp.asarray(h["initial_online_priority"]))
    return algorithm, algorithm.init(models, SPEC, jax.random.key(0)), own


def rows_at(record: Record, indices: np.ndarray) -> Batch:
    obs, action, reward, next_obs, terminal = (jnp.asarray(record[f"buffer/{field}"][indices]) for field in FIELDS)
    return Batch(obs, action, reward, next_obs, terminal, {})


def drawn(tree: sum_tree.SumTree, offsets: np.ndarray) -> np.ndarray:
    """The rows at the recorded offsets within the equal parts of the total."""
    whole = Fraction(float(sum_tree.as_float(sum_tree.total(tree))))
    n = len(offsets)
    parts = [int((Fraction(i, n) + Fraction(float(offset)) / whole) * 2**64) for i, offset in enumerate(offsets)]
    first, rest = np.array([divmod(part, 2**32) for part in parts], np.uint32).T
    return np.asarray(FIND(tree, first, rest))


def of_ratio(network: Model, batch: Batch, data: Pairs, new: Pairs) -> Metrics:
    """What the record says of the density ratio, from before its step."""
    of_data, of_new, of_batch = network(*data), network(*new), network(batch.obs, batch.action)
    return {
        "density_ratio_offline": of_data,
        "density_ratio_online": of_new,
        "density_ratio_rl": of_batch,
        "offline_term": -jnp.log(2 / (of_data + 1) + 1e-10),
        "online_term": jnp.log(2 * of_new / (of_new + 1) + 1e-10),
        "normalised_weight": of_batch**0.2 / ((of_data**0.2).mean() + 1e-10),
    }


def of_update(algorithm: Off2On, s: State, batch: Batch, draws: Draws) -> Metrics:
    """What the record says of an update, from the state before it."""

    def sampled(policy: Model, obs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, log_std = policy(obs)
        return sample_tanh_gaussian(mean, log_std, noise)

    alpha = jnp.exp(s.temperature())
    action, log_prob = sampled(s.actor, batch.obs, draws.policy_noise)
    next_action, next_log_prob = sampled(s.actor, batch.next_obs, draws.next_policy_noise)
    lowest = in_pairs(s.critic.slow(batch.next_obs, next_action)).min(1)
    y = jax.vmap(lambda own: td_target(batch, algorithm.discount, own))(lowest - alpha * next_log_prob)
    q = in_pairs(s.critic(batch.obs, batch.action))
    return {
        "policy_actions": action,
        "log_prob": log_prob,
        "policy_q_ensemble_mean": in_pairs(s.critic(batch.obs, action)).min(1).mean(0),
        "q1": q[:, 0],
        "q2": q[:, 1],
        "next_actions": next_action,
        "next_log_prob": next_log_prob,
        "next_min_target_q": lowest,
        "td_target": y,
        "alpha": alpha,
        "critic_1_loss": jnp.square(q[:, 0] - y).mean(-1).sum(),
        "critic_2_loss": jnp.square(q[:, 1] - y).mean(-1).sum(),
        "alpha_loss": -s.temperature() * (log_prob.mean() - 2),
    }


def assert_after(record: Record, step: int, s: State, own: Ratio) -> None:
    after = record.tree(f"step_{step}/after")
    assert_parameters(s.actor.params, policies(after), "actor")
    assert_parameters(s.critic.params, critics(after, "critic"), "critic")
    assert_parameters(s.critic.target, critics(after, "target_critic"), "target critic")
    assert_parameters(s.temperature.params, after["log_alpha"], "log alpha")
    assert_parameters(own.network.params, after["density_ratio"], "density ratio")


def test_draws_ratio_and_ensemble_update_by_update(record: Record) -> None:
    h = record.hparams
    algorithm, s, own = start(record)
    sampler = BalancedReplay(
        priority_temperature=h["priority_temperature"],
        priority_min=h["priority_clip"][0],
        priority_max=h["priority_clip"][1],
        ratio_learning_rate=h["density_ratio_lr"],
    )
    tree = sum_tree.build(jnp.asarray(record["buffer/initial_priorities"][:12]))
    update = jax.jit(lambda s, batch, draws: algorithm.update(s, batch, draws, True))
    found_of = jax.jit(lambda s, batch, draws: of_update(algorithm, s, batch, draws))
    fitted, ratio_of = jax.jit(sampler.fitted), jax.jit(of_ratio)
    for step in range(1, h["num_steps"] + 1):
        prefix = f"step_{step}"
        indices = drawn(tree, record[f"{prefix}/draws/stratified_offsets"])
        np.testing.assert_array_equal(indices, record[f"{prefix}/outputs/sampled_indices"])
        batch = rows_at(record, indices)
        draws = Draws(*(jnp.asarray(record[f"{prefix}/draws/{name}"]) for name in Draws._fields))
        data, new = (
            Pairs(*(jnp.asarray(record[f"{prefix}/batch/{kind}_{name}"]) for name in ("observations", "actions")))
            for kind in ("offline", "online")
        )
        found = found_of(s, batch, draws) | ratio_of(own.network, batch, data, new)
        s, metrics = update(s, batch, draws)
        own, priority, info = fitted(own, batch, data, new)
        of_both = {"policy_loss": metrics["actor_loss"], "density_ratio_loss": info["ratio_loss"]}
        found |= of_both | {"new_priority": priority}
        for group in ("scalars", "intermediates"):
            for name in record.names(f"{prefix}/{group}"):
                want = record[f"{prefix}/{group}/{name}"]
                assert_near(np.asarray(found[name]).reshape(want.shape), want, f"{prefix} {name}")
        assert_near(metrics["critic_loss"], found["critic_1_loss"] + found["critic_2_loss"], f"{prefix} critic loss")
        tree = REPLACED(tree, indices, priority)
        kept = np.asarray(sum_tree.priorities_at(tree, jnp.arange(12)))
        np.testing.assert_allclose(kept, record[f"{prefix}/outputs/priorities_after"][:12], FLOAT32, STORED)
        assert float(own.largest) == record[f"{prefix}/outputs/priority_of_new_transitions_after"]
        if step == 1:
            gradients = record.tree(f"{prefix}/gradients")
            assert_gradient(s.actor, policies(gradients), 0.9, "actor")
            assert_gradient(s.critic, critics(gradients, "critic"), 0.9, "critic")
            assert_gradient(s.temperature, gradients["log_alpha"], 0.9, "log alpha")
            assert_gradient(own.network, gradients["density_ratio"], 0.9, "density ratio")
        if step in h["parameters_recorded_after_steps"]:
            assert_after(record, step, s, own)


def test_the_first_priority_of_new_rows(record: Record) -> None:
    """The record's own, with 4 new rows in the place of 1,000."""
    h = record.hparams
    rows, share = h["offline_transitions"], 0.5
    assert h["initial_online_priority"] == rows * share / ((1 - share) * 4)
