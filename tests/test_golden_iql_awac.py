"""IQL and AWAC against the authors' recorded numbers, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam
from segue.core.types import Spec
from segue.methods.awac import AWAC
from segue.methods.awac import Draws as AWACDraws
from segue.methods.awac import State as AWACState
from segue.methods.iql import IQL, IQLState
from segue.nets.networks import MLP, Critics
from segue.nets.policies import DeterministicPolicy, GaussianPolicy, gaussian_log_density
from segue.recipes.iql import IQLRecipe
from tests.golden_files import Record, assert_parameters, assert_scalars, batch_of, cases, hidden_sizes, model, twin

pytestmark = pytest.mark.usefixtures("float64")

UPDATE = jax.jit(lambda algorithm, *rest: algorithm.update(*rest), static_argnums=(0, 4))
OCR_CFT_TOLERANCE = 1e-9  # of that record's README: parameters absolutely, others over max(1, largest)


def iql_of(h: dict[str, Any], **changes: Any) -> IQL:
    """The algorithm of a record of the first folder, while offline."""
    return IQL(
        expectile=h["expectile"],
        inverse_temperature=h["inverse_temperature"],
        advantage_weight_max=h["advantage_weight_max"],
        deterministic_actor=h["deterministic_actor"],
        actor_dropout=h["actor_dropout"] or 0.0,
        cosine_updates=h["cosine_steps"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
        value_learning_rate=h["value_lr"],
        hidden_sizes=(h["hidden_width"],) * 2,
        **changes,
    )


def iql_state(algorithm: IQL, tree: dict[str, Any]) -> IQLState:
    hidden, spec = hidden_sizes(tree["actor"]), Spec(5, 2)
    policy: Any = GaussianPolicy(*spec, hidden, tanh_mean=True)
    if algorithm.deterministic_actor:
        policy = DeterministicPolicy(*spec, hidden)
    critic_adam = Adam(algorithm.critic_learning_rate)
    return IQLState(
        actor=model(policy, tree["actor"], Adam(algorithm.actor_learning_rate)),
        critic=model(Critics(*spec, hidden), twin(tree, "critic"), critic_adam, twin(tree, "target_critic")),
        value=model(MLP((5, *hidden, 1)), tree["value"], Adam(algorithm.value_learning_rate)),
        updates=jnp.int32(0),
        origin=jnp.int32(0),
    )


def assert_iql_parameters(s: IQLState, after: dict[str, Any]) -> None:
    assert_parameters(s.actor.params, after["actor"], "actor")
    assert_parameters(s.critic.params, twin(after, "critic"), "critic")
    assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")
    assert_parameters(s.value.params, after["value"], "value")


@pytest.mark.parametrize("name", cases("iql_gaussian", "iql_deterministic_*", "iql_finetune_*"))
def test_iql_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Updates past the cosine's horizon are another phase's, which lets it rise again."""
    record = Record(name)
    h = record.hparams
    algorithm = iql_of(h)
    s = iql_state(algorithm, record.tree("init"))
    recipe = IQLRecipe(algorithm=replace(algorithm, cosine_updates=None), online_actor_schedule="torch_cosine_continue")
    clipped = 0
    for step in range(1, h["num_steps"] + 1):
        if step == h["cosine_steps"] + 1:
            online: Any = recipe.online_phase(2).algorithm
            algorithm, s = online, online.init(algorithm.export(s), Spec(5, 2), jax.random.key(0))
        at = f"step_{step}/draws"
        draws = tuple(jnp.asarray(record[f"{at}/{mask}"]) for mask in sorted(record.names(at)))
        s, metrics = UPDATE(algorithm, s, batch_of(record, step), draws, True)
        assert len(draws) == (2 if algorithm.actor_dropout else 0)
        assert_scalars(record, f"step_{step}/scalars", metrics)
        after = record.tree(f"step_{step}/after")
        assert_iql_parameters(s, after)
        assert int(s.updates) == int(after["total_steps"])
        clipped += int(metrics["num_clipped_weights"])
    assert clipped > 0 or "num_clipped_weights" in metrics
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


@pytest.mark.parametrize("name", cases("iql_gaussian", "iql_deterministic_*", "iql_finetune_*"))
def test_iql_networks_equal_the_probe(name: str) -> None:
    record = Record(name)
    s, batch = iql_state(iql_of(record.hparams), record.tree("init")), batch_of(record, 1)
    actor = s.actor(batch.obs)
    found = {"actor_output": actor if isinstance(actor, jax.Array) else actor[0]}
    found["value_output"] = s.value(batch.obs)[:, 0]
    found["critic_1_output"], found["critic_2_output"] = s.critic(batch.obs, batch.action)
    for probe in record.names("probe"):
        np.testing.assert_allclose(found[probe], record[f"probe/{probe}"], rtol=0, atol=1e-10)


def close(got: Any, want: np.ndarray, where: str) -> None:
    scale = max(1.0, np.abs(want).max())
    assert np.abs(np.asarray(got) - want).max() / scale <= OCR_CFT_TOLERANCE, where


