// Which kernel of rows a launch runs. Explicit instances are in instances/passes_*.cu.
#pragma once

#include "cuda/arguments.hpp"

namespace bnext::cuda {

// Null where there is no kernel for units of so many values.
template <class T>
Kernel row_kernel(Pass pass, bool activated, int unit);
template <class T>
Kernel row_columns_kernel();
template <class P>  // of parameters
Kernel row_merge_kernel();

}  // namespace bnext::cuda
