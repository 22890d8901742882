"""Train tiny Stable-Baselines3 agents and save them as others would: the files that tests of foreign policies read.

    python tools/make_foreign_policies.py --out tests/data/foreign

Needs torch, stable-baselines3 and onnx, which Segue itself does not.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from stable_baselines3 import PPO, SAC, TD3

ENVIRONMENT = "InvertedPendulum-v5"


def small() -> dict[str, Any]:
    """Settings of every agent; a fresh dict, as agents write to it."""
    return {"policy_kwargs": {"net_arch": [8, 8]}, "seed": 0, "device": "cpu"}


AGENTS: dict[str, Callable[[gym.Env], Any]] = {
    "sac": lambda env: SAC("MlpPolicy", env, learning_starts=100, buffer_size=1000, **small()),
    "td3": lambda env: TD3("MlpPolicy", env, learning_starts=100, buffer_size=1000, **small()),
    "ppo": lambda env: PPO("MlpPolicy", env, n_steps=128, **small()),
}


class InBounds(torch.nn.Module):
    """TD3's actor, its actions scaled from [-1, 1] to the environment's bounds."""

    def __init__(self, actor: torch.nn.Module, low: np.ndarray, high: np.ndarray):
        super().__init__()
        self.actor = actor
        self.low, self.width = torch.as_tensor(low), torch.as_tensor(high - low)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        """[n, S] -> [n, A]."""
        return self.low + 0.5 * (self.actor(observation) + 1) * self.width


def graph(actor: torch.nn.Module, low: np.ndarray, high: np.ndarray, kind: type, rows: int | str) -> onnx.ModelProto:
    """TD3's actor as an ONNX graph of `kind` (a float type of NumPy) for batches of `rows`.

    Its first output is the action in [-1, 1], the one that is named `action` is in the environment's bounds.
    """
    nodes, constants, x = [], [], "observation"
    layers = [part for part in actor if isinstance(part, torch.nn.Linear)]

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    for i, layer in enumerate(layers):
        weight = constant(f"weight_{i}", layer.weight.detach().numpy())
        bias = constant(f"bias_{i}", layer.bias.detach().numpy())
        nodes.append(helper.make_node("Gemm", [x, weight, bias], [f"linear_{i}"], transB=1))
        x = "scaled" if i == len(layers) - 1 else f"hidden_{i}"
        nodes.append(helper.make_node("Tanh" if x == "scaled" else "Relu", [f"linear_{i}"], [x]))
    nodes.append(helper.make_node("Mul", [x, constant("half_width", (high - low) / 2)], ["product"]))
    nodes.append(helper.make_node("Add", ["product", constant("middle", (high + low) / 2)], ["action"]))
    element = TensorProto.FLOAT if kind is np.float32 else TensorProto.DOUBLE
    sizes = (layers[0].in_features, layers[-1].out_features)
    inputs = [helper.make_tensor_value_info("observation", element, [rows, sizes[0]])]
    outputs = [helper.make_tensor_value_info(name, element, [rows, sizes[1]]) for name in ("scaled", "action")]
    made = helper.make_graph(nodes, "policy", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def observations(agents: dict[str, Any], env: gym.Env) -> np.ndarray:
    """[24, S] float32: states of the task under each agent, and far ones at which actions saturate."""
    obs = [env.reset(seed=0)[0]]
    for agent in agents.values():
        for _ in range(5):
            action, _ = agent.predict(obs[-1], deterministic=True)
            step = env.step(action)
            obs.append(env.reset()[0] if step[2] or step[3] else step[0])
    far = np.random.default_rng(0).normal(size=(8, len(obs[0]))) * 10
    return np.concatenate([np.stack(obs), far]).astype(np.float32)


def forget_this_machine(path: Path) -> None:
    """Take out of an archive where it was made: source paths that TorchScript notes, SB3's line on the system."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name == "system_info.txt":
                content = re.sub(rb"- OS: .*", b"- OS: Linux", content)
            archive.writestr(name, content)


def make(out: Path, steps: int) -> None:
    """Write every file to the folder `out`."""
    torch.set_num_threads(1)  # on a busy machine threads would wait for each other for minutes
    out.mkdir(parents=True, exist_ok=True)
    env = gym.make(ENVIRONMENT)
    agents = {name: agent(env).learn(steps) for name, agent in AGENTS.items()}
    obs = observations(agents, env)
    actions = {name: agent.predict(obs, deterministic=True)[0] for name, agent in agents.items()}
    for name, agent in agents.items():
        agent.save(out / name)
        forget_this_machine(out / f"{name}.zip")
    actor, low, high = agents["td3"].actor.mu, env.action_space.low, env.action_space.high
    onnx.save(graph(actor, low, high, np.float32, "batch"), out / "policy.onnx")
    onnx.save(graph(actor, low, high, np.float64, 1), out / "one_row_float64.onnx")
    torch.jit.trace(InBounds(actor, low, high), torch.as_tensor(obs)).save(str(out / "policy.pt"))
    forget_this_machine(out / "policy.pt")
    np.savez(out / "expected.npz", observations=obs, **actions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    parser.add_argument("--steps", type=int, default=500, help="environment steps of training of each agent")
    options = parser.parse_args()
    make(options.out, options.steps)
