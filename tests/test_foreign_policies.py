"""Policies of other programs: read as these programs act, and refused in one line where that cannot be."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from segue.errors import UserError
from segue.nets.policies import GaussianPolicy, action_of
from segue.policies import ForeignPolicy, labels, load_foreign_policy
from segue.policies.torch_file import read_tensors

FILES = Path(__file__).parent / "data" / "foreign"
LOW, HIGH = [-3.0], [3.0]  # of InvertedPendulum
EXPECTED = dict(np.load(FILES / "expected.npz"))
OBSERVATIONS = EXPECTED["observations"]
KERNEL = np.asarray([[0.3], [-0.4], [0.2], [0.1]], np.float32)


def load(reference: Any) -> ForeignPolicy:
    return load_foreign_policy(reference, LOW, HIGH)


def refused(reference: Any, *words: str) -> None:
    """Loading or asking raises a UserError of one line with these words."""
    with pytest.raises(UserError) as caught:
        load(reference).act(OBSERVATIONS)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def changed(tmp_path: Path, source: str, name: str, change: Callable[[bytes], bytes | None]) -> Path:
    """A copy of an SB3 file with one entry changed, or left out where `change` gives None."""
    target = tmp_path / source
    with zipfile.ZipFile(FILES / source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            content: bytes | None = old.read(entry)
            assert content is not None
            content = change(content) if entry == name else content
            if content is not None:
                new.writestr(entry, content)
    return target


def with_settings(tmp_path: Path, source: str, **settings: Any) -> Path:
    return changed(tmp_path, source, "data", lambda old: json.dumps(json.loads(old) | settings).encode())


def with_pickle(tmp_path: Path, change: Callable[[bytes], bytes], source: str = "sac.zip") -> Path:
    """A copy with the pickle in its policy.pth changed."""

    def change_parameters(old: bytes) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(old)) as before, zipfile.ZipFile(made, "w") as after:
            for entry in before.namelist():
                content = before.read(entry)
                after.writestr(entry, change(content) if entry.endswith("data.pkl") else content)
        return made.getvalue()

    return changed(tmp_path, source, "policy.pth", change_parameters)


# -- the same actions


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_the_actions_of_stable_baselines3(name: str) -> None:
    policy = load(FILES / f"{name}.zip")
    assert name.upper() in policy.description and "8-8" in policy.description
    np.testing.assert_allclose(policy.act(OBSERVATIONS), EXPECTED[name], rtol=0, atol=1e-5)
    assert np.ptp(EXPECTED[name]) > 0.1  # not all the same


@pytest.mark.parametrize(("name", "form"), [("sac", "tanh_gaussian"), ("td3", "deterministic")])
def test_networks_that_are_ours_go_on_as_ours(name: str, form: str) -> None:
    actor = load(FILES / f"{name}.zip").native()
    assert actor is not None and actor.net.kind == form and actor.net.hidden_sizes == (8, 8)
    actions = action_of(actor, jnp.asarray(OBSERVATIONS), jnp.zeros((len(OBSERVATIONS), 1)))
    np.testing.assert_allclose(3 * actions, EXPECTED[name], rtol=0, atol=1e-5)


def test_the_std_of_sac_comes_along() -> None:
    with zipfile.ZipFile(FILES / "sac.zip") as archive:
        tensors = read_tensors(archive.read("policy.pth"), "policy.pth")
    hidden = OBSERVATIONS
    for i in (0, 2):
        weight, bias = tensors[f"actor.latent_pi.{i}.weight"], tensors[f"actor.latent_pi.{i}.bias"]
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    wanted = hidden @ tensors["actor.log_std.weight"].T + tensors["actor.log_std.bias"]
    actor = load(FILES / "sac.zip").native()
    assert actor is not None
    np.testing.assert_allclose(actor(jnp.asarray(OBSERVATIONS))[1], np.clip(wanted, -20, 2), atol=1e-5)


def test_a_tanh_network_has_only_labels() -> None:
    assert load(FILES / "ppo.zip").native() is None


def test_ppo_with_relu_is_a_gaussian_in_our_units(tmp_path: Path) -> None:
    relu = {"net_arch": [8, 8], "activation_fn": "<class 'torch.nn.modules.activation.ReLU'>"}
    policy = load_foreign_policy(with_settings(tmp_path, "ppo.zip", policy_kwargs=relu), [-1.0], [3.0])
    actor = policy.native()
    assert actor is not None and isinstance(actor.net, GaussianPolicy)
    obs = jnp.asarray(OBSERVATIONS[:16])  # far from the edges
    mean, log_std = actor(obs)
    np.testing.assert_allclose(1 + 2 * mean, policy.act(OBSERVATIONS[:16]), atol=1e-5)
    np.testing.assert_allclose(log_std, np.log(0.5) + tensor("ppo.zip", "log_std"), atol=1e-6)


def tensor(source: str, name: str) -> np.ndarray:
    with zipfile.ZipFile(FILES / source) as archive:
        return read_tensors(archive.read("policy.pth"), source)[name]


@pytest.mark.parametrize("name", ["policy.onnx", "one_row_float64.onnx"])
def test_the_actions_of_onnx(name: str) -> None:
    """A free batch of float32; single rows of float64. The output is the one named action, not the first."""
    pytest.importorskip("onnxruntime")
    policy = load(FILES / name)
    np.testing.assert_allclose(policy.act(OBSERVATIONS), EXPECTED["td3"], rtol=0, atol=1e-5)
    assert policy.observation_dim == 4 and policy.native() is None


def test_the_actions_of_torchscript() -> None:
    pytest.importorskip("torch")
    policy = load(FILES / "policy.pt")
    np.testing.assert_allclose(policy.act(OBSERVATIONS), EXPECTED["td3"], rtol=0, atol=1e-5)


def linear(obs: np.ndarray) -> np.ndarray:
    """Takes one observation or many."""
    return obs @ KERNEL


@pytest.mark.parametrize(
    ("function", "calls"),
    [
        (linear, 1),
        (lambda obs: -obs[:, :1], 1),  # many only
        (lambda obs: obs.sum(-1), 1),  # without the actions' axis
        (lambda obs: float(obs[0]), len(OBSERVATIONS)),  # one only
        (lambda obs: obs[:1], len(OBSERVATIONS)),  # silently another thing for many
        (lambda obs: obs[:1] - obs.mean(), len(OBSERVATIONS)),
    ],
)
def test_a_function_of_one_observation_or_of_many(function: Any, calls: int) -> None:
    counted: list[int] = []

    def counting(obs: np.ndarray) -> Any:
        counted.append(1)
        return function(obs)

    policy = load(counting)
    first = policy.act(OBSERVATIONS)
    counted.clear()
    np.testing.assert_array_equal(policy.act(OBSERVATIONS), first)
    assert len(counted) == calls
    alone = [np.ravel(function(obs if calls > 1 else obs[None])) for obs in OBSERVATIONS]
    np.testing.assert_allclose(first, np.clip(alone, -3, 3), atol=1e-6)


def test_as_many_actions_as_observations_are_not_mixed_up() -> None:
    """Of a square batch, rows and columns look alike."""
    obs = np.asarray([[1, 2], [3, 4], [5, 6]], np.float32)
    for order in ([0, 1], [1, 0]):
        policy = load_foreign_policy(lambda obs, order=order: np.stack([obs[i] for i in order]), [-9, -9], [9, 9])
        for rows in (2, 3):
            np.testing.assert_array_equal(policy.act(obs[:rows]), obs[:rows, order])


def test_functions_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def policy(obs):\n    return 0.5 * obs[..., :1]\n\nbroken = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for reference in (f"{file}:policy", "mine:policy"):
        np.testing.assert_allclose(load(reference).act(OBSERVATIONS), np.clip(0.5 * OBSERVATIONS[:, :1], -3, 3))
    refused(f"{file}:broken", "no function 'broken'")
    refused("no_such.module:policy", "cannot be imported", "file.py:function")
    refused(f"{tmp_path}/other.py:policy", "there is no file")
    refused(file, "name the function in it")
    file.write_text("raise ValueError('two\\nlines')")
    refused(f"{file}:policy", "cannot be imported", "two lines")


def test_labels_are_the_actions_in_the_order_of_the_data() -> None:
    policy = load(FILES / "td3.zip")
    found = labels(policy, OBSERVATIONS, chunk=7)
    assert found.dtype == np.float32 and found.shape == (24, 1)
    np.testing.assert_allclose(found, EXPECTED["td3"], rtol=0, atol=1e-5)
    assert labels(policy, OBSERVATIONS[:0]).shape == (0, 1)


# -- what is refused


def test_sizes_that_do_not_fit() -> None:
    policy = load(FILES / "sac.zip")
    with pytest.raises(UserError, match=r"sac.zip takes observations of 4 numbers, the environment gives 3"):
        policy.act(OBSERVATIONS[:, :3])
    for name in ("sac.zip", "td3.zip", "ppo.zip"):
        with pytest.raises(UserError, match=rf"{name} gives actions of 1 numbers, the environment takes 2"):
            load_foreign_policy(FILES / name, [-1, -1], [1, 1]).act(OBSERVATIONS)
    refused(lambda obs: obs[..., :2], "gives actions of 2 numbers, the environment takes 1")


def test_sizes_of_onnx_that_do_not_fit() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"policy.onnx takes observations of 4 numbers, the environment gives 3"):
        load(FILES / "policy.onnx").act(OBSERVATIONS[:, :3])


def test_actions_that_are_no_numbers() -> None:
    refused(lambda obs: np.where(obs[..., :1] > 0, np.nan, 0.0), "not finite", "[0.00")
    refused(lambda obs: "left", "failed")
    refused(lambda obs: 1 / 0, "ZeroDivisionError")


def test_actions_out_of_bounds_are_clipped() -> None:
    assert set(load(lambda obs: 100 * obs[..., :1]).act(OBSERVATIONS).ravel()) >= {-3, 3}


@pytest.mark.parametrize("name", ["there_is_none.zip", "folder.zip", "policy.h5"])
def test_what_is_no_policy_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "policy.h5").write_bytes(b"")
    refused(tmp_path / name, name, ".onnx")


class Malicious:
    """What a pickle may do when it is loaded."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_file_is_refused_and_nothing_runs(protocol: int, tmp_path: Path) -> None:
    witness = tmp_path / "it_ran"
    content = pickle.dumps({"actor.mu.weight": Malicious(witness)}, protocol)
    path = with_pickle(tmp_path, lambda _: content)
    refused(path, "policy.pth")
    assert not witness.exists()
    pickle.loads(content)
    assert witness.exists()  # it would have


