"""Acting and initialisation of every policy and network in the record."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segue.core.algorithm import Algorithm
from segue.core.learn import act, act_greedily
from segue.core.types import Spec
from segue.methods.awac import AWAC
from segue.methods.bc import BC
from segue.methods.cql import CQL
from segue.methods.iql import IQL, IQLCritics
from segue.methods.spot import SPOT
from segue.methods.ssar import StateAdaptive
from segue.methods.td3_bc import TD3BC
from segue.nets.networks import Critics
from segue.nets.policies import DeterministicPolicy
from segue.recipes.cql import CalQLRecipe
from segue.recipes.ssar import SSARCQLRecipe
from tests.golden_files import Record, acting_state, assert_near, cases, explored, hidden_sizes

ACTING_TOLERANCE = 2e-6  # float32 in the record too
HIDDEN: dict[str, Any] = {"hidden_sizes": (16, 16)}
LAST_BOUNDS = {"spot/actor": 1e-3, "spot/critic": 3e-3}
POLICIES: dict[str, Algorithm] = {
    "td3bc": TD3BC(online_action_noise=0.0, **HIDDEN),  # with SSAR it acts with pi(s) alone (ssar.md 2.9.4)
    "iql_gaussian": IQL(**HIDDEN),
    "iql_deterministic": IQL(deterministic_actor=True, online_action_noise=0.0, **HIDDEN),  # noise: loop records
    "awac": AWAC(hidden_sizes=(16, 16, 16)),
    "cql": CQL(hidden_sizes=(16, 16, 16), critic_hidden_sizes=(16,)),
}


@pytest.mark.parametrize("name", cases("acting"))
def test_acting_equals_the_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no draw is recorded, the policy acts in training as in evaluation.

    AWAC's recorded actions are clipped only when they are executed, evaluation's not even then: ours always are.
    """
    record = Record(name)
    policies = {key.split("/")[0] for key in record.file.files if "/" in key}
    assert policies == set(POLICIES)
    obs = record["observations"].astype(np.float32)
    for policy, algorithm in POLICIES.items():
        params = record.tree(f"{policy}/actor")
        state = acting_state(algorithm, params)
        wanted = np.clip(record[f"{policy}/eval/actions"], -1, 1)
        found = act_greedily(algorithm, state, obs)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ACTING_TOLERANCE, err_msg=policy)
        wanted = np.clip(record[f"{policy}/train/actions"], -1, 1)
        if f"{policy}/train/standard_normal" in record.file.files:
            found = explored(algorithm, params, obs, record.file[f"{policy}/train/standard_normal"])
        else:
            six = jax.tree.map(lambda x: np.broadcast_to(x, (6, *x.shape)), state)
            found = act(algorithm, True, six, obs, jax.random.split(jax.random.key(0), 6), np.int32(0))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=ACTING_TOLERANCE, err_msg=policy)
    with capsys.disabled():
        print(f"\ngolden case passed: {name} ({', '.join(POLICIES)})")


