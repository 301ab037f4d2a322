// The measured shapes: ResNet-50's batch-norm layers (He et al. 2016), and others.
#pragma once

#include "core/dtype.hpp"

namespace bnext::benchmarks {

struct Shape {
    const char* name;
    Index batch;
    Index channels;
    Index inner;      // values of a plane or a volume; 1 for rows, which are always interleaved
    int layers;       // how many of ResNet-50's 53 have this shape
    bool all_dtypes;  // or float32 alone
};

constexpr Index square(Index side) { return side * side; }

constexpr Shape kShapes[] = {
    {"64x112x112", 32, 64, square(112), 1, false},
    {"64x56x56", 32, 64, square(56), 6, false},
    {"128x56x56", 32, 128, square(56), 1, false},
    {"256x56x56", 32, 256, square(56), 4, true},
    {"128x28x28", 32, 128, square(28), 7, false},
    {"256x28x28", 32, 256, square(28), 1, false},
    {"512x28x28", 32, 512, square(28), 5, false},
    {"256x14x14", 32, 256, square(14), 11, true},
    {"1024x14x14", 32, 1024, square(14), 7, false},
    {"512x14x14", 32, 512, square(14), 1, false},
    {"512x7x7", 32, 512, square(7), 5, false},
    {"2048x7x7", 32, 2048, square(7), 4, true},
    // Rows.
    {"64x20", 64, 20, 1, 0, true},
    {"64x512", 64, 512, 1, 0, false},
    {"256x1000", 256, 1000, 1, 0, false},
    {"1024x1024", 1024, 1024, 1, 0, false},
    {"8192x4096", 8192, 4096, 1, 0, true},
    {"100000x32", 100'000, 32, 1, 0, false},
    {"140000x256", 140'000, 256, 1, 0, true},
    {"7x20000", 7, 20'000, 1, 0, false},
    // Few channels, large planes, a volume, odd numbers, many small planes.
    {"3x224x224", 256, 3, square(224), 0, true},
    {"64x1024x1024", 2, 64, square(1024), 0, false},
    {"64x16x56x56", 8, 64, 16 * square(56), 0, false},
    {"50x50x50", 50, 50, square(50), 0, false},
    {"257x14x14", 32, 257, square(14), 0, true},
    {"64x4x4", 3200, 64, square(4), 0, false},
};

}  // namespace bnext::benchmarks