def test_names_that_a_file_of_tensors_needs_call_nothing(tmp_path: Path) -> None:
    """Allowed names, but not for a tensor: a call with other arguments, a storage by another name."""
    refused(with_pickle(tmp_path, lambda old: old.replace(b"torch\nFloatStorage", b"builtins\neval")), "builtins.eval")
    refused(with_pickle(tmp_path, lambda old: old.replace(b"OrderedDict\n", b"defaultdict\n")), "defaultdict")
    refused(with_pickle(tmp_path, lambda _: pickle.dumps([1, 2], 2)), "EMPTY_LIST")
    refused(with_pickle(tmp_path, lambda _: pickle.dumps({"a": 1}, 2)), "no state dict")


@pytest.mark.parametrize("stride", [b"\x01", b"\x00"])
def test_tensors_larger_than_their_numbers(stride: bytes, tmp_path: Path) -> None:
    """A size of 100 for a bias of 8 numbers; with a stride of 0 as little as one number could fill any memory."""
    size_and_stride = re.compile(rb"K\x08\x85(q.|r....)K\x01\x85", re.DOTALL)
    path = with_pickle(tmp_path, lambda old: size_and_stride.sub(b"Kd\x85\\1K" + stride + b"\x85", old))
    refused(path, "the numbers of a tensor are missing")


