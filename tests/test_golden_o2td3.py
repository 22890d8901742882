"""O2TD3 against the released program's recorded numbers: three phases update by update, in float64, and a whole run."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from segue.core.constraint import Constraint
from segue.core.model import Adam, Model, Scalar
from segue.core.reference import NO_SCORE
from segue.core.types import Batch, Metrics, Models, Spec
from segue.losses import td_target
from segue.methods.o2td3 import ConstrainedState, ConstrainedTD3, State, TD3Alignment, TD3Reevaluation, smoothed
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy
from tests.golden_files import (
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    cases,
    hidden_sizes,
    model,
    twin,
)
from tests.test_golden_o2sac import batch_of

SPEC = Spec(5, 2)
Phase = TD3Reevaluation | TD3Alignment | ConstrainedTD3
OURS = {  # record's name of a scalar -> ours
    "mean_q1": "critic_1_mean",
    "mean_td_target": "target_value_mean",
    "mean_q1_noisy_actions": "critic_1_mean",
    "mean_q1_reference_actions": "critic_1_anchor_mean",
    "lambda": "multiplier",
    "constraint_threshold": "threshold",
    "policy_loss": "actor_loss",
}


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def reevaluation(h: dict[str, Any]) -> TD3Reevaluation:
    """The phase with the record's settings."""
    return TD3Reevaluation(
        batch_size=h["batch_size"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        target_noise_std=h["policy_noise"],
        target_noise_clip=h["noise_clip"],
        critic_learning_rate=h["critic_lr"],
    )


def alignment(h: dict[str, Any]) -> TD3Alignment:
    """The phase with the record's settings."""
    return TD3Alignment(
        distance_weight=h["alignment_beta"],
        batch_size=h["batch_size"],
        discount=h["discount"],
        target_noise_std=h["alignment_sigma"],
        target_noise_clip=h["noise_clip"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
    )


def fine_tuning(h: dict[str, Any]) -> ConstrainedTD3:
    """The phase with the record's settings, and the released program's penalty."""
    return ConstrainedTD3(
        constraint=Constraint(
            threshold_start=h["threshold_start"],
            threshold_end=h["threshold_end"],
            threshold_ramp_steps=h["threshold_steps"],
            initial_multiplier=h["lambda_init"],
            multiplier_learning_rate=h["lambda_lr"],
            violation_weight=h["lambda_loss_tau"],
        ),
        penalty_over_batch=True,
        actor_gradient_clip=h.get("gradient_clip_norm"),
        batch_size=h["batch_size"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        target_noise_std=h["policy_noise"],
        target_noise_clip=h["noise_clip"],
        exploration_noise=h.get("exploration_noise_std", 0.1),
        policy_update_interval=h["policy_delay"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
    )


def models_of(record: Record) -> Models:
    """The recorded start: actor, critics, multiplier, reference."""
    h, tree = record.hparams, record.tree("init")
    critics = twin(tree, "critic")
    policy = DeterministicPolicy(*SPEC, hidden_sizes(tree["actor"]))
    net = Critics(*SPEC, hidden_sizes(critics[0]), "norm_0" in critics[0])
    assert net.layer_norm == h["critic_layer_norm"] and len(net.hidden_sizes) == h["critic_hidden_layers"]
    actor_adam = Adam(h["actor_lr"], h.get("gradient_clip_norm"))
    return {
        "actor": model(policy, tree["actor"], actor_adam, tree["target_actor"]),
        "critic": model(net, critics, Adam(h["critic_lr"]), twin(tree, "target_critic")),
        "constraint_multiplier": model(Scalar(0.0), tree["log_lambda"], Adam(h["lambda_lr"])),
        "reference": model(policy, tree["reference_actor"], actor_adam).frozen(),
        "reference_score": jnp.float32(NO_SCORE),
        "updates": jnp.int32(h.get("update_counter_before_first_step", 0)),
    }


def begin(algorithm: Phase, models: Models) -> Any:
    """The phase's state after `models`. Re-evaluation makes its own critics: they become the record's.

    Its policy is the record's target actor, which differs there from an actor and a reference that nothing uses.
    """
    if not isinstance(algorithm, TD3Reevaluation):
        return algorithm.init(models, SPEC, jax.random.key(0))
    actor: Model = models["actor"]
    policy = Model(actor.target, None, (), actor.net, actor.optimizer)
    s = algorithm.init(models | {"actor": policy}, SPEC, jax.random.key(0))
    return State(s.actor, models["critic"].continued(Adam(algorithm.critic_learning_rate)), s.reference, s.updates)


def critic_values(q: jax.Array, y: jax.Array) -> Metrics:
    """What the record says of critics `q` [2, B] that are fitted to `y` [B]."""
    return {"td_target": y, "q1": q[0], "q2": q[1]}


def of_reevaluation(algorithm: TD3Reevaluation, s: State, batch: Batch, noise: jax.Array) -> Metrics:
    std, clip = algorithm.target_noise_std, algorithm.target_noise_clip
    action = smoothed(s.actor(batch.next_obs), noise, std, clip)
    value = s.critic.slow(batch.next_obs, action).min(0)
    return {
        "clipped_target_noise": smoothed(jnp.zeros_like(noise), noise, std, clip),
        "next_target_actions": action,
        "next_min_target_q": value,
    } | critic_values(s.critic(batch.obs, batch.action), td_target(batch, algorithm.discount, value))


def of_alignment(algorithm: TD3Alignment, s: State, batch: Batch, noise: jax.Array) -> Metrics:
    std, clip = algorithm.target_noise_std, algorithm.target_noise_clip
    policy_action = s.actor(batch.obs)
    action = smoothed(policy_action, noise, std, clip)
    best, anchor, y = algorithm.targets(s, batch.obs, action)
    distance = algorithm.distance(action, best)
    slow = s.critic.slow(batch.obs, action)
    q_action, q_best = s.critic(batch.obs, action), s.critic(batch.obs, best)
    factor = 1 + algorithm.distance_weight * distance**2
    return {
        "reference_actions": best,
        "actor_actions": policy_action,
        "reference_min_target_q": anchor,
        "clipped_alignment_noise": smoothed(jnp.zeros_like(noise), noise, std, clip),
        "noisy_actions": action,
        "distance": distance,
        "discounted_reference_q": jnp.where(anchor < 0, anchor * factor, anchor / factor),
        "noisy_target_q1": slow[0],
        "noisy_target_q2": slow[1],
        "alignment_target_1": y[0],
        "alignment_target_2": y[1],
        "q1_noisy_actions": q_action[0],
        "q2_noisy_actions": q_action[1],
        "q1_reference_actions": q_best[0],
        "q2_reference_actions": q_best[1],
        "mean_alignment_target_1": y[0].mean(),
        "mean_distance": distance.mean(),
        "mean_q1_policy_actions": s.critic(batch.obs, policy_action)[0].mean(),
    }


def of_fine_tuning(algorithm: ConstrainedTD3, s: ConstrainedState, batch: Batch, noise: jax.Array) -> Metrics:
    c, reference = s.constraint, s.constraint.reference.policy
    std, clip = algorithm.target_noise_std, algorithm.target_noise_clip
    following = smoothed(s.actor.slow(batch.next_obs), noise, std, clip)
    penalty = algorithm.penalty(s.actor, reference, batch.next_obs)
    value = s.critic.slow(batch.next_obs, following).min(0) - c.multiplier * penalty
    action, wanted = s.actor(batch.obs), reference(batch.obs)
    slack = algorithm.constraint.slack(c, jnp.square(action - wanted))
    return {
        "clipped_target_noise": smoothed(jnp.zeros_like(noise), noise, std, clip),
        "next_reference_actions": reference(batch.next_obs),
        "next_actions": s.actor(batch.next_obs),
        "next_target_actions": following,
        "next_regularised_target_q": value,
        "lambda": c.multiplier,
        "reference_actions": wanted,
        "actor_actions": action,
        "lambda_loss_weight": slack,
        "lambda_loss": c.multiplier * slack,
    } | critic_values(s.critic(batch.obs, batch.action), td_target(batch, algorithm.discount, value))


WATCHED: dict[type, Any] = {
    TD3Reevaluation: of_reevaluation,
    TD3Alignment: of_alignment,
    ConstrainedTD3: of_fine_tuning,
}


@partial(jax.jit, static_argnums=(0, 4))
def watched(algorithm: Phase, s: Any, batch: Batch, noise: jax.Array, policy_step: bool) -> tuple[Any, Metrics]:
    """The update, and what the record knows of it: computed from the networks and the parts of the equations."""
    found = WATCHED[type(algorithm)](algorithm, s, batch, noise)
    after, metrics = algorithm.update(s, batch, noise, policy_step)
    if isinstance(algorithm, ConstrainedTD3):  # the actor sees the critic after its step
        q = after.critic(batch.obs, found["actor_actions"])[0]
        found |= {"q1_policy_actions": q, "mean_q1_policy_actions": q.mean(), "policy_q_weight": 1 / jnp.abs(q).mean()}
    return after, found | metrics | {theirs: metrics[own] for theirs, own in OURS.items() if own in metrics}


UNUSED: dict[type, set[str]] = {  # networks of the record that a phase neither reads nor moves
    TD3Reevaluation: {"actor", "reference_actor", "log_lambda"},
    TD3Alignment: {"log_lambda"},
}


def parts_of(algorithm: Phase, s: Any) -> dict[str, Any]:
    """Record's name -> parameters."""
    if isinstance(algorithm, TD3Reevaluation):
        parts = {"target_actor": s.actor.params}
    else:
        parts = {"actor": s.actor.params, "target_actor": s.actor.target}
    if isinstance(algorithm, TD3Alignment):
        parts["reference_actor"] = s.reference.policy.params
    if isinstance(algorithm, ConstrainedTD3):
        parts["log_lambda"] = s.constraint.log_multiplier.params
        parts["reference_actor"] = s.constraint.reference.policy.params
    for i in (0, 1):
        parts |= {f"critic_{i + 1}": s.critic.params[i], f"target_critic_{i + 1}": s.critic.target[i]}
    return parts


def check_step(record: Record, algorithm: Phase, s: Any, step: int) -> Any:
    """One update against everything that the record holds of it; the state after it."""
    h, at = record.hparams, f"step_{step}"
    noise = {n.split("_")[0]: jnp.asarray(record[f"{at}/draws/{n}"]) for n in record.names(f"{at}/draws")}
    assert len(noise) == 1
    policy_step = True
    if isinstance(algorithm, ConstrainedTD3):
        s = algorithm.begin_step(s, jnp.int32(int(record[f"{at}/inputs/environment_step"])))
        policy_step = (int(s.updates) + 1) % algorithm.policy_update_interval == 0
        assert policy_step == ("policy_loss" in record.names(f"{at}/scalars"))
    s, found = watched(algorithm, s, batch_of(record, step), *noise.values(), policy_step)
    for group in ("intermediates", "scalars"):
        for name in record.names(f"{at}/{group}"):
            assert_near(found[name], record[f"{at}/{group}/{name}"], f"{at} {name}")
    gradients = record.tree(f"{at}/gradients")
    for name in gradients:
        if name not in ("critic_1", "critic_2"):
            stepped = s.actor if name == "actor" else s.constraint.log_multiplier
            assert_gradient(stepped, gradients[name], h["adam"]["b1"], f"{at} {name}")
    if "critic_1" in gradients:
        assert_gradient(s.critic, twin(gradients, "critic"), h["adam"]["b1"], f"{at} critic")
    after, parts = record.tree(f"{at}/after"), parts_of(algorithm, s)
    assert after.keys() - parts.keys() <= UNUSED.get(type(algorithm), set())
    for name in parts.keys() & after.keys():
        assert_parameters(parts[name], after[name], f"{at} {name}")
    return s


PHASES = {"policy_evaluation": reevaluation, "value_alignment": alignment, "finetune": fine_tuning}
CASES = [f"ocr_cft/{name}" for part in PHASES for name in cases(f"ocr_cft/o2td3_{part}*")]


@pytest.mark.parametrize("name", CASES)
def test_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    algorithm: Any = next(make(record.hparams) for part, make in PHASES.items() if part in name)
    s = begin(algorithm, models_of(record))
    for step in range(1, record.hparams["num_steps"] + 1):
        s = check_step(record, algorithm, s, step)
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def test_the_pipeline_equals_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    """The phases hand over what they export: critics with moments and lagging targets, then the targets' copies."""
    record = Record("ocr_cft/o2td3_pipeline")
    made = {"re-evaluation": reevaluation, "alignment": alignment, "fine-tuning": fine_tuning}
    models, s, phase = models_of(record), None, None
    algorithm: Any = None
    for step, name in enumerate(record.hparams["phases"], 1):
        if name != phase:
            models = models | (algorithm.export(s) if algorithm else {})
            algorithm, phase = made[name](record.hparams), name
            s = begin(algorithm, models)
        s = check_step(record, algorithm, s, step)
    assert int(s.updates) == 7  # re-evaluation does not count
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/o2td3_pipeline")


def test_the_folder_holds_the_cases() -> None:
    assert len(CASES) == 6
