// Runs a launch on the CPU: its threads are fibers of one system thread.
#pragma once

#include <cstddef>

#include "cuda/arguments.hpp"

namespace bnext::cuda::emulation {

struct Shape {
    Index grid;
    int threads;
    int cluster;               // blocks that run together
    std::size_t shared_bytes;  // of a block
    bool cooperative;          // all blocks run together
};

// Throws std::runtime_error where all threads wait in vain, or a thread does something forbidden.
void run(Kernel kernel, const Arguments& arguments, const Shape& shape);

// Whether launches run their kernels; without, the code before a launch can be measured.
void run_kernels(bool wanted);

}  // namespace bnext::cuda::emulation
