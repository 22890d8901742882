"""O2TD3 against the released program's recorded numbers: three phases update by update, in float64, and a whole run."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.constraint import Constraint
from segue.core.learn import Program, make_keys, scored
from segue.core.model import Adam, Model, Scalar
from segue.core.phases import Online
from segue.core.reference import NO_SCORE
from segue.core.replay import empty_rows
from segue.core.types import Batch, Metrics, Models, Spec
from segue.environment import Environment
from segue.losses import td_target
from segue.methods.o2td3 import ConstrainedState, ConstrainedTD3, State, TD3Alignment, TD3Reevaluation, smoothed
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy
from segue.online import OnlineLoop
from segue.preparation import Preparation
from tests.golden_files import (
    FIELDS,
    Record,
    assert_gradient,
    assert_near,
    assert_parameters,
    batch_of,
    cases,
    hidden_sizes,
    model,
    twin,
)
from tests.test_golden_o2sac import FLOAT32, FLOAT32_PARAMETERS, Course, Ends, check_log

pytestmark = pytest.mark.usefixtures("float64")

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
    models, phase = models_of(record), None
    algorithm: Any = None
    s: Any = None
    for step, name in enumerate(record.hparams["phases"], 1):
        if name != phase:
            models = models | (algorithm.export(s) if algorithm else {})
            algorithm, phase = made[name](record.hparams), name
            s = begin(algorithm, models)
        s = check_step(record, algorithm, s, step)
    assert int(s.updates) == 7  # re-evaluation does not count
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/o2td3_pipeline")


class Noisy(Ends):
    """Explores by itself: the released program stores what the policy chose, not what was executed (surprise 3)."""

    def __init__(self, record: Record):
        super().__init__(record)
        self.noise = iter(record.hparams["exploration_noise_std"] * record["draws/exploration_noise"])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return super().step(action + next(self.noise))


def check_networks(record: Record, at: str, models: Models) -> None:
    """Every network of the record below `at`, in float32."""
    tree, actor, critic = record.tree(at), models["actor"], models["critic"]
    found = {"actor": actor.params, "reference_actor": models["reference"].params}
    found["target_actor"] = actor.params if actor.target is None else actor.target
    found["log_lambda"] = models["constraint_multiplier"].params
    for i in (1, 2):
        found |= {f"critic_{i}": critic.params[i - 1], f"target_critic_{i}": critic.target[i - 1]}
    assert set(found) == set(tree)
    for name, want in tree.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32_PARAMETERS, err_msg=f"{at} {name}")


def online_loop(record: Record, models: Models, preparation: Preparation, offline: Batch) -> tuple[OnlineLoop, Any]:
    """Our loop, which learns with the record's draws; and what looks up an update's recorded rows."""
    h, start = record.hparams, int(models["updates"])
    assert h["updates_per_environment_step"] == 1
    noise = jnp.asarray(record["draws/update_target_noise"], jnp.float32)

    class Scripted(ConstrainedTD3):
        def act(self, s: Any, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
            assert explore
            return super().act(s, obs, key, False)

        def update(
            self, s: ConstrainedState, batch: Batch, draws: jax.Array, policy_step: bool
        ) -> tuple[ConstrainedState, Metrics]:
            after, metrics = super().update(s, batch, noise[s.updates - start], policy_step)
            q = after.critic(batch.obs, s.actor(batch.obs))[0]
            return after, metrics | {"mean_q1_policy_actions": q.mean()}

    algorithm, keys = Scripted(**vars(fine_tuning(h))), make_keys((0,), 0)
    steps, half, count = len(record["online_transitions/rewards"]), h["batch_size"] // 2, len(noise)
    updates = [jax.random.split(jax.random.fold_in(keys.learn[0], start + i))[0] for i in range(count)]
    known = jax.random.key_data(jnp.stack(updates))
    rows = np.concatenate([record[f"draws/{name}_indices"] for name in ("online", "offline")], axis=1)
    assert rows.shape == (count, 2 * half)

    def recorded_rows(mix: str, memory: Any, key: jax.Array, n: int, share: float) -> jax.Array:
        assert (mix, n, share) == ("half", 2 * half, 0.5)
        return jnp.asarray(rows)[jnp.argmax((jax.random.key_data(key) == known).all(-1))]

    loop = OnlineLoop(
        program=Program(algorithm, "half", SPEC),
        schedule=Online(steps, h["warmup_steps"], replay="half"),
        environments=[Environment(lambda: Noisy(record))],
        preparation=preparation,
        state=jax.tree.map(lambda x: jnp.array(x)[None], algorithm.init(models, SPEC, jax.random.key(0))),
        rows=jax.tree.map(lambda x: x[None], empty_rows(SPEC, steps)),
        columns={},
        offline=offline,
        keys=keys,
        seeds=(0,),
    )
    return loop, recorded_rows


@pytest.mark.slow
def test_a_whole_run_equals_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Normaliser, both offline phases, our loop and environment, evaluations and reference, in float32."""
    with jax.enable_x64(False):
        record = Record("ocr_cft/o2td3_end_to_end")
        h = record.hparams
        preparation = Preparation.of_dataset(record.file["dataset/observations"], True, 1.0, 0.0)
        np.testing.assert_allclose(preparation.mean, record["observation_mean"], rtol=FLOAT32)
        np.testing.assert_allclose(preparation.std, record["observation_std"], rtol=FLOAT32)
        columns: Any = [record.file[f"dataset/{name}"] for name in FIELDS]
        columns[0], columns[3] = (preparation.observation(columns[i]) for i in (0, 3))
        obs, action, reward, next_obs, terminal = (jnp.asarray(x, jnp.float32) for x in columns)
        data = Batch(obs, action, reward, next_obs, terminal, extras={})
        sampled = iter(record["draws/replay_indices"])
        course, models = Course(record, preparation), models_of(record)
        course.greedy = jax.jit(lambda actor, obs: actor(obs))

        phases: list[tuple[Any, str]] = [(reevaluation(h), "evaluation_noise"), (alignment(h), "alignment_noise")]
        for phase, draws in phases:
            s, metrics = begin(phase, models), []
            if phase.keeps_policy:
                s = phase.scored(s, jnp.asarray(course.score(s.actor)))
            for noise in record[f"draws/{draws}"]:
                rows = next(sampled)
                batch = jax.tree.map(lambda x, rows=rows: x[rows], data)
                s, found = watched(phase, s, batch, jnp.asarray(noise, jnp.float32), True)
                metrics.append(found)
                if not phase.keeps_policy:
                    course.score(s.actor)
            name = "reevaluation" if phase.keeps_policy else "alignment"
            logged = {x.removesuffix("/value") for x in record.names(f"logs/{name}") if x.endswith("/value")}
            check_log(record, name, metrics, {x: x for x in logged - {"normalised_return"}})
            models = models | phase.export(s)
            if phase.keeps_policy:
                check_networks(record, "after_reevaluation", models)
        assert next(sampled, None) is None

        loop, recorded_rows = online_loop(record, models, preparation, data)

        def evaluate() -> Models:
            """What the phase would hand on after an evaluation."""
            score = course.score(jax.tree.map(lambda x: x[0], loop.state.actor))
            loop.state = scored(loop.program.algorithm, loop.state, np.asarray([score]))
            return loop.program.algorithm.export(jax.tree.map(lambda x: x[0], loop.state))

        metrics = []
        episodes: list[dict[str, Any]] = []
        with patch("segue.core.learn.draw_indices", recorded_rows):
            loop.begin()
            check_networks(record, "after_alignment", evaluate())
            for until in range(1, loop.schedule.env_steps + 1):
                learned, ended = loop.advance(lambda: False, until)
                metrics, episodes = metrics + learned, episodes + ended
                if until % h["evaluation_interval"] == 0:
                    models = evaluate()
        assert next(course.wanted, None) is None
        check_networks(record, "final", models)
        assert int(models["updates"]) == record["final_update_count"] and h["reference_changed_during_run"]
        rows = jax.tree.map(lambda x: np.asarray(x[0]), loop.rows)
        for name, got in zip(FIELDS, rows[:5], strict=True):
            np.testing.assert_allclose(got, record[f"online_transitions/{name}"], FLOAT32, FLOAT32, err_msg=name)
        ours = {"lambda": "multiplier", "mean_q1_policy_actions": "mean_q1_policy_actions"}
        check_log(record, "online", metrics, ours)
        check_log(record, "online", episodes, {"training_episode_return": "return"})
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/o2td3_end_to_end")


def test_the_folder_holds_the_cases() -> None:
    assert len(CASES) == 6
