"""Derivatives by central differences."""

import numpy as np

from .tolerances import FINITE_DIFFERENCE_STEP


def numerical_gradient(function, at, step=FINITE_DIFFERENCE_STEP):
    """The gradient of the scalar `function` at the float64 array `at`, element by element."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        ends = []
        for sign in (1, -1):
            moved = at.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient
