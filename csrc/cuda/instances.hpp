// Which kernel a launch runs. Explicit instances are in instances/*.cu: for each data type a file
// for whole passes, and one for single phases, which takes as long to compile. (Each file has its
// headers compiled for every architecture: four files in place of the first took longer together.)
#pragma once

#include "cuda/arguments.hpp"

namespace bnext::cuda {

template <class T>
Kernel fused_forward(Layout layout, int unit);
template <class T>
Kernel fused_backward(Layout layout, int unit);

enum class Phase { collect_stats, apply_norm, backward_reduce, backward_apply };
template <class T>
Kernel phase_kernel(Phase phase, Layout layout, int unit);

// With an activation or a residual; every phase.
template <class T>
Kernel activated_kernel(Pass pass, Layout layout, int unit);

}  // namespace bnext::cuda
