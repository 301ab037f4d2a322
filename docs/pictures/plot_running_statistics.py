"""
Running statistics, step by step
================================

Inference needs fixed statistics. An exponential average starts at 0 and forgets its start slowly; a
debiased one never contains it; a cumulative average weighs all batches alike, also batches of old
parameters. Here the mean of the data is 1 until step 60, and then 2.
"""

import matplotlib.pyplot as plt
import numpy as np

import bnext

rng = np.random.default_rng(2)
layers = {
    "exponential, decay 0.95": bnext.BatchNorm1d(1, decay=0.95),
    "debiased, decay 0.95": bnext.BatchNorm1d(1, estimator=bnext.DebiasedExponential(decay=0.95)),
    "cumulative": bnext.BatchNorm1d(1, momentum=None),
}
means = {name: [] for name in layers}
true_means = np.repeat([1.0, 2.0], 60)
for true_mean in true_means:
    batch = (true_mean + rng.standard_normal((32, 1))).astype(np.float32)
    for name, layer in layers.items():
        layer(batch)
        means[name].append(float(layer.running_mean[0]))

figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
axes.plot(true_means, color="gray", linestyle=":", label="the mean of the data")
for name, values in means.items():
    axes.plot(values, label=name)
axes.set_xlabel("step")
axes.set_ylabel("running mean")
axes.legend()
plt.show()
