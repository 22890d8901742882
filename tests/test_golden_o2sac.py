"""O2SAC against the released program's recorded numbers: three phases update by update, in float64, and a whole run."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.constraint import Constraint, ConstraintState
from segue.core.learn import Program, make_keys, scored
from segue.core.model import Adam, Model, Scalar
from segue.core.phases import Online
from segue.core.reference import NO_SCORE, Reference
from segue.core.replay import empty_rows
from segue.core.types import Batch, Metrics, Models, Spec
from segue.environment import Environment
from segue.evaluate import Evaluator
from segue.losses import td_target
from segue.methods.o2sac import (
    AlignmentDraws,
    ConstrainedDraws,
    ConstrainedSAC,
    ConstrainedState,
    SACAlignment,
    SACReevaluation,
    State,
)
from segue.nets.networks import Critics
from segue.nets.policies import TanhGaussianPolicy, data_log_density, sample_tanh_gaussian
from segue.online import OnlineLoop
from segue.preparation import Preparation
from tests.golden_files import (
    FIELDS,
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    cases,
    hidden_sizes,
    model,
)
from tests.test_golden_o2ppo import Toy

SPEC = Spec(5, 2)
FLOAT32_PARAMETERS, FLOAT32 = 5e-6, 2e-5  # as the record's README asks
Phase = SACReevaluation | SACAlignment | ConstrainedSAC
OURS = {"lambda": "multiplier", "constraint_threshold": "threshold", "alpha": "temperature", "policy_loss": "actor_loss"}


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


def reevaluation(h: dict[str, Any]) -> SACReevaluation:
    """The phase with the record's settings."""
    return SACReevaluation(
        batch_size=h["batch_size"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        critic_learning_rate=h["critic_lr"],
        initial_temperature=h["alpha_init"],
    )


def alignment(h: dict[str, Any]) -> SACAlignment:
    """The phase with the record's settings."""
    rates: dict[str, Any] = {"actor_learning_rate": h["actor_lr"], "critic_learning_rate": h["critic_lr"]}
    return SACAlignment(batch_size=h["batch_size"], discount=h["discount"], **rates)


def fine_tuning(h: dict[str, Any]) -> ConstrainedSAC:
    """The phase with the record's settings."""
    assert h["target_entropy"] == -h["action_dim"]
    return ConstrainedSAC(
        constraint=Constraint(
            threshold_start=h["threshold_start"],
            threshold_end=h["threshold_end"],
            threshold_ramp_steps=h["threshold_steps"],
            initial_multiplier=h["lambda_init"],
            multiplier_learning_rate=h["lambda_lr"],
            violation_weight=h["lambda_loss_tau"],
        ),
        actor_gradient_clip=h.get("gradient_clip_norm"),
        batch_size=h["batch_size"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        target_update_interval=h["target_update_period"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
        temperature_learning_rate=h["alpha_lr"],
    )


def critics_of(h: dict[str, Any], tree: dict[str, Any], name: str) -> tuple[Any, ...]:
    """Parameters of the critics; of a single one the record keeps a second, which nothing reads (surprise 14)."""
    return tuple(tree[f"{name}_{i}"] for i in range(1, 3 if h["double_critic"] else 2))


def models_of(record: Record) -> Models:
    """The recorded start: actor, critics, scalars, reference."""
    h, tree = record.hparams, record.tree("init")
    critics = critics_of(h, tree, "critic")
    policy = TanhGaussianPolicy(*SPEC, hidden_sizes(tree["actor"]), trained_scale=True)
    net = Critics(*SPEC, hidden_sizes(critics[0]), "norm_0" in critics[0], len(critics))
    assert net.layer_norm == h["critic_layer_norm"] and len(net.hidden_sizes) == h["critic_hidden_layers"]
    actor_adam = Adam(h["actor_lr"], h.get("gradient_clip_norm"))
    return {
        "actor": model(policy, tree["actor"], actor_adam),
        "critic": model(net, critics, Adam(h["critic_lr"]), critics_of(h, tree, "target_critic")),
        "temperature": model(Scalar(0.0), tree["log_alpha"], Adam(h["alpha_lr"])),
        "constraint_multiplier": model(Scalar(0.0), tree["log_lambda"], Adam(h["lambda_lr"])),
        "reference": model(policy, tree["reference_actor"], actor_adam).frozen(),
        "reference_score": jnp.float32(NO_SCORE),
        "updates": jnp.int32(0),
    }


def begin(algorithm: Phase, models: Models) -> Any:
    """The phase's state after `models`. Re-evaluation makes its own critics and temperature: they become the record's.

    Its policy is the record's reference, beside which the record keeps an actor that it does not use there.
    """
    if isinstance(algorithm, SACReevaluation):
        models = models | {"actor": models["reference"]}
    state: Any = algorithm.init(models, SPEC, jax.random.key(0))
    if isinstance(algorithm, SACReevaluation):
        critic = models["critic"].continued(Adam(algorithm.critic_learning_rate))
        state = State(state.actor, critic, models["temperature"].frozen(), state.reference, state.updates)
    return state


def batch_of(record: Record, step: int) -> Batch:
    return Batch(*(jnp.asarray(record[f"step_{step}/batch/{field}"]) for field in FIELDS), extras={})


def draws_of(record: Record, step: int) -> Any:
    """The recorded noise in the form that the phase draws."""
    draws = {name: jnp.asarray(record[f"step_{step}/draws/{name}"]) for name in record.names(f"step_{step}/draws")}
    if "alignment_noise" in draws:
        return AlignmentDraws(**draws)
    return ConstrainedDraws(**draws) if "policy_noise" in draws else draws["next_policy_noise"]


def critic_losses(q: jax.Array, y: jax.Array) -> Metrics:
    """What the record says of critics `q` [critics, B] that are fitted to `y` [B]."""
    found = {"td_target": y, "mean_td_target": y.mean(), "mean_q1": q[0].mean()}
    for i, values in enumerate(q, 1):
        found |= {f"q{i}": values, f"critic_{i}_loss": jnp.square(values - y).mean()}
    return found


def of_reevaluation(algorithm: SACReevaluation, s: State, batch: Batch, noise: jax.Array) -> Metrics:
    action, log_prob = sample_tanh_gaussian(*s.actor(batch.next_obs), noise)
    value = s.critic.slow(batch.next_obs, action).min(0)
    soft = value - jnp.exp(s.temperature()) * log_prob
    found = {"next_actions": action, "next_log_prob": log_prob, "next_min_target_q": value, "next_soft_target_q": soft}
    return found | critic_losses(s.critic(batch.obs, batch.action), td_target(batch, algorithm.discount, soft))


def of_alignment(algorithm: SACAlignment, s: State, batch: Batch, draws: AlignmentDraws) -> Metrics:
    action, _ = sample_tanh_gaussian(*s.actor(batch.obs), draws.alignment_noise)
    policy_action, log_prob = sample_tanh_gaussian(*s.actor(batch.obs), draws.policy_noise)
    best, anchor, y = algorithm.targets(s, batch.obs, action)
    mean, log_std = s.reference.policy(batch.obs)
    of_best, of_action = (data_log_density(x, mean, log_std).sum(-1) for x in (best, action))
    q_best, q_action = s.critic(batch.obs, best), s.critic(batch.obs, action)
    return {
        "mode_actions": best,
        "mode_reference_log_prob": of_best,
        "mode_min_target_q": anchor,
        "sampled_actions": action,
        "sampled_reference_log_prob": of_action,
        "alignment_target_before_min": anchor - jnp.exp(s.temperature()) * (of_best - of_action),
        "sampled_min_target_q": s.critic.slow(batch.obs, action).min(0),
        "alignment_target": y,
        "q1_mode_actions": q_best[0],
        "q2_mode_actions": q_best[1],
        "q1_sampled_actions": q_action[0],
        "q2_sampled_actions": q_action[1],
        "policy_actions": policy_action,
        "policy_log_prob": log_prob,
        "policy_min_q": s.critic(batch.obs, policy_action).min(0),
        "mean_log_prob": log_prob.mean(),
        "mean_alignment_target": y.mean(),
        "mean_q1_mode_actions": q_best[0].mean(),
        "mean_q1_sampled_actions": q_action[0].mean(),
    }


def of_fine_tuning(algorithm: ConstrainedSAC, s: ConstrainedState, batch: Batch, draws: ConstrainedDraws) -> Metrics:
    c, reference = s.constraint, s.constraint.reference.policy
    action, log_prob, penalty = algorithm.sample(s.actor, reference, batch.obs, draws.policy_noise)
    following, next_log_prob, next_penalty = algorithm.sample(
        s.actor, reference, batch.next_obs, draws.next_policy_noise
    )
    value = s.critic.slow(batch.next_obs, following).min(0)
    regularised = value - jnp.exp(s.temperature()) * next_log_prob - c.multiplier * next_penalty
    slack = algorithm.constraint.slack(c, penalty)
    found = {
        "policy_actions": action,
        "log_prob": log_prob,
        "reference_log_prob": log_prob - penalty,
        "policy_min_q": s.critic(batch.obs, action).min(0),
        "next_actions": following,
        "next_log_prob": next_log_prob,
        "next_reference_log_prob": next_log_prob - next_penalty,
        "next_min_target_q": value,
        "next_regularised_target_q": regularised,
        "alpha_loss": -s.temperature() * (log_prob.mean() - 2),
        "lambda_loss_weight": slack,
        "lambda_loss": c.multiplier * slack,
    }
    return found | critic_losses(s.critic(batch.obs, batch.action), td_target(batch, algorithm.discount, regularised))


WATCHED: dict[type, Any] = {
    SACReevaluation: of_reevaluation,
    SACAlignment: of_alignment,
    ConstrainedSAC: of_fine_tuning,
}


@partial(jax.jit, static_argnums=0)
def watched(algorithm: Phase, s: Any, batch: Batch, draws: Any) -> tuple[Any, Metrics]:
    """The update, and what the record knows of it: computed from the networks and the parts of the equations."""
    found = WATCHED[type(algorithm)](algorithm, s, batch, draws)
    after, metrics = algorithm.update(s, batch, draws, True)
    return after, found | metrics | {theirs: metrics[own] for theirs, own in OURS.items() if own in metrics}


def parts_of(algorithm: Phase, s: Any) -> dict[str, Model]:
    """Record's name -> model, but for the critics."""
    parts: dict[str, Model] = {"log_alpha": s.temperature}
    if not isinstance(algorithm, SACReevaluation):
        parts["actor"] = s.actor
    if isinstance(algorithm, ConstrainedSAC):
        return parts | {"log_lambda": s.constraint.log_multiplier, "reference_actor": s.constraint.reference.policy}
    return parts | {"reference_actor": s.reference.policy}


def check_parameters(record: Record, algorithm: Phase, s: Any, at: str) -> None:
    """Every recorded network is met; of a single critic not the second ones (surprise 14)."""
    h, tree = record.hparams, record.tree(at)
    for name, part in parts_of(algorithm, s).items():
        if name in tree:
            assert_parameters(part.params, tree[name], f"{at} {name}")
    for name, params in (("critic", s.critic.params), ("target_critic", s.critic.target)):
        if f"{name}_1" in tree:
            assert_parameters(params, critics_of(h, tree, name), f"{at} {name}")


def check_step(record: Record, algorithm: Phase, s: Any, step: int) -> Any:
    """One update against everything that the record holds of it; the state after it."""
    h, at = record.hparams, f"step_{step}"
    if f"{at}/inputs/environment_step" in record.file.files and record[f"{at}/inputs/update_index"] == 0:
        assert isinstance(algorithm, ConstrainedSAC)
        s = algorithm.begin_step(s, jnp.int32(int(record[f"{at}/inputs/environment_step"])))
    s, found = watched(algorithm, s, batch_of(record, step), draws_of(record, step))
    for group in ("intermediates", "scalars"):
        for name in record.names(f"{at}/{group}"):
            assert_near(found[name], record[f"{at}/{group}/{name}"], f"{at} {name}")
    gradients = record.tree(f"{at}/gradients")
    if "critic_1" in gradients:
        assert_gradient(s.critic, critics_of(h, gradients, "critic"), h["adam"]["b1"], f"{at} critic")
    for name, part in parts_of(algorithm, s).items():
        if name in gradients:
            assert_gradient(part, gradients[name], h["adam"]["b1"], f"{at} {name}")
    if record.names(f"{at}/after"):
        check_parameters(record, algorithm, s, f"{at}/after")
    return s


PHASES = {"policy_evaluation": reevaluation, "value_alignment": alignment, "finetune": fine_tuning}
CASES = [f"ocr_cft/{name}" for part in PHASES for name in cases(f"ocr_cft/o2sac_{part}*")]


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
    """The phases hand over what they export: critics with moments and lagging targets, then the targets' copy."""
    record = Record("ocr_cft/o2sac_pipeline")
    made = {"re-evaluation": reevaluation, "alignment": alignment, "fine-tuning": fine_tuning}
    models, s, phase = models_of(record), None, None
    algorithm: Any = None
    for step, name in enumerate(record.hparams["phases"], 1):
        if name != phase:
            models = models | (algorithm.export(s) if algorithm else {})
            algorithm, phase = made[name](record.hparams), name
            s = begin(algorithm, models)
        s = check_step(record, algorithm, s, step)
    assert int(s.updates) == 6  # re-evaluation does not count
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/o2sac_pipeline")


def test_the_folder_holds_the_cases() -> None:
    assert len(CASES) == 8
