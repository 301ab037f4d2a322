"""Softmax cross-entropy, and the accuracy of logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bnext.demo.layers import Array

Labels = npt.NDArray[np.integer[Any]]


def softmax_cross_entropy(logits: Array, labels: Labels) -> tuple[float, Array]:
    """Mean cross-entropy of a batch and its gradient with respect to the logits.

    With p = softmax(logits) of shape (N, K), the loss is the mean of -log p[label] and the gradient
    (p - onehot)/N. The loss is not finite if a logit is not.
    """
    rows = np.arange(len(labels))
    # Without the largest logit of each row, exp cannot overflow and the sum is at least 1.
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - shifted[rows, labels]))
    dlogits = exponentials / sums
    dlogits[rows, labels] -= 1
    return loss, dlogits / len(labels)


def accuracy(logits: Array, labels: Labels) -> float:
    """Share of the rows whose largest logit is at the label; rows with a NaN count as wrong."""
    correct = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
    return float(correct.mean())
