// Which kernel of norms of cells a launch runs: between their phases (cell_kernels.hpp), or of both
// phases of small slabs (small_slabs.hpp).
#pragma once

#include "cuda/arguments.hpp"

namespace bnext::cuda {

enum class CellStep { merge_slabs, spread_slabs, share_sums, sum_parameters };
template <class P>  // of parameters
Kernel cell_kernel(CellStep step);

// Values that a thread holds of each array of a small slab; numbers of each warp in shared memory.
constexpr int held_values(Index arithmetic_bytes) { return arithmetic_bytes == 8 ? 8 : 16; }
inline constexpr int kNumbersOfWarp = 3;

template <class T>
Kernel small_kernel(Pass pass);

}  // namespace bnext::cuda
