// Residency: which cooperative grids and clusters fit a device as a whole, as they must. The device
// is asked once for each kernel and shape of its blocks; a refused launch counts as one that does
// not fit.
#pragma once

#include "cuda/plan.hpp"

namespace bnext::cuda {

// The limits of a device; plans made with them ask it how many blocks are resident.
Limits limits_of(int device);

// Blocks of the launch that run on a multiprocessor at the same time; with clusters, the clusters
// that run on the device.
int resident(Kernel kernel, const Launch& launch, int device);
// From now on such a launch, or one with a larger grid, has no resident blocks.
void remember_refusal(Kernel kernel, const Launch& launch, int device);

}  // namespace bnext::cuda
