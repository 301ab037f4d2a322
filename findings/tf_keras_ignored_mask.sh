#!/usr/bin/env bash
# tf-keras: BatchNormalization takes a mask for images and ignores it, without a word.
#
# Versions: tf-keras 2.21.0, tensorflow 2.21.0; Python 3.11 on Linux (x86-64).
# Expected: a mask given to the layer keeps positions out of the statistics, as it does for rows, and as
#   it does for images with fused=False.
# Behaviour: input of rank 4 goes to the fused kernel by default, which has no mask. The statistics
#   include all positions; there is no error and no warning.
# Remedy: fused=False.
# Output seen:
#   fused=None (default): mean of all positions
#   fused=False: mean of positions under the mask left out
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet tf-keras==2.21.0 tensorflow==2.21.0
cd "$folder"
cat >program.py <<'PYTHON'
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tf_keras

rng = np.random.default_rng(0)
x = rng.normal(2, 3, (5, 3, 4, 2)).astype(np.float32)
mask = rng.random((5, 3, 4)) < 0.6
means = {
    "mean of all positions": x.mean((0, 1, 2)),
    "mean of positions under the mask left out": x[mask].mean(0),
}
for fused, name in ((None, "None (default)"), (False, "False")):
    layer = tf_keras.layers.BatchNormalization(momentum=0.0, fused=fused)
    layer(x, training=True, mask=mask)
    stored = layer.moving_mean.numpy()
    words = [text for text, mean in means.items() if np.allclose(stored, mean, rtol=1e-5)]
    print(f"fused={name}: {' '.join(words) or 'another mean'}")
PYTHON
cat >seen.txt <<'TEXT'
fused=None (default): mean of all positions
fused=False: mean of positions under the mask left out
TEXT
"$folder/env/bin/python" program.py 2>/dev/null | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
