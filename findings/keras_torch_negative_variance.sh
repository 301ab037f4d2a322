#!/usr/bin/env bash
# Keras 3 on PyTorch: BatchNormalization stores a negative variance where the mean is large.
#
# Versions: keras 3.15.1, torch 2.13.0; Python 3.11 on Linux (x86-64).
# Expected: a variance of about 1, or something near it: on JAX the same input gives 1.02, on TensorFlow
#   it is right to four digits, as in torch.nn.BatchNorm1d.
# Behaviour: the PyTorch backend's ops.moments is the mean of squares less the square of the mean, in
#   float32, which cancels for a mean of 10,000 and a standard deviation of 1. A negative variance
#   goes into moving_variance, and the output of evaluation is NaN.
# Output seen:
#   a variance of (4096, 8) values is negative: True
#   torch.nn.BatchNorm1d, the same values: 1.0
#   output of evaluation, some of it NaN: True
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0
"$folder/env/bin/pip" install --quiet keras==3.15.1
cd "$folder"
cat >program.py <<'PYTHON'
import keras
import numpy as np
import torch

x = np.random.default_rng(0).normal(1e4, 1, (4096, 8)).astype(np.float32)
layer = keras.layers.BatchNormalization(momentum=0.0)
layer(x, training=True)
stored = keras.ops.convert_to_numpy(layer.moving_variance)
print("a variance of (4096, 8) values is negative:", bool((stored < 0).any()))
theirs = torch.nn.BatchNorm1d(8, momentum=1.0)
theirs(torch.from_numpy(x))
print(f"torch.nn.BatchNorm1d, the same values: {float(theirs.running_var.mean()):.1f}")
y = keras.ops.convert_to_numpy(layer(x, training=False))
print("output of evaluation, some of it NaN:", bool(np.isnan(y).any()))
PYTHON
cat >seen.txt <<'TEXT'
a variance of (4096, 8) values is negative: True
torch.nn.BatchNorm1d, the same values: 1.0
output of evaluation, some of it NaN: True
TEXT
KERAS_BACKEND=torch "$folder/env/bin/python" program.py 2>/dev/null | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
