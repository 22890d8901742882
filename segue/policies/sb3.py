"""A policy that Stable-Baselines3 saved: SAC, TD3, DDPG, PPO and A2C with `MlpPolicy`, without it and without PyTorch.

Its file is an archive with the settings (`data`, JSON) and the parameters (`policy.pth`, ../policies/torch_file.py).
Greedy actions: tanh(mu) of SAC and tanh(.) of TD3 and DDPG, scaled from [-1, 1] to the bounds; the mean of PPO and A2C.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from segue.core.types import PyTree
from segue.errors import UserError
from segue.nets.policies import DeterministicPolicy, GaussianPolicy, TanhGaussianPolicy
from segue.policies.foreign import ForeignPolicy
from segue.policies.torch_file import read_tensors

Layers = list[tuple[np.ndarray, np.ndarray]]  # (kernel [in, out], bias [out])
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ReLU": lambda x: np.maximum(x, 0), "Tanh": np.tanh}
OURS = {  # the beginnings of all names of parameters of each
    "SAC": ("actor.latent_pi.", "actor.mu.", "actor.log_std.", "critic.", "critic_target."),
    "TD3 or DDPG": ("actor.mu.", "actor_target.mu.", "critic.", "critic_target."),
    "PPO or A2C": ("log_std", "mlp_extractor.policy_net.", "mlp_extractor.value_net.", "action_net.", "value_net."),
}
ELSE = "give it as a function that calls its predict: FILE.py:function"


def load(path: Path, low: np.ndarray, high: np.ndarray) -> ForeignPolicy:
    """The policy of a .zip file. Raises UserError if it is none, or one of a kind that is not read."""
    settings, tensors = _contents(path)
    kind = _kind(path, tensors)
    _check(path, settings, tensors, kind)
    activation = _activation(path, settings, "Tanh" if kind == "PPO or A2C" else "ReLU")
    network: tuple[Any, PyTree] | None = None
    if kind == "SAC":
        hidden, mean = _layers(path, tensors, "actor.latent_pi"), _layer(path, tensors, "actor.mu")
        log_std = _layer(path, tensors, "actor.log_std")
        both = [np.concatenate(parts, -1) for parts in zip(mean, log_std, strict=True)]
        layers, native = [*hidden, mean], [*hidden, (both[0], both[1])]
        if activation == "ReLU":
            network = TanhGaussianPolicy(*_sizes(layers)), _params(native)
    elif kind == "TD3 or DDPG":
        layers = _layers(path, tensors, "actor.mu")
        if activation == "ReLU":
            network = DeterministicPolicy(*_sizes(layers)), _params(layers)
    else:
        layers = [*_layers(path, tensors, "mlp_extractor.policy_net"), _layer(path, tensors, "action_net")]
        if activation == "ReLU" and layers[-1][1].shape == low.shape:
            network = _box_gaussian(layers, tensors["log_std"], low, high)
    squashed = kind != "PPO or A2C"
    widths = [layer[0].shape for layer in layers]
    if any(first[1] != second[0] for first, second in pairwise(widths)):
        raise UserError(f"{path}: its layers {widths} do not fit each other: the file is damaged")

    def respond(observations: np.ndarray) -> np.ndarray:
        x = observations
        for kernel, bias in layers[:-1]:
            x = ACTIVATIONS[activation](x @ kernel + bias)
        x = x @ layers[-1][0] + layers[-1][1]
        if not squashed or x.shape[1] != len(low):
            return x
        return low + 0.5 * (np.tanh(x) + 1) * (high - low)

    hidden_sizes = "-".join(str(bias.size) for _, bias in layers[:-1])
    description = f"Stable-Baselines3 {kind}, {activation} {hidden_sizes or 'linear'}"
    return ForeignPolicy(str(path), description, low, high, respond, widths[0][0], network)


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "data" not in names or "policy.pth" not in names:
                raise UserError(
                    f"{path}: this is no Stable-Baselines3 file, or a damaged one: 'data' or 'policy.pth' is missing "
                    "in it; save one with model.save(PATH)"
                )
            settings = json.loads(archive.read("data"))
            parameters = archive.read("policy.pth")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: the file is damaged ({' '.join(str(error).split())}); copy it again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: the file is damaged (its 'data' are no settings); copy it again")
    return settings, read_tensors(parameters, f"{path} (policy.pth)")


def _kind(path: Path, tensors: dict[str, np.ndarray]) -> str:
    if "actor.mu.weight" in tensors:
        return "SAC"
    if "actor.mu.0.weight" in tensors:
        return "TD3 or DDPG"
    if "action_net.weight" in tensors:
        return "PPO or A2C"
    raise UserError(
        f"{path}: its parameters ({', '.join(sorted(tensors)[:3])}, ...) are those of no SAC, TD3, DDPG, PPO or A2C "
        f"policy; {ELSE}"
    )


def _check(path: Path, settings: dict[str, Any], tensors: dict[str, np.ndarray], kind: str) -> None:
    """Refuse what would act otherwise than its parameters alone say."""
    if settings.get("use_sde") or "actor.log_std" in tensors:
        raise UserError(f"{path}: it was trained with state-dependent exploration (use_sde), which is not read; {ELSE}")
    space = settings.get("observation_space")
    if "Dict" in str(space.get(":type:") if isinstance(space, dict) else space):
        raise UserError(f"{path}: its observations are a Dict (MultiInputPolicy), which is not read; {ELSE}")
    strange = [name for name in tensors if not name.startswith(OURS[kind])]
    if strange:
        raise UserError(
            f"{path}: its parameter '{strange[0]}' belongs to no MlpPolicy of {kind} (a CnnPolicy, or an extractor of "
            f"its own); {ELSE}"
        )
    extractor = _policy_setting(settings, "features_extractor_class")
    if extractor is not None and not str(extractor).rstrip("'>").endswith(".FlattenExtractor"):
        raise UserError(f"{path}: it has a features extractor of its own ({extractor}), which is not read; {ELSE}")
    if kind == "PPO or A2C" and "log_std" not in tensors:
        raise UserError(f"{path}: its actions are discrete; only continuous ones (Box) can be continued")
    for folder in (path.parent, path.parent / path.stem):
        beside = [file for file in folder.glob("*.pkl") if "vec" in file.name.lower() and "norm" in file.name.lower()]
        if beside:
            raise UserError(
                f"{path}: {beside[0]} beside it says that it was trained on normalised observations (VecNormalize), "
                "which the .zip does not hold; give a function that loads both and calls predict: FILE.py:function"
            )


def _policy_setting(settings: dict[str, Any], name: str) -> Any:
    given = settings.get("policy_kwargs")
    return given.get(name) if isinstance(given, dict) else None


def _activation(path: Path, settings: dict[str, Any], default: str) -> str:
    given = _policy_setting(settings, "activation_fn")
    if given is None:
        return default
    name = str(given).rstrip("'>").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise UserError(f"{path}: its activation {given} is not read ({' and '.join(ACTIVATIONS)} are); {ELSE}")
    return name


def _layer(path: Path, tensors: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A linear layer as float32."""
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise UserError(f"{path}: its layer '{name}' is no linear one with a bias, which is not read; {ELSE}")
    return weight.T.astype(np.float32), bias.astype(np.float32)


