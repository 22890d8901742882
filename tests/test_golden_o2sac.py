"""O2SAC against the released program's recorded numbers: three phases update by update, in float64, and a whole run."""

from __future__ import annotations

from collections.abc import Iterable
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
    batch_of,
    cases,
    draws_of,
    hidden_sizes,
    model,
)
from tests.test_golden_o2ppo import Toy

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(5, 2)
FLOAT32_PARAMETERS, FLOAT32 = 5e-6, 2e-5  # as the record's README asks
Phase = SACReevaluation | SACAlignment | ConstrainedSAC
OURS = {  # record's name of a scalar -> ours
    "alpha": "temperature",
    "lambda": "multiplier",
    "constraint_threshold": "threshold",
    "policy_loss": "actor_loss",
}


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


def batch_from(columns: Iterable[np.ndarray]) -> Batch:
    """Transitions of the columns in their order."""
    obs, action, reward, next_obs, terminal = (jnp.asarray(x, float) for x in columns)
    return Batch(obs, action, reward, next_obs, terminal, {})


def noise_of(record: Record, step: int) -> Any:
    """The recorded noise in the form that the phase draws."""
    draws = draws_of(record, step)
    if "alignment_noise" in draws:
        return AlignmentDraws(**draws)
    return ConstrainedDraws(**draws) if "policy_noise" in draws else draws["next_policy_noise"]


def critic_losses(q: jax.Array, y: jax.Array) -> Metrics:
    """What the record says of critics `q` [critics, B] that are fitted to `y` [B]."""
    found = {"td_target": y, "mean_td_target": y.mean(), "mean_q1": q[0].mean()}
    for i, values in enumerate(q, 1):
        found |= {f"q{i}": values, f"critic_{i}_loss": jnp.square(values - y).mean()}
    return found


def sampled(policy: Model, obs: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions and their log-densities."""
    mean, log_std = policy(obs)
    return sample_tanh_gaussian(mean, log_std, noise)


def of_reevaluation(algorithm: SACReevaluation, s: State, batch: Batch, noise: jax.Array) -> Metrics:
    action, log_prob = sampled(s.actor, batch.next_obs, noise)
    value = s.critic.slow(batch.next_obs, action).min(0)
    soft = value - jnp.exp(s.temperature()) * log_prob
    found = {"next_actions": action, "next_log_prob": log_prob, "next_min_target_q": value, "next_soft_target_q": soft}
    return found | critic_losses(s.critic(batch.obs, batch.action), td_target(batch, algorithm.discount, soft))


def of_alignment(algorithm: SACAlignment, s: State, batch: Batch, draws: AlignmentDraws) -> Metrics:
    action, _ = sampled(s.actor, batch.obs, draws.alignment_noise)
    policy_action, log_prob = sampled(s.actor, batch.obs, draws.policy_noise)
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
    s, found = watched(algorithm, s, batch_of(record, step), noise_of(record, step))
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
    models, phase = models_of(record), None
    algorithm: Any = None
    s: Any = None
    for step, name in enumerate(record.hparams["phases"], 1):
        if name != phase:
            models = models | (algorithm.export(s) if algorithm else {})
            algorithm, phase = made[name](record.hparams), name
            s = begin(algorithm, models)
        s = check_step(record, algorithm, s, step)
    assert int(s.updates) == 6  # re-evaluation does not count
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/o2sac_pipeline")


class Ends(Toy):
    """The record's environment says that an episode ended, not that it was long, where both are so."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        state, reward, terminated, truncated, info = super().step(action)
        return state, reward, terminated, truncated and not terminated, info


class Course:
    """Scores the recorded run's policies, in an environment of its own, and compares them with the record's."""

    def __init__(self, record: Record, preparation: Preparation):
        places = iter(range(record.hparams["evaluation_episodes"]))
        self.evaluator = Evaluator(lambda: Ends(record, next(places)), None, preparation)
        self.wanted = iter(record["evaluation/returns"])
        self.greedy = jax.jit(lambda actor, obs: jnp.tanh(actor(obs)[0]))

    def score(self, actor: Model) -> np.float32:
        """The mean return, once the returns are found to be the record's next ones."""
        wanted = next(self.wanted)
        score = self.evaluator.score(lambda obs: np.asarray(self.greedy(actor, obs)), len(wanted), 0)
        assert score is not None
        np.testing.assert_allclose(score.returns, wanted, rtol=FLOAT32, atol=FLOAT32)
        return np.float32(score.mean)


def check_log(record: Record, name: str, metrics: list[Metrics], names: dict[str, str]) -> None:
    """What the run logged of phase `name`, under our `names`."""
    for theirs, own in names.items():
        wanted = record[f"logs/{name}/{theirs}/value"]
        np.testing.assert_allclose(np.ravel([m[own] for m in metrics]), wanted, FLOAT32, FLOAT32, err_msg=theirs)


def check_end(record: Record, at: str, models: Models) -> None:
    """Every network of the record below `at`, in float32."""
    tree = record.tree(at)
    critic: Model = models["critic"]
    found = {"actor": models["actor"].params, "reference_actor": models["reference"].params}
    found |= {"log_alpha": models["temperature"].params, "log_lambda": models["constraint_multiplier"].params}
    for i in (1, 2):
        found |= {f"critic_{i}": critic.params[i - 1], f"target_critic_{i}": critic.target[i - 1]}
    assert set(found) == set(tree)
    for name, want in tree.items():
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=FLOAT32_PARAMETERS, err_msg=f"{at} {name}")


