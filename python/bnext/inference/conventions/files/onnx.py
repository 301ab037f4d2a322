"""ONNX models: the BatchNormalization nodes whose parameters and statistics are constants."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bnext.inference.conventions.files.contents import Contents, Facts, library
from bnext.inference.conventions.libraries import CONVENTIONS

__all__ = ["read_onnx"]

NAMES = CONVENTIONS["onnx"].names


def read_onnx(path: Path) -> Contents:
    """Read a model by onnx' own reader."""
    onnx = library("onnx", "ONNX models")
    try:
        model = onnx.load(path)
    except onnx.onnx_cpp2py_export.checker.ValidationError as error:
        raise ValueError(f"{path}: expected an ONNX model, got {error}") from None
    except Exception as error:  # of protobuf, in any of its packages
        if type(error).__name__ != "DecodeError":
            raise
        raise ValueError(f"{path}: expected an ONNX model, got {error}") from None
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values = [a.t for a in node.attribute if a.name == "value"]
            constants |= dict(zip(node.output, values, strict=False))
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]  # of layers with equal arrays
    arrays: dict[str, Any] = {}
    facts: dict[str, Facts] = {}
    # Exporters of PyTorch copy running_var; what a runtime of ONNX trains is biased.
    bessel = True if model.producer_name == "pytorch" else None
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        inputs = dict(zip(NAMES, node.input[1:5], strict=True))
        prefix = f"{node.name or node.output[0]}/"
        if not all(name in constants for name in inputs.values()):
            warnings.warn(
                f"{prefix[:-1]}: left out, since the graph computes its statistics or parameters",
                UserWarning, stacklevel=2,
            )  # fmt: skip
            continue
        if prefix in facts:
            prefix = f"{node.output[0]}/"
        for name, source in inputs.items():
            arrays[prefix + name] = np.array(onnx.numpy_helper.to_array(constants[source]))
        numbers = {a.name: a.f for a in node.attribute if a.name in ("epsilon", "momentum")}
        facts[prefix] = Facts(_short(numbers), bessel)
    writer = f"{model.producer_name} {model.producer_version}".strip()
    return Contents(arrays, ("onnx",), facts, writer)


def _short(numbers: dict[str, float]) -> dict[str, float]:
    """Give float32 attributes as the decimal numbers that they were."""
    return {name: float(str(np.float32(value))) for name, value in numbers.items()}
