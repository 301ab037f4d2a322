"""How far a result may be from the float64 reference: every bound of the tests, with its reason.

Bounds are in units in the last place, taken at the largest magnitude in the channel among the
result and the terms that it is the sum of (`compare.py` finds it). The relative error of a single
element would measure how much the data cancels, not how well the kernel computes.
"""

import numpy as np

# y = (x - mean) * (weight * rstd) + bias. float32: all that comes before is in double; x - center,
# the slope and the shift round once each, and so does the fused multiply-add. A rounding is half a
# unit at its own magnitude, which is up to a whole unit of a result that lies just below a power of
# two: 1 + 1 + 1/2 + 1/2 at the very worst. float64: the mean and m2 are sums in the same precision,
# and the reference's are rounded too.
Y = {np.float32: 3.0, np.float64: 8.0}

# The same, of all but one in a hundred elements: roundings seldom all go one way.
Y_OF_MOST = {np.float32: 1.0, np.float64: 4.0}

# dx = ((dy - mean_dy) - (x - center) * slope) * scale: seven roundings instead of three, of which
# ordinary data have not all at once.
DX = {np.float32: 4.0, np.float64: 16.0}

# y, dx and dweight of float64 data with any mean, against long double, at the largest value that a
# channel can have. The mean has a low part, so its error is the rounding of a sum of deviations.
# Then y has the roundings of m2, of rstd, of the slope, of x - center, of shift and of the fused
# multiply-add: six or seven halves of a unit that do not all go one way; dx has four more.
ANY_MEAN = 8.0

# dweight and dbias, at the larger of |sum| and the root of the sum of squares (what a sum of random
# signs comes to). float32: summed in double, rounded once. float64: up to 256 values follow each
# other in one lane before sums are merged, with half a unit of the partial sum each time, in random
# directions.
PARAMETER_GRADIENT = {np.float32: 1.0, np.float64: 64.0}

# Values of activations, in units of the largest value, and of their derivatives, in units of the
# largest derivative. Smooth ones have 4 (8 without fused multiply-add) and the last product one
# more; the others are exact but for the product. (csrc/core/smooth_activations.hpp)
ACTIVATION = 9.0

# Moments are float64 whatever the data, and so are these units. Values are summed about a pilot:
# the first value of a tile for float32, the tile's mean for float64. Where that first value is an
# outlier, the 256 values that follow each other in one lane are all as far from it, their sum is
# 256 times as large as it, and rounds by half of its own unit; divided by their number that is 128
# units of the outlier. (csrc/cpu/kernels/collect_stats.inl.hpp)
MEAN = {np.float32: 128.0, np.float64: 8.0}

# m2, relative. float32: with such an outlier, what is left of sums over a tile's 4096 values is a
# 4096th of them, and each has a dozen roundings or more. float64: no loss.
M2 = {np.float32: 16 * 4096.0, np.float64: 64.0}

# What comes from float64 through a few operations: rstd from var, moments that were merged.
FEW_ROUNDINGS = 8.0

# Variance at mean/std = 1e4, relative, from float32 values that carry it.
VARIANCE_FAR_FROM_ZERO = 1e-5

# Central differences in float64 with a step of 1e-5: the truncation error is of the order of
# step^2 times the third derivative, the rounding error 2^-53 / step, both near 1e-10; relative to
# the largest gradient.
FINITE_DIFFERENCE_STEP = 1e-5
FINITE_DIFFERENCE = 1e-7

# Against torch, which rounds as well: on a CPU it computes x * scale + shift, so that an error is
# relative to x * scale, and its sums for float32 gradients are in float32.
TORCH = {np.float32: 16.0, np.float64: 32.0}

# The same for data of 16 bits. Ours round once, from float32; PyTorch also rounds the mean and rstd
# that it keeps for the backward pass, where parameters have 16 bits.
TORCH_16_BITS = 4.0