def _layers(path: Path, tensors: dict[str, np.ndarray], name: str) -> Layers:
    """The linear layers of a sequence in which each is followed by its activation."""
    parts = (key.removeprefix(f"{name}.").partition(".")[0] for key in tensors if key.startswith(f"{name}."))
    numbers = sorted({int(part) for part in parts if part.isdecimal()})
    if numbers != list(range(0, 2 * len(numbers), 2)):
        raise UserError(f"{path}: '{name}' holds more than linear layers and activations, which is not read; {ELSE}")
    return [_layer(path, tensors, f"{name}.{i}") for i in numbers]


def _sizes(layers: Layers) -> tuple[int, int, tuple[int, ...]]:
    """S, A and hidden widths."""
    return len(layers[0][0]), layers[-1][1].size, tuple(bias.size for _, bias in layers[:-1])


def _params(layers: Layers) -> PyTree:
    return {f"layers_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(layers)}


def _box_gaussian(layers: Layers, log_std: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[Any, PyTree]:
    """PPO's Gaussian, which is in the environment's units, in ours: the bounds' scale goes into its last layer."""
    scale = (2 / (high - low)).astype(np.float32)
    kernel, bias = layers[-1]
    last = kernel * scale, (bias - low.astype(np.float32)) * scale - 1
    params = _params([*layers[:-1], last]) | {"log_std": log_std.astype(np.float32) + np.log(scale)}
    return GaussianPolicy(*_sizes(layers), tanh_mean=False), params