@pytest.mark.parametrize("name", ["sac.zip", "ppo.zip"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files(name: str, part: float, tmp_path: Path) -> None:
    content = (FILES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(part * len(content))])
    refused(path, name, "damaged")


def test_truncated_parameters(tmp_path: Path) -> None:
    refused(changed(tmp_path, "sac.zip", "policy.pth", lambda old: old[: len(old) // 2]), "damaged")
    refused(with_pickle(tmp_path, lambda old: old[: len(old) // 2]), "damaged")
    refused(changed(tmp_path, "sac.zip", "data", lambda old: old[:100]), "damaged")


def test_a_zip_that_is_no_sb3_file(tmp_path: Path) -> None:
    for missing in ("data", "policy.pth"):
        refused(changed(tmp_path, "td3.zip", missing, lambda _: None), "no Stable-Baselines3 file", "model.save")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_sde": True}, "use_sde"),
        ({"observation_space": {":type:": "<class 'gymnasium.spaces.dict.Dict'>"}}, "MultiInputPolicy"),
        ({"policy_kwargs": {"activation_fn": "<class 'torch.nn.modules.activation.ELU'>"}}, "ELU"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'mine.Extractor'>"}}, "mine.Extractor"),
    ],
)
def test_sb3_policies_of_other_kinds(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused(with_settings(tmp_path, "sac.zip", **settings), words, "FILE.py:function")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"actor.latent_pi.0.weight", b"actor.extractor.0.weight", "CnnPolicy"),
        (b"actor.latent_pi.2.", b"actor.latent_pi.3.", "more than linear layers"),
        (b"actor.mu.weight", b"actor.mv.weight", "SAC, TD3, DDPG, PPO or A2C"),
    ],
)
def test_sb3_parameters_of_other_kinds(old: bytes, new: bytes, words: str, tmp_path: Path) -> None:
    def with_length(name: bytes) -> bytes:  # BINUNICODE: four bytes of length, then the text
        return len(name).to_bytes(4, "little") + name

    def renamed(content: bytes) -> bytes:
        for match in set(re.findall(re.escape(old) + rb"(?:weight|bias)?", content)):
            content = content.replace(with_length(match), with_length(match.replace(old, new)))
        return content

    refused(with_pickle(tmp_path, renamed), words, "FILE.py:function")


def test_vecnormalize_beside_the_file(tmp_path: Path) -> None:
    path = with_settings(tmp_path, "sac.zip")
    load(path)
    (tmp_path / "sac").mkdir()
    for beside in (tmp_path / "vec_normalize.pkl", tmp_path / "sac" / "vecnormalize.pkl"):
        beside.write_bytes(b"")
        refused(path, str(beside), "normalised observations")
        beside.unlink()


@pytest.mark.parametrize(("module", "name"), [("onnxruntime", "policy.onnx"), ("torch", "policy.pt")])
def test_a_missing_extra_is_named(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused(FILES / name, "pip install 'segue[")


def test_broken_onnx_and_torchscript(tmp_path: Path) -> None:
    for module, name in (("onnxruntime", "broken.onnx"), ("torch", "broken.pt")):
        if importlib.util.find_spec(module):
            (tmp_path / name).write_bytes(b"no graph")
            refused(tmp_path / name, name)


# -- against the program itself


def maker() -> Any:
    path = Path(__file__).parent.parent / "tools" / "make_foreign_policies.py"
    spec = importlib.util.spec_from_file_location("make_foreign_policies", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layout(path: Path) -> tuple[set[str], set[str], dict[str, tuple[int, ...]]]:
    """Entries, settings, and shapes of parameters."""
    with zipfile.ZipFile(path) as archive:
        settings = set(json.loads(archive.read("data")))
        tensors = read_tensors(archive.read("policy.pth"), str(path))
        return set(archive.namelist()), settings, {name: x.shape for name, x in tensors.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's programs
def test_the_files_are_what_stable_baselines3_writes(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    pytest.importorskip("onnx")
    maker().make(tmp_path, 200)
    fresh = dict(np.load(tmp_path / "expected.npz"))
    for name in ("sac", "td3", "ppo"):
        assert layout(tmp_path / f"{name}.zip") == layout(FILES / f"{name}.zip")
        actions = load(tmp_path / f"{name}.zip").act(fresh["observations"])
        np.testing.assert_allclose(actions, fresh[name], rtol=0, atol=1e-5)
    for name in ("policy.onnx", "one_row_float64.onnx", "policy.pt"):
        actions = load(tmp_path / name).act(fresh["observations"])
        np.testing.assert_allclose(actions, fresh["td3"], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_several_actions_with_bounds_of_their_own(tmp_path: Path) -> None:
    """Every kind that is read, untrained: axes, bounds, activations and depths."""
    sb3 = pytest.importorskip("stable_baselines3")
    import gymnasium as gym
    import torch

    torch.set_num_threads(1)

    class Task(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
        action_space = gym.spaces.Box(np.asarray([-1, -2], np.float32), np.asarray([2, 0.5], np.float32))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(3, np.float32), {}

    obs: Any = (5 * np.random.default_rng(0).normal(size=(50, 3))).astype(np.float32)
    space = Task.action_space
    cases = [(kind, {"net_arch": sizes}) for kind in ("SAC", "TD3", "DDPG", "PPO", "A2C") for sizes in ([5], [5, 7, 4])]
    cases += [("SAC", {"activation_fn": torch.nn.Tanh}), ("PPO", {"activation_fn": torch.nn.ReLU}), ("PPO", {})]
    for i, (kind, policy_kwargs) in enumerate(cases):
        agent = getattr(sb3, kind)("MlpPolicy", Task(), policy_kwargs=dict(policy_kwargs), device="cpu", seed=i)
        agent.save(tmp_path / f"{i}.zip")
        policy = load_foreign_policy(tmp_path / f"{i}.zip", space.low, space.high)
        wanted = agent.predict(obs, deterministic=True)[0]
        np.testing.assert_allclose(policy.act(obs), wanted, rtol=0, atol=1e-5, err_msg=f"{kind} {policy_kwargs}")
        actor = policy.native()
        relu = policy_kwargs.get("activation_fn", torch.nn.Tanh if kind in ("PPO", "A2C") else torch.nn.ReLU)
        assert (actor is not None) == (relu is torch.nn.ReLU)
        if actor is not None:
            fraction = (action_of(actor, jnp.asarray(obs), jnp.zeros((50, 2))) + 1) / 2
            actions = space.low + fraction * (space.high - space.low)
            np.testing.assert_allclose(actions, wanted, rtol=0, atol=1e-5, err_msg=f"{kind} {policy_kwargs}")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("kind", "policy", "words"),
    [
        ("SAC", "MlpPolicy", "use_sde"),
        ("PPO", "MlpPolicy", "use_sde"),
        ("SAC", "MultiInputPolicy", "MultiInputPolicy"),
        ("PPO", "MultiInputPolicy", "MultiInputPolicy"),
        ("TD3", "CnnPolicy", "CnnPolicy"),
        ("A2C", "CnnPolicy", "CnnPolicy"),
        ("PPO", "discrete", "discrete"),
        ("DQN", "discrete", "SAC, TD3, DDPG, PPO or A2C"),
    ],
)
def test_what_stable_baselines3_writes_of_other_kinds(kind: str, policy: str, words: str, tmp_path: Path) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    import gymnasium as gym
    import torch

    torch.set_num_threads(1)
    vector = gym.spaces.Box(-1, 1, (4,))
    spaces: dict[str, Any] = {
        "MultiInputPolicy": gym.spaces.Dict({"observation": vector}),
        "CnnPolicy": gym.spaces.Box(0, 255, (36, 36, 1), np.uint8),
    }
    task: Any = gym.Env()
    task.observation_space = spaces.get(policy, vector)
    task.action_space = gym.spaces.Discrete(2) if policy == "discrete" else gym.spaces.Box(-3, 3, (1,))
    settings: dict[str, Any] = {"use_sde": True} if words == "use_sde" else {}
    if kind in ("SAC", "TD3", "DQN"):
        settings["buffer_size"] = 10
    agent = getattr(sb3, kind)(policy if policy in spaces else "MlpPolicy", task, device="cpu", **settings)
    agent.save(tmp_path / "agent.zip")
    refused(tmp_path / "agent.zip", words)
