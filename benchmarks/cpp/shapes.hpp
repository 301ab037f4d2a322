// The shapes that are measured: the batch-norm layers of ResNet-50 (He et al. 2016).
#pragma once

#include "core/dtype.hpp"

namespace bnext::benchmarks {

constexpr Index kBatch = 32;

struct Shape {
    Index channels;
    Index side;    // planes are side x side
    int layers;    // how many of the network's 53 have this shape
    bool float64;  // measured in float64 as well
};

constexpr Shape kResNet50[] = {
    {64, 112, 1, false},  {64, 56, 6, false},  {128, 56, 1, false}, {256, 56, 4, true},
    {128, 28, 7, false},  {256, 28, 1, false}, {512, 28, 5, false}, {256, 14, 11, true},
    {1024, 14, 7, false}, {512, 14, 1, false}, {512, 7, 5, false},  {2048, 7, 4, true},
};

}  // namespace bnext::benchmarks