@pytest.mark.parametrize("name", ["ocr_cft/iql_offline"] if cases("ocr_cft/iql_offline") else [])
def test_iql_equals_the_other_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded from another program; it also keeps intermediates and the gradients (0.1 of them is Adam's first m)."""
    record = Record(name)
    h = record.hparams
    algorithm = IQL(
        expectile=h["expectile"],
        inverse_temperature=h["inverse_temperature"],
        advantage_weight_max=h["exp_advantage_max"],
        cosine_updates=h["actor_lr_cosine_steps"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
        value_learning_rate=h["value_lr"],
        hidden_sizes=(h["actor_hidden_width"] if "actor_hidden_width" in h else h["critic_hidden_width"],) * 2,
    )
    s = iql_state(algorithm, record.tree("init"))
    for step in range(1, h["num_steps"] + 1):
        batch, at = batch_of(record, step), f"step_{step}"
        q, value = s.critic.slow(batch.obs, batch.action).min(0), s.value(batch.obs)[:, 0]
        next_value = s.value(batch.next_obs)[:, 0]
        found = {
            "next_value": next_value,
            "min_target_q": q,
            "value": value,
            "advantage": q - value,
            "td_target": batch.reward + h["discount"] * (1 - batch.terminal) * next_value,
            "policy_weight": jnp.minimum(jnp.exp(h["inverse_temperature"] * (q - value)), h["exp_advantage_max"]),
            "negative_log_prob": -gaussian_log_density(batch.action, *s.actor(batch.obs)).sum(-1),
        }
        for intermediate in record.names(f"{at}/intermediates"):
            close(found[intermediate], record[f"{at}/intermediates/{intermediate}"], f"{at} {intermediate}")
        s, metrics = UPDATE(algorithm, s, batch, (), True)
        scalars = metrics | {"policy_loss": metrics["actor_loss"]}
        scalars["actor_lr_after"] = h["actor_lr"] * jnp.asarray(algorithm.actor_rate(s, batch.reward))
        for scalar in record.names(f"{at}/scalars"):
            close(scalars[scalar], record[f"{at}/scalars/{scalar}"], f"{at} {scalar}")
        if step in h["parameters_recorded_after_steps"]:
            assert_iql_parameters(s, record.tree(f"{at}/after"))
        if step == 1:
            gradients = record.tree(f"{at}/gradients")
            of_critics = twin(gradients, "critic")
            for net, want in ((s.actor, gradients["actor"]), (s.critic, of_critics), (s.value, gradients["value"])):
                moments = net.opt_state[0].mu
                structure: Any = jax.tree.structure(moments)
                assert structure == jax.tree.structure(want)
                for m, gradient in zip(jax.tree.leaves(moments), jax.tree.leaves(want), strict=True):
                    close(m / (1 - h["adam"]["b1"]), np.asarray(gradient), "gradient")
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def awac_state(algorithm: AWAC, tree: dict[str, Any]) -> AWACState:
    hidden, spec = hidden_sizes(tree["actor"]), Spec(5, 2)
    critic_adam = Adam(algorithm.critic_learning_rate)
    return AWACState(
        actor=model(GaussianPolicy(*spec, hidden, tanh_mean=False), tree["actor"], Adam(algorithm.actor_learning_rate)),
        critic=model(Critics(*spec, hidden), twin(tree, "critic"), critic_adam, twin(tree, "target_critic")),
        updates=jnp.int32(0),
    )


@pytest.mark.parametrize("name", cases("awac"))
def test_awac_updates_equal_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h = record.hparams
    algorithm = AWAC(
        advantage_temperature=h["advantage_temperature"],
        advantage_weight_max=h["advantage_weight_max"],
        discount=h["discount"],
        target_update_rate=h["target_update_rate"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
    )
    s, batch = awac_state(algorithm, record.tree("init")), batch_of(record, 1)
    found = {"actor_mean": s.actor(batch.obs)[0]}
    found["critic_1_output"], found["critic_2_output"] = s.critic(batch.obs, batch.action)
    for probe in record.names("probe"):
        np.testing.assert_allclose(found[probe], record[f"probe/{probe}"], rtol=0, atol=1e-10)
    for step in range(1, h["num_steps"] + 1):
        names = ("target_next_policy_noise", "policy_noise")
        draws = AWACDraws(*(jnp.asarray(record[f"step_{step}/draws/{draw}"]) for draw in names))
        s, metrics = UPDATE(algorithm, s, batch_of(record, step), draws, True)
        assert_scalars(record, f"step_{step}/scalars", metrics)
        after = record.tree(f"step_{step}/after")
        assert_parameters(s.actor.params, after["actor"], "actor")
        assert_parameters(s.critic.params, twin(after, "critic"), "critic")
        assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


def test_the_folder_holds_the_cases() -> None:
    assert len(cases("iql_gaussian", "iql_deterministic_*", "iql_finetune_*")) == 3
    assert cases("awac") and cases("ocr_cft/iql_offline")