def networks(spec: Spec) -> dict[str, Any]:
    """Record's name -> fresh parameters of one of our networks."""

    def fresh() -> dict[str, Any]:
        key = jax.random.key(0)
        ssar = TD3BC(StateAdaptive(), critic_layer_norm=True).init({}, spec, key)
        plain = TD3BC().init({}, spec, key)
        selector = IQLCritics().init({}, spec, key)
        awac = AWAC().init({}, spec, key)
        spot = SPOT(actor_last_bound=1e-3, critic_last_bound=3e-3).init({}, spec, key)
        cql = CQL().init({}, spec, key)
        cql_ssar = SSARCQLRecipe().host.init({}, spec, key)
        cal_ql = CalQLRecipe().algorithm.init({}, spec, key)
        return {
            "td3bc_sa/actor": ssar.actor.params,
            "td3bc_sa/critic": ssar.critic.params[0],
            "sa/coefficient_net": ssar.beta.net.params,
            "td3bc/critic": plain.critic.params[0],
            "iql_selector/critic": selector.critic.params[1],
            "iql_selector/value": selector.value.params,
            "iql/actor_gaussian": IQL().init({}, spec, key).actor.params,
            "awac/actor": awac.actor.params,
            "awac/critic": awac.critic.params[0],
            "bc/actor": BC().init({}, spec, key).actor.params,
            "spot/actor": spot.actor.params,
            "spot/critic": spot.critic.params[0],
            "spot/vae": {f"layers_{i}": layer for i, layer in enumerate(layers_of(spot.vae))},
            "cql/actor": cql.actor.params,
            "cql/critic": cql.critic.params[0],
            "cql_sa/actor": cql_ssar.actor.params,
            "cql_sa/critic": cql_ssar.critic.params[0],
            "calql/actor": cal_ql.actor.params,
            "calql/critic": cal_ql.critic.params[1],
            "cql_finetune/actor": cal_ql.actor.params,  # Cal-QL is the fine-tuned CQL with a bound
            "cql_finetune/critic": cal_ql.critic.params[0],
            "scalars": {"log_alpha": cql_ssar.temperature.params, "log_alpha_prime": cql_ssar.multiplier.params},
        }

    parameters: dict[str, Any] = jax.tree.map(np.asarray, jax.jit(fresh)())
    return parameters


def orthogonality(kernel: np.ndarray) -> tuple[float, float]:
    """Gain of an orthogonal kernel, and the largest entry of its products that should not be there, over gain^2."""
    kernel = kernel.astype(np.float64)
    products = kernel @ kernel.T if kernel.shape[0] < kernel.shape[1] else kernel.T @ kernel
    square = products.diagonal().mean()
    return float(np.sqrt(square)), float(np.abs(products / square - np.eye(len(products))).max())


def layers_of(vae: Any) -> list[Any]:
    """The auto-encoder's layers in the order of the record."""
    return [layer for part in ("encoder", "encoder_mean", "encoder_log_std", "decoder") for layer in vae[part].values()]


