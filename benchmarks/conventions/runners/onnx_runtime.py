"""ONNX Runtime on the CPU."""

import onnxruntime

from . import onnx_reference
from .recording import record


def _runner(self, model):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda feeds: session.run(None, feeds)


def _variant(base):
    return type(base.__name__, (base,), {"runner": _runner})


if __name__ == "__main__":
    record(
        {
            "opset 15": _variant(onnx_reference.Training),
            "opset 14": _variant(onnx_reference.Opset14),
            "opset 15, inference": _variant(onnx_reference.Inference15),
            "opset 9, inference": _variant(onnx_reference.Inference9),
            "opset 7, inference": _variant(onnx_reference.Inference7),
        },
        "onnxruntime", "onnx",
    )  # fmt: skip
