// Which kernel of the double backward pass a launch runs. Explicit instances are in
// instances/passes_*.cu.
#pragma once

#include "cuda/arguments.hpp"

namespace bnext::cuda {

enum class TwiceStep { find_pilots, reduce, apply };
inline constexpr int kTwiceUnits[] = {4, 1};  // values of a unit, of planes; else 1
// Null where there is no kernel for units of so many values.
template <class T>
Kernel twice_kernel(TwiceStep step, int unit);
template <class P>  // of parameters
Kernel finish_twice_kernel();

}  // namespace bnext::cuda