@pytest.mark.parametrize("name", cases("initialisation"))
def test_initialisation_has_the_recorded_statistics(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides are one random draw, so the tolerances are those of samples.

    A uniform's std from n samples has relative error sqrt((kurtosis - 1) / 4 n) = sqrt(0.2 / n): five of them, doubled
    because the record is a sample too. The largest of n lies below the bound by about bound / n: twenty of those.
    A wrong rule shows: the record's other rules (orthogonal, Xavier) are off by tens of per cent. Orthogonal kernels
    are known by their products: their largest entry has no bound, so it is not compared.
    """
    record = Record(name)
    h = record.hparams
    found = networks(Spec(h["observation_dim"], h["action_dim"]))
    scalars = found.pop("scalars")
    for method in ("cql_sa", "calql"):
        assert {key: float(record[f"{method}/{key}"]) for key in scalars} == scalars
    recorded = {"/".join(key.split("/")[:2]) for key in record.file.files if key.count("/") == 2}
    assert recorded == set(found)
    for net, params in found.items():
        if "log_std" in params:
            np.testing.assert_array_equal(params["log_std"], record[f"{net}/log_std"])
        for scalar in {"log_std_multiplier", "log_std_offset"} & set(params):
            assert params[scalar] == record[f"{net}/{scalar}"]
        orthogonal = record[f"{net}/orthogonality_error"][0] < 1e-5
        layers = [params[f"layers_{i}"] for i in range(sum(key.startswith("layers_") for key in params))]
        assert [x["kernel"].shape for x in layers] == [tuple(x) for x in record[f"{net}/kernel_shape"].astype(int)]
        for i, layer in enumerate(layers):
            kernel, bias, where = layer["kernel"], layer["bias"], f"{net} layer {i}"
            std, largest = float(record[f"{net}/kernel_std"][i]), float(record[f"{net}/kernel_max_abs"][i])
            assert abs(kernel.std() / std - 1) < 10 * np.sqrt(0.2 / kernel.size), where
            if orthogonal:
                gain, error = orthogonality(kernel)
                assert abs(gain / float(record[f"{net}/orthogonal_gain"][i]) - 1) < 1e-5 and error < 1e-5, where
            else:
                assert abs(np.abs(kernel).max() / largest - 1) < 20 / kernel.size, where
            low, high = float(record[f"{net}/bias_min"][i]), float(record[f"{net}/bias_max"][i])
            if net == "sa/coefficient_net" or low == high == 0:  # constants
                np.testing.assert_allclose([bias.min(), bias.max()], [low, high], rtol=0, atol=1e-7)
                continue
            bound = kernel.shape[0] ** -0.5  # what the recorded biases respect too
            if i == len(layers) - 1:
                bound = LAST_BOUNDS.get(net, bound)
            assert max(abs(low), abs(high), np.abs(bias).max()) <= bound, where
            if bias.size > 100:
                assert bias.min() < -0.9 * bound and bias.max() > 0.9 * bound, where
    critics = found["td3bc_sa/critic"] | {f"cql_{key}": value for key, value in found["cql_sa/critic"].items()}
    norms = [params for key, params in critics.items() if "norm_" in key]
    assert len(norms) == 2 + 3
    for norm in norms:
        assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()
    with capsys.disabled():
        print(f"\ngolden case passed: {name} ({', '.join(sorted(found))})")


@pytest.mark.parametrize("name", cases("ocr_cft/network_functions"))
def test_networks_equal_the_other_record(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Deterministic policy, critics with and without layer norms, one and several actions; gradients. In float64."""
    with jax.enable_x64(True):
        record = Record(f"ocr_cft/{name}")
        spec, tree = Spec(record.hparams["obs_dim"], record.hparams["action_dim"]), record.tree("init")
        policy, normed, plain = (
            tree[role] for role in ("deterministic_actor", "critic_with_layer_norm", "critic_without_layer_norm")
        )
        actor = DeterministicPolicy(*spec, hidden_sizes(policy))
        norms = Critics(*spec, hidden_sizes(normed), layer_norm=True, count=1)
        none = Critics(*spec, hidden_sizes(plain), count=1)

        @jax.jit
        def values(obs: jax.Array, action: jax.Array, several: jax.Array) -> dict[str, jax.Array]:
            return {
                "deterministic_action": actor.apply(policy, obs),
                "q_with_layer_norm": norms.apply((normed,), obs, action)[0],
                "q_with_layer_norm_many_actions": norms.of_several((normed,), obs, several)[0],
                "q_without_layer_norm": none.apply((plain,), obs, action)[0],
            }

        @jax.jit
        def gradients(obs: jax.Array, action: jax.Array) -> dict[str, Any]:
            return {
                "deterministic_actor": jax.grad(lambda p: actor.apply(p, obs).sum())(policy),
                "critic_with_layer_norm": jax.grad(lambda p: norms.apply((p,), obs, action).sum())(normed),
            }

        for step in range(1, record.hparams["num_steps"] + 1):
            at, inputs = f"step_{step}", ("observations", "actions", "actions_per_observation")
            obs, action, several = (jnp.asarray(record[f"{at}/batch/{key}"]) for key in inputs)
            for key, value in values(obs, action, several).items():
                assert_near(value, record[f"{at}/outputs/{key}"], f"{at} {key}")
            for role, gradient in gradients(obs, action).items():
                wanted = record.tree(f"{at}/gradients/{role}")
                jax.tree.map(lambda a, b, where=f"{at} {role}": assert_near(a, b, where), gradient, wanted)
    with capsys.disabled():
        print(f"\ngolden case passed: {name} (deterministic policy, critics)")
