"""A policy in an ONNX file, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segue.errors import UserError
from segue.policies.foreign import ForeignPolicy, as_rows, unpackable

TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}
ACTION_NAMES = ("action", "actions")


def load(path: Path, low: np.ndarray, high: np.ndarray) -> ForeignPolicy:
    """The graph's output named `action`, or else its first. Raises UserError."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: ONNX files are run by onnxruntime: pip install 'segue[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # its networks are small: threads would only wait for each other
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common one
        raise UserError(f"{unpackable(str(path), error)}: this is no ONNX file that can be run") from None
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise UserError(f"{path}: it has the inputs {names}; export a policy that takes the observation alone")
    name, shape, kind = inputs[0].name, inputs[0].shape, TYPES.get(inputs[0].type)
    if kind is None or len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] not in (1, None) and _fixed(shape[0])):
        raise UserError(
            f"{path}: its input {name} is {inputs[0].type} {shape}; export one of float32 or float64 and of shape "
            "[batch, observation], the batch free or 1"
        )
    outputs = [one.name for one in session.get_outputs()]
    output = next((known for known in ACTION_NAMES if known in outputs), outputs[0])
    single = len(shape) == 1 or _fixed(shape[0])

    def respond(observations: np.ndarray) -> np.ndarray:
        observations = observations.astype(kind)
        try:
            if not single:
                return as_rows(str(path), session.run([output], {name: observations})[0], len(observations))
            rows = observations if len(shape) == 1 else observations[:, None]
            return np.stack([np.ravel(session.run([output], {name: row})[0]) for row in rows])
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{unpackable(str(path), error)}: the policy failed") from None

    width = shape[-1] if _fixed(shape[-1]) else None
    return ForeignPolicy(str(path), f"ONNX policy, output {output}", low, high, respond, width)


def _fixed(size: int | str | None) -> bool:
    return isinstance(size, int)
