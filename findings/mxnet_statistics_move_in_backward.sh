#!/usr/bin/env bash
# MXNet: a forward pass in training mode leaves running statistics where they are; backward moves them.
#
# Versions: mxnet 1.9.1, numpy 1.23.5; Python 3.11 on Linux (x86-64).
# Expected: the documentation of BatchNorm writes moving_mean = moving_mean * momentum + data_mean *
#   (1 - momentum) beside the formula of the output, as what a pass in training mode does.
# Behaviour: under autograd.record() the output is normalized by the batch, and the statistics stay 0
#   and 1 for any number of forward passes. A call of backward() moves them, once. Passes over data
#   that only adapt statistics (as one does in PyTorch) adapt nothing, without a word.
# Output seen:
#   after 5 forward passes: mean 0 variance 1
#   after one backward pass: moved
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet mxnet==1.9.1 numpy==1.23.5
"$folder/env/bin/python" - <<'PYTHON'
import sys

import mxnet
import numpy as np

x = mxnet.nd.array(np.random.default_rng(0).normal(2, 3, (9, 4)))
layer = mxnet.gluon.nn.BatchNorm(in_channels=4)
layer.initialize()
for _ in range(5):
    with mxnet.autograd.record():
        y = layer(x).sum()
    mxnet.nd.waitall()
mean, var = (getattr(layer, k).data().asnumpy() for k in ("running_mean", "running_var"))
unmoved = (mean == 0).all() and (var == 1).all()
print("after 5 forward passes:", "mean 0 variance 1" if unmoved else "moved")
y.backward()
mxnet.nd.waitall()
moved = (layer.running_mean.data().asnumpy() != 0).all()
print("after one backward pass:", "moved" if moved else "mean 0 variance 1")
if not (unmoved and moved):
    sys.exit("this has changed")
PYTHON
