#!/usr/bin/env bash
# torch.onnx.export(dynamo=True) of a model in training mode writes batch normalization of evaluation.
#
# Versions: torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, numpy 2.4.6; Python
#   3.11 on Linux (x86-64).
# Expected: the documentation of torch.onnx.export calls its argument `training` a "deprecated
#   option. Instead, set the training mode of the model before exporting". So the graph of a model in
#   training mode normalizes by the batch: ONNX has BatchNormalization with training_mode = 1 for it.
# Behaviour: BatchNormalization has no training_mode, and the running statistics are constants of
#   the graph. ONNX Runtime gives what the model gives in evaluation. Where the layer follows a
#   convolution, the default optimize=True multiplies them into each other, and no
#   BatchNormalization is left. A layer with track_running_stats=False is exported right, from
#   means that the graph computes. PyTorch's one warning says that a model in training mode "may
#   lead to different behavior during inference".
# Cause: onnxscript's translation of aten::_native_batch_norm_legit sets `training = False` over
#   its argument, as "a temporary fix"
#   (onnxscript/function_libs/torch_lib/ops/core.py, aten_native_batch_norm).
# Output seen:
#   torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0
#   BatchNorm2d: BatchNormalization, training_mode 0; far from training, equal to evaluation
#   Conv2d, BatchNorm2d: Conv; far from training, equal to evaluation
#   BatchNorm2d without statistics: BatchNormalization, training_mode 0; equal to training
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import copy
import io
import logging
import sys
import warnings

import onnx
import onnxruntime
import onnxscript
import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
SEEN = """\
torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0
BatchNorm2d: BatchNormalization, training_mode 0; far from training, equal to evaluation
Conv2d, BatchNorm2d: Conv; far from training, equal to evaluation
BatchNorm2d without statistics: BatchNormalization, training_mode 0; equal to training"""


def described(name, model):
    x = torch.randn(4, 4, 8, 8) * 2 + 1
    program = torch.onnx.export(copy.deepcopy(model), (x,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    words = []
    for node in onnx.load_model_from_string(file.getvalue()).graph.node:
        if node.op_type == "BatchNormalization":
            mode = [a.i for a in node.attribute if a.name == "training_mode"] or [0]
            words.append(f"{node.op_type}, training_mode {mode[0]}")
        elif node.op_type == "Conv":
            words.append(node.op_type)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    modes = {"training": True}
    if model[-1].track_running_stats:
        modes["evaluation"] = False
    found = []
    for mode, training in modes.items():
        expected = copy.deepcopy(model).train(training)(x)
        distance = (torch.from_numpy(y) - expected).abs().max().item()
        how = "equal to" if distance < 1e-4 else "far from" if distance > 0.1 else "near"
        found.append(f"{how} {mode}")
    return f"{name}: {', '.join(words)}; {', '.join(found)}"


torch.manual_seed(3)
nn = torch.nn
lines = [
    f"torch {torch.__version__.split('+')[0]}, onnx {onnx.__version__}, onnxscript"
    f" {onnxscript.__version__}, onnxruntime {onnxruntime.__version__}",
    described("BatchNorm2d", nn.Sequential(nn.BatchNorm2d(4))),
    described("Conv2d, BatchNorm2d", nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))),
    described(
        "BatchNorm2d without statistics", nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False))
    ),
]
print("\n".join(lines))
if "\n".join(lines) != SEEN:
    sys.exit("this has changed")
PYTHON
