// One call, from a plan and addresses to what is enqueued on a stream.
#pragma once

#include <cstdint>

#include "cuda/runtime.hpp"

namespace bnext::cuda {

// Addresses on the device; null where something is not given.
struct Addresses {
    void *x = nullptr, *y = nullptr, *dy = nullptr, *dx = nullptr;
    const void *weight = nullptr, *bias = nullptr;
    const void *mean = nullptr, *var = nullptr;  // given statistics; without, saved ones are taken
    void *running_mean = nullptr, *running_var = nullptr;
    std::int64_t* num_batches_tracked = nullptr;  // incremented
    double* statistics = nullptr;
    double* sums = nullptr;
    void *dweight = nullptr, *dbias = nullptr;
    void* workspace = nullptr;
};

struct Scalars {
    double eps = 0;
    double momentum = 0;
    double correction = 1;         // 1: running_var takes m2 / (n - 1); 0: m2 / n
    double count = 0;              // values behind given sums; 0: those of the problem
    bool wide_statistics = false;  // given ones are float64
};

// Throws Error where an address is missing that the operation needs, and
// runtime::Error with the launch's name. A cooperative or cluster launch that the device refuses
// runs as two kernels, in a workspace that the call takes on its stream; if its path was forced, it
// fails. Of a call that fails no kernel is enqueued, unless the second of two is refused.
void launch(const LaunchPlan& plan, const Addresses& addresses, const Scalars& scalars, int device,
            runtime::Stream stream);

}  // namespace bnext::cuda
