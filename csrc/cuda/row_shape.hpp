// What the kind of a kernel of rows decides about its launch, for kernels and plans alike.
#pragma once

#include "core/dtype.hpp"

namespace bnext::cuda {

// Units of 16 bytes, and single values. (With an activation: has_activated_unit.)
constexpr bool has_row_unit(DType dtype, int values) {
    return values == 1 || values * size_of(dtype) == 16;
}
// Units that a thread sums together: 8 values; with an activation single units, which leave room
// for functions that are called out of line.
constexpr int row_batch(int unit, bool activated) { return activated || unit >= 8 ? 1 : 8 / unit; }

// Shared memory of each warp's sums, and of what a team agreed on.
inline constexpr int kBytesOfWarp = 2 * 8;
inline constexpr int kBytesAgreed = 64;

// Rows whose gradients of parameters are summed up in the arithmetic's type before they are added
// to the block's sums, in double.
inline constexpr int kRowsBetweenMerges = 32;

}  // namespace bnext::cuda
