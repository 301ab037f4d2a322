// Which launches fit a device as a whole, as cooperative grids and clusters must: the device is
// asked once for each kernel and shape of its blocks, and a launch that it refused counts as one
// that does not fit.
#pragma once

#include "cuda/plan.hpp"

namespace bnext::cuda {

// Limits of a device; plans that are made with them ask it what is resident.
Limits limits_of(int device);

// Blocks of the launch that a multiprocessor runs at the same time; of clusters, the number on
// the device.
int resident(Kernel kernel, const Launch& launch, int device);
// From now on nothing is resident of such a launch, or of one with a larger grid.
void remember_refusal(Kernel kernel, const Launch& launch, int device);

}  // namespace bnext::cuda
