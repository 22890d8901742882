"""BC and SPOT against the authors' recorded numbers, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.model import Adam
from segue.core.types import Spec
from segue.methods import bc, spot, spot_vae
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy
from segue.nets.vae import ActionVAE
from tests.golden_files import (
    Record,
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
NETWORKS = ("actor", "target_actor", "critic", "target_critic")


def passed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\ngolden case passed: {name}")


@pytest.mark.parametrize("name", cases("bc"))
def test_bc_equals_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h, params = record.hparams, record.tree("init")["actor"]
    algorithm = bc.BC()
    net = DeterministicPolicy(h["observation_dim"], h["action_dim"], hidden_sizes(params))
    s = bc.State(model(net, params, Adam(h["actor_lr"])), jnp.int32(0))
    np.testing.assert_allclose(s.actor(batch_of(record, 1).obs), record["probe/actor_output"], rtol=0, atol=1e-10)
    for step in range(1, h["num_steps"] + 1):
        s, metrics = UPDATE(algorithm, s, batch_of(record, step), bc.NoDraws(), True)
        assert_scalars(record, f"step_{step}/scalars", metrics)
        after = record.tree(f"step_{step}/after")
        assert_parameters(s.actor.params, after["actor"], "actor")
        assert int(s.updates) == int(after["total_steps"])
    passed(name, capsys)


@pytest.mark.parametrize("name", cases("spot_vae"))
def test_the_auto_encoder_equals_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(name)
    h, params = record.hparams, record.tree("init")["vae"]
    algorithm = spot_vae.BehaviourVAE(h["vae_beta"])
    net = ActionVAE(h["observation_dim"], h["action_dim"], (h["vae_hidden_width"],) * 2)
    assert net.latent_dim == h["vae_latent_dim"]
    s = spot_vae.State(model(net, params, Adam(h["vae_lr"])), jnp.int32(0))
    first = batch_of(record, 1)
    mean, log_std = net.encode(params, first.obs, first.action)
    found = {"vae_latent_mean": mean, "vae_latent_std": jnp.exp(log_std)}
    found["vae_decoded_at_mean"] = net.decode(params, first.obs, mean)
    for probe in record.names("probe"):
        np.testing.assert_allclose(found[probe], record[f"probe/{probe}"], rtol=0, atol=1e-10)
    for step in range(1, h["num_steps"] + 1):
        noise = jnp.asarray(record[f"step_{step}/draws/vae_latent_noise"])[:, None]
        s, metrics = UPDATE(algorithm, s, batch_of(record, step), noise, True)
        assert_scalars(record, f"step_{step}/scalars", metrics)
        assert_parameters(s.vae.params, record.tree(f"step_{step}/after")["vae"], "vae")
    passed(name, capsys)


def spot_of(h: dict[str, Any], phase: str) -> spot.SPOT:
    """The algorithm with the record's settings in `phase`."""
    return spot.SPOT(
        support_weight=h["support_weight"],
        support_weight_floor=h["support_weight_floor_fraction"],
        cooling_steps=h["max_online_steps"] if h["cool_support_weight"] else None,
        density_samples=h["num_density_samples"],
        iwae=h["iwae"],
        vae_kl_weight=h["vae_beta"],
        vae_hidden_sizes=(h["vae_hidden_width"],) * 2,
        batch_size=h["batch_size"],
        discount=h["online_discount" if phase == "online" else "discount"],
        target_update_rate=h["target_update_rate"],
        target_noise_std=h["target_noise_std"],
        target_noise_clip=h["target_noise_clip"],
        policy_update_interval=h["policy_update_interval"],
        actor_learning_rate=h["actor_lr"],
        critic_learning_rate=h["critic_lr"],
        hidden_sizes=(h["hidden_width"],) * 2,
        actor_dropout=0.0,
    )


def spot_models(record: Record) -> dict[str, Any]:
    """The recorded start state as the models of earlier phases."""
    h, tree = record.hparams, record.tree("init")
    sizes = (h["observation_dim"], h["action_dim"], hidden_sizes(tree["actor"]))
    policy, critics = DeterministicPolicy(*sizes), Critics(*sizes)
    vae = ActionVAE(*sizes[:2], (h["vae_hidden_width"],) * 2)
    return {
        "actor": model(policy, tree["actor"], Adam(h["actor_lr"]), tree["target_actor"]),
        "critic": model(critics, twin(tree, "critic"), Adam(h["critic_lr"]), twin(tree, "target_critic")),
        "vae": model(vae, tree["vae"], Adam(h["vae_lr"])),
        "updates": jnp.int32(int(tree["total_steps"])),
    }


@pytest.mark.parametrize("name", sorted(set(cases("spot_*")) - {"spot_vae"}))
def test_spot_equals_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each phase begins as it does for a user: with the models that the one before it exported."""
    record = Record(name)
    h, models = record.hparams, spot_models(record)
    spec, key = Spec(h["observation_dim"], h["action_dim"]), jax.random.key(0)
    phase = ""
    for step, named in enumerate(h["phases"], start=1):
        algorithm, batch = spot_of(h, named), batch_of(record, step)
        if named == "offline" and not phase:  # without a count of updates: it continues no policy
            s = algorithm.init({role: x for role, x in models.items() if role != "updates"}, spec, key)
            assert int(models["updates"]) == 0
        elif named != phase:
            s = algorithm.init(models | (algorithm.export(s) if phase else {}), spec, key)
            assert all(not leaf.any() for leaf in jax.tree.leaves((s.actor.opt_state, s.critic.opt_state)))
        phase = named
        policy_step = (int(s.updates) + 1) % h["policy_update_interval"] == 0
        at = f"step_{step}"
        codes = record.file[f"{at}/draws/density_latent_noise"] if policy_step else np.zeros((h["batch_size"], 1, 4))
        draws = spot.Draws(jnp.asarray(record[f"{at}/draws/target_policy_noise"]), jnp.asarray(codes, float), ())
        s, metrics = UPDATE(algorithm, s, batch, draws, policy_step)

        names = record.names(f"{at}/scalars")
        assert ("actor_loss" in names) == policy_step
        assert_scalars(record, f"{at}/scalars", metrics, names)
        after = record.tree(f"{at}/after")
        assert_parameters(s.actor.params, after["actor"], "actor")
        assert_parameters(s.actor.target, after["target_actor"], "target_actor")
        assert_parameters(s.critic.params, twin(after, "critic"), "critic")
        assert_parameters(s.critic.target, twin(after, "target_critic"), "target_critic")
        assert_parameters(s.vae, after["vae"], "vae")
        assert int(s.updates) == int(after["total_steps"])
        if phase == "online":
            assert int(s.updates - s.online_origin) == int(after["online_steps"])
    passed(name, capsys)


def test_the_folder_holds_the_cases() -> None:
    assert cases("bc") and cases("spot_vae") and cases("spot_offline_to_online") and cases("spot_iwae")
