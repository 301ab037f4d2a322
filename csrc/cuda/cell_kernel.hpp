// Which kernel between the phases of norms of cells a launch runs (cell_kernels.hpp).
#pragma once

#include "cuda/arguments.hpp"

namespace bnext::cuda {

enum class CellStep { merge_slabs, spread_slabs, share_sums, sum_parameters };
template <class P>  // of parameters
Kernel cell_kernel(CellStep step);

}  // namespace bnext::cuda
