#!/usr/bin/env bash
# A graph of the gradient of rms_norm, drawn by make_fx, has wrong derivatives, and says nothing.
#
# Versions: torch 2.13.0, numpy 2.4.6; Python 3.11 on Linux (x86-64).
# Expected: the graph that make_fx draws of a gradient gives the gradient, and can be differentiated
#   in turn, as the graphs of layer_norm's and batch_norm's gradients can.
# Behaviour: for rms_norm the backward pass is drawn with the inverse root of the mean square
#   detached from x. The graph's values are right, and its derivatives lack that part.
# Remedy: the norm written out in elementary operations, or an operator with a derivative of its own.
# Output seen:
#   torch 2.13.0
#   layer_norm: gradient equal True, its derivative equal True, detached in the graph False
#   batch_norm: gradient equal True, its derivative equal True, detached in the graph False
#   rms_norm: gradient equal True, its derivative equal False, detached in the graph True
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet numpy==2.4.6
cd "$folder"
cat >program.py <<'PYTHON'
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

NORMS = {
    "layer_norm": lambda x, weight: F.layer_norm(x, (5,), weight),
    "batch_norm": lambda x, weight: F.batch_norm(x, None, None, weight, None, True),
    "rms_norm": lambda x, weight: F.rms_norm(x, (5,), weight),
}
torch.manual_seed(0)
x, direction = torch.randn(2, 4, 5, dtype=torch.float64).unbind()
weight = torch.rand(5, dtype=torch.float64)
print("torch", torch.__version__.partition("+")[0])
for name, norm in NORMS.items():

    def gradient(x, weight):
        cubes = norm(x, weight).pow(3).sum()
        return torch.autograd.grad(cubes, x, create_graph=True)[0]

    def twice(function):
        leaf = x.clone().requires_grad_()
        first = function(leaf, weight)
        return first.detach(), torch.autograd.grad((first * direction).sum(), leaf)[0]

    graph = make_fx(gradient)(x.clone().requires_grad_(), weight)
    first, second = map(torch.allclose, twice(gradient), twice(graph))
    detached = any(node.target is torch.ops.aten.detach.default for node in graph.graph.nodes)
    print(
        f"{name}: gradient equal {first}, its derivative equal {second}, "
        f"detached in the graph {detached}"
    )
PYTHON
cat >seen.txt <<'TEXT'
torch 2.13.0
layer_norm: gradient equal True, its derivative equal True, detached in the graph False
batch_norm: gradient equal True, its derivative equal True, detached in the graph False
rms_norm: gradient equal True, its derivative equal False, detached in the graph True
TEXT
"$folder/env/bin/python" program.py | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
