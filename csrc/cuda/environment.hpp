// The environment variables of the CUDA kernels, read once.
#pragma once

namespace bnext::cuda {

struct Environment {
    bool synchronous = false;  // BNEXT_CUDA_SYNC=1: every launch is waited for
    int reserved = 0;          // BNEXT_CUDA_RESERVE: multiprocessors without cooperative grids
};

// Throws Error where a variable has another value.
const Environment& environment();

}  // namespace bnext::cuda
