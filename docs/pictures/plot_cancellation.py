"""
Nothing cancels
===============

The variance as ``mean(x**2) - mean(x)**2`` loses digits with the square of mean/std. Deviations
from a value of the channel itself keep them: the error of bnext stays far below a unit of float32,
whatever the mean is.
"""

import matplotlib.pyplot as plt
import numpy as np

import bnext

rng = np.random.default_rng(0)
ratios = 10.0 ** np.arange(0, 7)
names = {
    "mean(x²) - mean(x)²": lambda x: (x * x).mean(0) - x.mean(0) ** 2,
    "numpy.var": lambda x: x.var(0),
    "bnext.moments": lambda x: bnext.moments(x).m2 / len(x),
}
errors = {name: [] for name in names}
for ratio in ratios:
    x = (ratio + rng.standard_normal((4096, 64))).astype(np.float32)
    exact = x.astype(np.float64).var(0)
    for name, variance in names.items():
        errors[name].append(np.maximum(abs(variance(x) / exact - 1), 1e-16).max())

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in errors.items():
    axes.loglog(ratios, values, "o-", label=name)
axes.axhline(2.0**-24, color="gray", linestyle=":", label="half a unit of float32")
axes.set_xlabel("mean / standard deviation")
axes.set_ylabel("largest relative error of the variance")
axes.legend()
plt.show()
