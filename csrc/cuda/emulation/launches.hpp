// Runs a launch on the CPU: its threads are fibers of one system thread.
#pragma once

#include "cuda/plan.hpp"

namespace bnext::cuda::emulation {

// Throws std::runtime_error where all threads wait in vain, or a thread does something forbidden.
void run(Kernel kernel, const Arguments& arguments, const Launch& launch);

// Whether launches run their kernels; without, the code before a launch can be measured.
void run_kernels(bool wanted);

}  // namespace bnext::cuda::emulation
