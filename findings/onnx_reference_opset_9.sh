#!/usr/bin/env bash
# onnx's reference evaluator: inference of BatchNormalization, opset 9, uses the batch's statistics.
#
# Versions: onnx 1.23.2, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: BatchNormalization-9 with one output is in test mode, by the operator's specification: it
#   normalizes by the mean and the variance that are its inputs. onnxruntime 1.32.0 does so.
# Behaviour: the evaluator normalizes by momentum * mean + (1 - momentum) * the mean of the batch, and
#   by variances mixed the same way. The output depends on the other rows. Opsets 15 and 14 are right.
# Output seen:
#   opset 15: by the given statistics
#   opset 9: by statistics that are blended with the batch's
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet onnx==1.23.2 numpy==2.4.6
cd "$folder"
cat >program.py <<'PYTHON'
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

rng = np.random.default_rng(0)
x = rng.normal(2, 3, (9, 4)).astype(np.float32)
scale, bias, mean = rng.normal(size=(3, 4)).astype(np.float32)
var = rng.uniform(1, 2, 4).astype(np.float32)


def normalized(mean, var):
    return scale * (x - mean) / np.sqrt(var + 1e-5) + bias


answers = {
    "the given statistics": normalized(mean, var),
    "statistics that are blended with the batch's": normalized(
        0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0)
    ),
}
arrays = {"scale": scale, "B": bias, "mean": mean, "var": var}
for opset in (15, 9):
    node = helper.make_node("BatchNormalization", ["x", *arrays], ["y"])
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [9, 4])] for n in "xy"]
    values = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph([node], "bn", *ends, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    words = [text for text, answer in answers.items() if np.allclose(y, answer, atol=1e-4)]
    print(f"opset {opset}: by {' '.join(words) or 'something else'}")
PYTHON
cat >seen.txt <<'TEXT'
opset 15: by the given statistics
opset 9: by statistics that are blended with the batch's
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
