// The choices that a GPU's speed depends on, in one place, with their reasons. None of them was
// measured yet: each reason is a prediction.
#pragma once

#include "core/dtype.hpp"

// Those that are to be compared on a GPU first, from the compiler's command line:
//     cmake -DCMAKE_CUDA_FLAGS=-DBNEXT_CUDA_AHEAD_KIB=64
//     -DCMAKE_CXX_FLAGS=-DBNEXT_CUDA_AHEAD_KIB=64
// (plans are made by the host's compiler).
#if !defined(BNEXT_CUDA_AHEAD_KIB)
#define BNEXT_CUDA_AHEAD_KIB 32
#endif
#if !defined(BNEXT_CUDA_COLUMN_BYTES)
#define BNEXT_CUDA_COLUMN_BYTES 128
#endif
#if !defined(BNEXT_CUDA_BLOCKS)
#define BNEXT_CUDA_BLOCKS 2
#endif
#if !defined(BNEXT_CUDA_CLUSTER)
#define BNEXT_CUDA_CLUSTER 16
#endif
#if !defined(BNEXT_CUDA_PREFETCH)
#define BNEXT_CUDA_PREFETCH 1
#endif
#if !defined(BNEXT_CUDA_STORE_ONCE)
#define BNEXT_CUDA_STORE_ONCE 1
#endif

namespace bnext::cuda::tuning {

// What the system takes of a block's shared memory.
inline constexpr Index kReservedShared = 1024;
inline constexpr int kFewestThreads = 64;
// Batches that a thread should have, so that as many are on their way at once as can be: fewer
// threads and more blocks of small slabs, which wait for their sums at different times.
inline constexpr Index kBatchesOfThread = 4;
// Bytes of a row that a group of channels covers: a whole line of the first-level cache.
inline constexpr Index kColumnBytes = BNEXT_CUDA_COLUMN_BYTES;
// Bytes on their way to a block of the most threads: so much that two blocks have more in flight
// than a multiprocessor's share of the memory's latency times its bandwidth.
inline constexpr Index kBytesAhead = Index{BNEXT_CUDA_AHEAD_KIB} * 1024;
// Whether a cooperative grid asks for its next slabs while its blocks wait for each other.
inline constexpr bool kPrefetchNext = BNEXT_CUDA_PREFETCH != 0;
// Whether results are the first to go from the caches. (The next layer reads them: no, where they
// would still be there.)
inline constexpr bool kStoreOnce = BNEXT_CUDA_STORE_ONCE != 0;
// Fewer bytes are not worth a block of their own: waiting for the others takes longer.
inline constexpr Index kSmallestPart = 8 * 1024;
// Clusters of more than 8 blocks are for slabs that need them: not every device has those, and
// fewer of them find their multiprocessors side by side.
inline constexpr int kPortableCluster = 8;
inline constexpr int kLargeCluster = BNEXT_CUDA_CLUSTER;
// Parts of several channels whose sums every block reads by itself. More, and each block merges a
// share and reads the results: another wait, but not the square of the parts in bytes.
inline constexpr int kPartsReadByAll = 32;
// Batches that a thread of the second phase writes: enough to pay for its coefficients.
inline constexpr Index kAppliedBatches = 4;
// Blocks for each multiprocessor in a first phase alone, over planes: several waves hide uneven
// ends.
inline constexpr Index kReduceWaves = 8;

// Rows: units of 16 bytes for each thread, so that as many are on their way at once; and threads of
// a block whose warps have a row each, or several. A backward pass keeps sums of columns for each
// such row, and has a block for a row sooner.
inline constexpr Index kRowUnits = 4;
inline constexpr int kRowThreads = 128;
// Lanes of a warp that have a short row: 64 bytes of it at a time.
inline constexpr int kFewestRowLanes = 4;
inline constexpr Index kRowUnitsOfWarp = 128, kRowUnitsOfBackwardWarp = 64;
// Blocks of a backward pass for each multiprocessor, at most, and rows of a block, at least, unless
// multiprocessors had none: sums of columns are written for each block.
inline constexpr Index kRowBlocks = 8;
inline constexpr Index kRowsOfBlock = 8;
// Rows of a thread that sums up a column, at least: its sums are written once.
inline constexpr Index kRowsOfSlot = 64;

// Seconds that a block waits for other blocks before its kernel ends with an error; 0 for no end;
// another number by cmake -DBNEXT_CUDA_WAIT_SECONDS. A wait lasts microseconds where nothing is
// wrong: the blocks of a cooperative grid begin together.
#if !defined(BNEXT_CUDA_WAIT_SECONDS)
#define BNEXT_CUDA_WAIT_SECONDS 4
#endif
inline constexpr unsigned long long kMostWait = BNEXT_CUDA_WAIT_SECONDS * 1'000'000'000ULL;
// Polls between two looks at the clock, and polls that a wait has at least: about 1 ms and 1 s.
inline constexpr unsigned kPollsPerLook = 1024;
inline constexpr unsigned kFewestPolls = 1U << 20;

}  // namespace bnext::cuda::tuning
