"""
What the backward pass takes out of a gradient
==============================================

The output does not change if a channel is shifted or stretched. So the gradient of x has neither
direction: the sums of dx and of dx · x̂ are 0, whatever arrives (:doc:`/explanation/backward`).
"""

import matplotlib.pyplot as plt
import numpy as np

import bnext

rng = np.random.default_rng(1)
x = rng.standard_normal((200, 1))
xhat = (x - x.mean()) / x.std()
arriving = 1 + 0.8 * xhat + 0.4 * rng.standard_normal((200, 1))

_, saved = bnext.batch_norm_forward(x)
dx, _, _ = bnext.batch_norm_backward(arriving, x, saved)

figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
for axes, values, title in zip(
    panels, (arriving, dx), ("arriving gradient g", "gradient of x"), strict=True
):
    axes.scatter(xhat, values, s=8)
    slope, offset = np.polyfit(xhat[:, 0], values[:, 0], 1)
    ends = np.array([xhat.min(), xhat.max()])
    axes.plot(ends, offset + slope * ends, color="tab:orange")
    axes.set_title(f"{title}: offset {abs(offset):.2f}, slope {abs(slope):.2f}")
    axes.set_xlabel("x̂")
plt.show()
