"""Graphs of one BatchNormalization for the runners of ONNX runtimes."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

NAMES = ("scale", "B", "input_mean", "input_var")
DECAY, EPS = 0.9, 1e-5  # the operator's defaults, given nowhere


def training(opset):
    """A training step: x and the four arrays give y and the moved statistics (opset 14, 15)."""
    node = helper.make_node(
        "BatchNormalization", ["x", *NAMES], ["y", "mean", "var"], training_mode=1
    )
    inputs = [_any("x"), *(_any(name) for name in NAMES)]
    return _model(node, opset, inputs, ["y", "mean", "var"])


def inference(opset, arrays, names=NAMES):
    """Inference with the arrays as initializers, under the operator's names."""
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"])
    values = [numpy_helper.from_array(np.array(a), n) for a, n in zip(arrays, names, strict=True)]
    return _model(node, opset, [_any("x")], ["y"], values)


def _any(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _model(node, opset, inputs, outputs, initializers=()):
    graph = helper.make_graph(
        [node], "bn", inputs, [_any(name) for name in outputs], list(initializers)
    )
    # The oldest format that has the opset: readers of other libraries lag behind.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
