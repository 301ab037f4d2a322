// Which kernel with a thread for each channel a launch runs (per_channel.hpp).
#pragma once

#include "cuda/arguments.hpp"

namespace bnext::cuda {

enum class PerChannel { show_statistics, keep_z };
template <class P>  // of parameters
Kernel channel_kernel(PerChannel what);

}  // namespace bnext::cuda
