#!/usr/bin/env bash
# tf-keras: BatchNormalization stores another variance for images than for the same numbers as rows.
#
# Versions: tf-keras 2.21.0, tensorflow 2.21.0; Python 3.11 on Linux (x86-64).
# Expected: the documentation of BatchNormalization gives one formula, of the batch's variance, for
#   input of every rank.
# Behaviour: 32 values per channel as input of shape (32, 3) store m2 / n, and the same values as
#   (2, 4, 4, 3) store m2 / (n - 1), as the fused kernel has Bessel's correction. With fused=False, and
#   with synchronized=True (for more than one replica), it is m2 / n. So a model's evaluation
#   depends on an option that is about speed, by 3 % of the variance with 32 values per channel.
# Output seen:
#   (32, 3): m2 / n
#   (2, 4, 4, 3): m2 / (n - 1)
#   (2, 4, 4, 3), fused=False: m2 / n
#   (2, 4, 4, 3), synchronized=True: m2 / n
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

rows = np.random.default_rng(0).normal(2, 3, (32, 3)).astype(np.float32)
variances = {f"m2 / {n}": rows.astype(np.float64).var(0, ddof=d) for n, d in (("n", 0), ("(n - 1)", 1))}
image = (2, 4, 4, 3)
for shape, options in (
    (rows.shape, {}), (image, {}), (image, {"fused": False}), (image, {"synchronized": True}),
):
    layer = tf_keras.layers.BatchNormalization(momentum=0.0, **options)
    layer(rows.reshape(shape), training=True)
    stored = layer.moving_variance.numpy()
    words = [text for text, var in variances.items() if np.allclose(stored, var, rtol=1e-4)]
    print(", ".join([str(shape), *(f"{k}={v}" for k, v in options.items())]) + ":", *words)
PYTHON
cat >seen.txt <<'TEXT'
(32, 3): m2 / n
(2, 4, 4, 3): m2 / (n - 1)
(2, 4, 4, 3), fused=False: m2 / n
(2, 4, 4, 3), synchronized=True: m2 / n
TEXT
"$folder/env/bin/python" program.py 2>/dev/null | tee now.txt
diff seen.txt now.txt || { echo "this has changed"; exit 1; }
