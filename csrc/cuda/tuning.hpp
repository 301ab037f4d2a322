// The choices that a GPU's speed depends on, in one place, with their reasons. None of them was
// measured yet: each reason is a prediction.
#pragma once

#include "core/dtype.hpp"

namespace bnext::cuda::tuning {

// What the system takes of a block's shared memory.
inline constexpr Index kReservedShared = 1024;
inline constexpr int kFewestThreads = 64;
// Bytes of a row that a group of channels covers: a whole line of the first-level cache.
inline constexpr Index kColumnBytes = 128;
// Fewer bytes are not worth a block of their own: waiting for the others takes longer.
inline constexpr Index kSmallestPart = 8 * 1024;
// Clusters of more than that need the attribute for sizes that not every device has.
inline constexpr int kPortableCluster = 8;
// Batches that a block of the second phase writes: enough to pay for its coefficients.
inline constexpr Index kAppliedBatches = 4;
// Blocks for each multiprocessor in a first phase alone: several waves hide uneven ends.
inline constexpr Index kReduceWaves = 8;

}  // namespace bnext::cuda::tuning