def online_loop(record: Record, models: Models, preparation: Preparation, offline: Batch) -> tuple[OnlineLoop, Any]:
    """Our loop, which acts and learns with the record's draws; and what looks up an update's recorded rows."""
    h, start = record.hparams, int(models["updates"])
    noise = [record[f"draws/{name}"] for name in ("action_noise", "update_policy_noise", "update_next_policy_noise")]
    action_noise, policy_noise, next_policy_noise = (jnp.asarray(x, jnp.float32) for x in noise)

    class Scripted(ConstrainedSAC):
        def act(self, s: Any, obs: jax.Array, key: jax.Array, explore: bool) -> jax.Array:
            assert explore
            return sampled(s.actor, obs, action_noise[s.constraint.env_step])[0]

        def update(self, s: Any, batch: Batch, draws: Any, policy_step: bool) -> tuple[ConstrainedState, Metrics]:
            i = s.updates - start
            return super().update(s, batch, ConstrainedDraws(policy_noise[i], next_policy_noise[i]), policy_step)

    algorithm, keys = Scripted(**vars(fine_tuning(h))), make_keys((0,), 0)
    state = algorithm.init(models, SPEC, jax.random.key(0))
    steps, half = len(record["online_transitions/rewards"]), h["batch_size"] // 2
    count = len(policy_noise)
    updates = [jax.random.split(jax.random.fold_in(keys.learn[0], start + i))[0] for i in range(count)]
    known = jax.random.key_data(jnp.stack(updates))
    rows = np.concatenate([record[f"draws/{name}_indices"] for name in ("online", "offline")], axis=1)
    assert rows.shape == (count, 2 * half)

    def recorded_rows(mix: str, memory: Any, key: jax.Array, n: int, share: float) -> jax.Array:
        assert (mix, n, share) == ("half", 2 * half, 0.5)
        return jnp.asarray(rows)[jnp.argmax((jax.random.key_data(key) == known).all(-1))]

    loop = OnlineLoop(
        program=Program(algorithm, "half", SPEC),
        schedule=Online(steps, h["warmup_steps"], updates_per_step=h["updates_per_environment_step"], replay="half"),
        environments=[Environment(lambda: Ends(record))],
        preparation=preparation,
        state=jax.tree.map(lambda x: jnp.array(x)[None], state),
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
        record = Record("ocr_cft/o2sac_end_to_end")
        h = record.hparams
        preparation = Preparation.of_dataset(record.file["dataset/observations"], True, 1.0, 0.0)
        np.testing.assert_allclose(preparation.mean, record["observation_mean"], rtol=FLOAT32)
        np.testing.assert_allclose(preparation.std, record["observation_std"], rtol=FLOAT32)
        obs, action, reward, next_obs, terminal = (record.file[f"dataset/{name}"] for name in FIELDS)
        columns = preparation.observation(obs), action, reward, preparation.observation(next_obs), terminal
        data = batch_from(columns)
        batches = [batch_from([x[rows] for x in columns]) for rows in record["draws/replay_indices"]]
        course, models = Course(record, preparation), models_of(record)

        def learned(algorithm: Phase, s: Any, first: int, draws: list[Any]) -> tuple[Any, list[Metrics]]:
            metrics = []
            for batch, noise in zip(batches[first:], draws, strict=False):
                s, found = watched(algorithm, s, batch, noise)
                metrics.append(found)
                if isinstance(algorithm, SACAlignment):
                    course.score(s.actor)
            return s, metrics

        phase = reevaluation(h)
        s = begin(phase, models)
        s = phase.scored(s, jnp.asarray(course.score(s.actor)))
        evaluation_noise = [jnp.asarray(x, jnp.float32) for x in record["draws/evaluation_noise"]]
        s, metrics = learned(phase, s, 0, evaluation_noise)
        names = ["critic_loss", "mean_q1", "mean_td_target"]
        check_log(record, "reevaluation", metrics, {name: name for name in names})
        models = models | phase.export(s)
        check_end(record, "after_reevaluation", models)

        aligning = alignment(h)
        s = begin(aligning, models)
        pairs = zip(record["draws/alignment_noise"], record["draws/alignment_policy_noise"], strict=True)
        noise = [AlignmentDraws(*(jnp.asarray(x, jnp.float32) for x in pair)) for pair in pairs]
        s, metrics = learned(aligning, s, len(evaluation_noise), noise)
        names = [name for name in record.names("logs/alignment") if name.endswith("/value")]
        names = [name.removesuffix("/value") for name in names if "return" not in name]
        check_log(record, "alignment", metrics, {name: name for name in names})
        models = models | aligning.export(s)
        check_end(record, "after_alignment", models)

        loop, recorded_rows = online_loop(record, models, preparation, data)

        def evaluate() -> None:
            score = course.score(jax.tree.map(lambda x: x[0], loop.state.actor))
            loop.state = scored(loop.program.algorithm, loop.state, np.asarray([score]))

        metrics = []
        with patch("segue.core.learn.draw_indices", recorded_rows):
            loop.begin()
            for until in range(0, loop.schedule.env_steps + 1):
                metrics += loop.advance(lambda: False, until)[0]
                if until % h["evaluation_interval"] == 0:
                    evaluate()
        assert next(course.wanted, None) is None
        rows = jax.tree.map(lambda x: np.asarray(x[0]), loop.rows)
        for name, got in zip(FIELDS, rows[:5], strict=True):
            np.testing.assert_allclose(got, record[f"online_transitions/{name}"], FLOAT32, FLOAT32, err_msg=name)
        ours = {
            "alpha": "temperature",
            "lambda": "multiplier",
            "critic_loss": "critic_loss",
            "mean_q1": "critic_1_mean",
        }
        check_log(record, "online", metrics, ours | {"mean_td_target": "target_value_mean"})
        check_end(record, "final", loop.program.algorithm.export(jax.tree.map(lambda x: x[0], loop.state)))
        assert h["reference_changed_during_run"]
    with capsys.disabled():
        print("\ngolden case passed: ocr_cft/o2sac_end_to_end")


def test_the_folder_holds_the_cases() -> None:
    assert len(CASES) == 8
