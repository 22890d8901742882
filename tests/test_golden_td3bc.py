"""TD3+BC, SSAR on TD3+BC and the IQL selector against the authors' recorded numbers, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam
from segue.core.types import Batch
from segue.methods.iql import IQLCritics, NoDraws, advantage_selected
from segue.methods.iql import State as SelectorState
from segue.methods.ssar import Annealed, CoefficientNet, CoefficientState, StateAdaptive
from segue.methods.td3_bc import TD3BC, State
from segue.nets.networks import MLP, Critics
from segue.nets.policies import DeterministicPolicy
from tests.golden_files import (
    FIELDS,
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    assert_scalars,
    batch_of,
    cases,
    hidden_sizes,
    model,
    twin,
)

pytestmark = pytest.mark.usefixtures("float64")

UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))


def rows_of(record: Record, step: int) -> Batch:
    """The batch, with its rows' trust where that is recorded."""
    mask = f"step_{step}/batch/subset_mask"
    extras = {"trust": jnp.asarray(record[mask])} if mask in record.file.files else {}
    return batch_of(record, step)._replace(extras=extras)


def td3bc_of(h: dict[str, Any], step: int) -> TD3BC:
    """The algorithm with the record's settings at update `step`."""
    interval = h["policy_update_interval"]
    for start, value in h.get("policy_update_interval_from_step", {}).items():
        interval = value if step >= int(start) else interval
    coefficient: Any = None
    if "n_start" in h:
        coefficient = StateAdaptive(
            coefficient_learning_rate=h["coefficient_lr"],
            n_start=h["n_start"],
            n_end=h["n_end"],
            threshold_update_interval=h["threshold_update_interval"],
            mask_coefficient_loss=h["threshold_on_subset"],
            mask_regularizer=h["constrain_subset_only"],
        )
        if h["online_steps"][step - 1] > 0:
            steps = h["decay_steps"] if h["decay_steps"] > 0 else None
            coefficient = Annealed(coefficient, steps, floor_at_zero=False)
    return TD3BC(
        coefficient=coefficient,
        alpha=h["bc_alpha"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        target_noise_std=h["target_noise_std"],
        target_noise_clip=h["target_noise_clip"],
        exploration_noise=h.get("threshold_noise_std", 0.1),
        policy_update_interval=interval,
    )


def state_of(record: Record, prefix: str = "init") -> State:
    h, tree = record.hparams, record.tree(prefix)
    hidden = hidden_sizes(tree["actor"])
    critics = twin(tree, "critic")
    beta: Any = ()
    if "coefficient_net" in tree:
        params = tree["coefficient_net"]
        net = CoefficientNet(h["observation_dim"], hidden_sizes(params), 1 / h["bc_alpha"])
        coefficient = model(net, params, Adam(h["coefficient_lr"], 0.5))
        n, frozen = tree["threshold_n"], tree["threshold_frozen"] > 0
        beta = CoefficientState(coefficient, n, frozen, jnp.int32(0))
    sizes = (h["observation_dim"], h["action_dim"], hidden)
    return State(
        actor=model(DeterministicPolicy(*sizes), tree["actor"], Adam(h["actor_lr"]), tree["target_actor"]),
        critic=model(
            Critics(*sizes, layer_norm="norm_0" in critics[0]),
            critics,
            Adam(h["critic_lr"]),
            twin(tree, "target_critic"),
        ),
        beta=beta,
        updates=jnp.int32(int(tree["total_steps"])),
    )


def recorded_coefficient_statistics(h: dict[str, Any], beta: np.ndarray, trust: np.ndarray) -> dict[str, float]:
    """The record's own reading of coefficient_min/mean/max (its README, 'Scalars')."""
    if h["constrain_subset_only"] and trust.any():
        beta = beta[trust > 0]
    elif h["threshold_on_subset"]:
        beta = beta * trust
    return {"coefficient_min": beta.min(), "coefficient_mean": beta.mean(), "coefficient_max": beta.max()}


def assert_networks(s: State, after: dict[str, Any]) -> None:
    assert_parameters(s.actor.params, after["actor"], "actor")
    assert_parameters(s.actor.target, after["target_actor"], "target_actor")
    assert_parameters(s.critic.params, twin(after, "critic"), "critic")
    assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")


@pytest.mark.parametrize("name", cases("td3bc", "td3bc_sa_*"))
def test_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h, s = record.hparams, state_of(Record(name))
    online_before = 0
    for step in range(1, h["num_steps"] + 1):
        algorithm, batch = td3bc_of(h, step), rows_of(record, step)
        online = h.get("online_steps", [0] * h["num_steps"])[step - 1]
        if online > 0:  # N counts online updates: this update is number `online`
            s = replace(s, beta=replace(s.beta, online_origin=jnp.int32(step - online)))
        draws = jnp.asarray(record[f"step_{step}/draws/target_policy_noise"])
        policy_step = step % algorithm.policy_update_interval == 0
        beta_before = np.asarray(s.beta.net(batch.obs)) if s.beta else None
        s, metrics = UPDATE(algorithm, s, batch, draws, policy_step)

        names = record.names(f"step_{step}/scalars")
        scalars = dict(metrics)
        if beta_before is not None and "coefficient_mean" in names:
            scalars |= recorded_coefficient_statistics(h, beta_before, np.asarray(batch.extras["trust"]))
        assert ("actor_loss" in names) == policy_step
        assert_scalars(record, f"step_{step}/scalars", scalars, names)
        after = record.tree(f"step_{step}/after")
        assert_networks(s, after)
        assert int(s.updates) == int(after["total_steps"])
        if s.beta:
            assert_parameters(s.beta.net.params, after["coefficient_net"], "coefficient_net")
            assert abs(float(s.beta.n) - float(after["threshold_n"])) < 1e-12
            assert bool(s.beta.frozen) == bool(after["threshold_frozen"])
            threshold = (float(s.beta.n) * algorithm.exploration_noise) ** 2
            assert abs(threshold - float(after["threshold"])) < 1e-12
        online_before = online
    assert online_before == h.get("online_steps", [0])[-1]
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


@pytest.mark.parametrize("name", cases("td3bc", "td3bc_sa_*"))
def test_networks_equal_the_probe(name: str) -> None:
    record = Record(name)
    s, batch = state_of(record), rows_of(record, 1)
    found = {"actor_output": s.actor(batch.obs)}
    found["critic_1_output"], found["critic_2_output"] = s.critic(batch.obs, batch.action)
    if s.beta:
        found["coefficient_output"] = s.beta.net(batch.obs)
    for probe in record.names("probe"):
        np.testing.assert_allclose(found[probe], record[f"probe/{probe}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [f"ocr_cft/{name}" for name in cases("ocr_cft/td3bc_*")])
def test_updates_equal_the_other_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded from another program, which keeps intermediates and gradients too."""
    record = Record(name)
    h, tree = record.hparams, record.tree("init")
    rates: dict[str, Any] = {"discount": h["discount"], "target_update_rate": h["target_update_rate"]}
    noise: dict[str, Any] = {"target_noise_std": h["policy_noise"], "target_noise_clip": h["noise_clip"]}
    algorithm = TD3BC(alpha=h["bc_alpha"], policy_update_interval=h["policy_delay"], **rates, **noise)
    hidden = hidden_sizes(tree["actor"])
    actor = model(DeterministicPolicy(5, 2, hidden), tree["actor"], Adam(h["actor_lr"]), tree["target_actor"])
    adam, targets = Adam(h["critic_lr"]), twin(tree, "target_critic")
    s = State(actor, model(Critics(5, 2, hidden), twin(tree, "critic"), adam, targets), (), jnp.int32(0))
    for step in range(1, h["num_steps"] + 1):
        at, before, batch = f"step_{step}", s, rows_of(record, step)
        draws, policy_step = jnp.asarray(record[f"{at}/draws/target_noise"]), step % h["policy_delay"] == 0
        s, metrics = UPDATE(algorithm, s, batch, draws, policy_step)
        cut = jnp.clip(h["policy_noise"] * draws, -h["noise_clip"], h["noise_clip"])
        next_action = jnp.clip(before.actor.slow(batch.next_obs) + cut, -1, 1)
        next_q, policy = before.critic.slow(batch.next_obs, next_action).min(0), before.actor(batch.obs)
        q = s.critic(batch.obs, policy)[0]  # of the critic after its step
        found = metrics | {
            "clipped_target_noise": cut,
            "next_target_actions": next_action,
            "next_min_target_q": next_q,
            "td_target": batch.reward + h["discount"] * (1 - batch.terminal) * next_q,
            "q1": before.critic(batch.obs, batch.action)[0],
            "q2": before.critic(batch.obs, batch.action)[1],
            "policy_actions": policy,
            "q1_policy_actions": q,
            "policy_q_weight": h["bc_alpha"] / jnp.abs(q).mean(),
            "policy_loss": metrics.get("actor_loss"),
        }
        for kind in ("intermediates", "scalars"):
            for key in record.names(f"{at}/{kind}"):
                assert_near(found[key], record[f"{at}/{kind}/{key}"], f"{at} {key}")
        gradients = record.tree(f"{at}/gradients")
        if step == 1:
            assert_gradient(s.critic, twin(gradients, "critic"), h["adam"]["b1"], "critic")
        if step == h["policy_delay"]:
            assert_gradient(s.actor, gradients["actor"], h["adam"]["b1"], "actor")
        if step in h["parameters_recorded_after_steps"]:
            assert_networks(s, record.tree(f"{at}/after"))
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


@pytest.mark.parametrize("name", cases("iql_selector"))
def test_selector_equals_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h, tree = record.hparams, record.tree("init")
    hidden = hidden_sizes(tree["value"])
    algorithm = IQLCritics(
        expectile=h["expectile"], discount=h["discount"], target_update_rate=h["target_update_rate"],
        critic_learning_rate=h["critic_lr"], value_learning_rate=h["value_lr"],
    )
    data = record.tree("dataset")
    sizes = (data["observations"].shape[1], data["actions"].shape[1], hidden)
    s = SelectorState(
        critic=model(Critics(*sizes), twin(tree, "critic"), Adam(h["critic_lr"]), twin(tree, "target_critic")),
        value=model(MLP((sizes[0], *hidden, 1)), tree["value"], Adam(h["value_lr"])),
        updates=jnp.int32(0),
    )
    obs, action, reward, next_obs, terminal = (data[field] for field in FIELDS)
    rows = Batch(obs, action, reward, next_obs, terminal, {})
    for step in range(1, h["num_steps"] + 1):
        indices = jnp.asarray(record[f"step_{step}/draws/batch_indices"].astype(int))
        batch = jax.tree.map(lambda x, i=indices: x[i], rows)
        s, metrics = UPDATE(algorithm, s, batch, NoDraws(), True)
        assert_scalars(record, f"step_{step}/scalars", metrics)
        after = record.tree(f"step_{step}/after")
        assert_parameters(s.critic.params, twin(after, "critic"), "critic")
        assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")
        assert_parameters(s.value.params, after["value"], "value")
    selected = advantage_selected(s.critic, s.value, rows.obs, rows.action)
    np.testing.assert_array_equal(selected, record["selection/subset_mask"] > 0)
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def test_the_folder_holds_the_cases() -> None:
    assert cases("td3bc"), "no golden case found: SEGUE_GOLDEN names a folder without td3bc.npz"
    assert cases("td3bc_sa_*") and cases("iql_selector") and cases("ocr_cft/td3bc_*")
