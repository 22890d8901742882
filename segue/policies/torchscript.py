"""A policy in a TorchScript file, run by PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from segue.errors import UserError
from segue.policies.foreign import ForeignPolicy, as_rows, unpackable


def load(path: Path, low: np.ndarray, high: np.ndarray) -> ForeignPolicy:
    """The scripted or traced module, observations [n, S] -> actions [n, A]. Raises UserError."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: TorchScript files are run by PyTorch: pip install 'segue[torch]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch would have people export otherwise
            module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(
            f"{unpackable(str(path), error)}: this is no TorchScript file; save one with "
            "torch.jit.trace(policy, observations).save(PATH)"
        ) from None
    kind = next((parameter.dtype for parameter in module.parameters()), torch.float32)

    def respond(observations: np.ndarray) -> np.ndarray:
        try:
            with torch.no_grad():
                actions = module(torch.as_tensor(observations, dtype=kind))
        except RuntimeError as error:
            raise UserError(f"{unpackable(str(path), error)}: the policy failed") from None
        if not isinstance(actions, torch.Tensor):
            raise UserError(f"policy {path} gives a {type(actions).__name__}: save one that gives the action alone")
        return as_rows(str(path), actions.numpy(), len(observations))

    return ForeignPolicy(str(path), "TorchScript policy", low, high, respond)
