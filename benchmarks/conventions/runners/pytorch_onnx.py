"""PyTorch's layers, exported to ONNX, and inferred by ONNX Runtime."""

import io
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from .pytorch import BatchNorm
from .recording import record

NAMES = ("scale", "B", "input_mean", "input_var")


class Exported(BatchNorm):
    """What the exporter writes: initializers, and the attributes momentum and epsilon."""

    suffix = ".onnx"

    def __init__(self, given, rank):
        super().__init__(given, rank)
        self.example = torch.from_numpy(given.test(rank))
        _, attributes = self._exported()[1:]
        self.momentum, self.eps = attributes["momentum"], attributes["epsilon"]

    def _exported(self):
        program = torch.onnx.export(self.layer.eval(), (self.example,), dynamo=True, verbose=False)
        file = io.BytesIO()
        program.save(file)
        model = onnx.load_model_from_string(file.getvalue())
        (node,) = (n for n in model.graph.node if n.op_type == "BatchNormalization")
        values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        arrays = {name: values[given] for name, given in zip(NAMES, node.input[1:], strict=True)}
        return file.getvalue(), arrays, {a.name: a.f for a in node.attribute}

    def stored(self):
        return self._exported()[1]

    def save(self, path):
        Path(path).write_bytes(self._exported()[0])

    def infer(self, x):
        session = onnxruntime.InferenceSession(
            self._exported()[0], providers=["CPUExecutionProvider"]
        )
        return session.run(None, {session.get_inputs()[0].name: x})[0]


if __name__ == "__main__":
    record({"exported": Exported}, "torch", "onnx", "onnxscript", "onnxruntime")
