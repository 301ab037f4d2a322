// Launches of the kernels of per_channel.hpp. They take no workspace.
#pragma once

#include "cuda/runtime.hpp"

namespace bnext::cuda {

// Of the parameters of data of that type.
struct Channels {
    DType dtype{};
    Index count = 0;
    int device = 0;
};

// From rows of statistics: rows of the parameters' type with the mean, m2 and the mean's low part.
void show_statistics(const Channels& channels, double* statistics, void* shown,
                     runtime::Stream stream);
// From rows of statistics, and the weight and the bias if there are any: `of_z` (table.hpp).
void keep_z(const Channels& channels, double* statistics, const void* weight, const void* bias,
            double* of_z, runtime::Stream stream);
// Loads the code of both.
void prepare(const Channels& channels);

}  // namespace bnext::cuda
