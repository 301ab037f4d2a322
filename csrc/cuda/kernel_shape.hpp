// What a kernel's kind decides about the cut of a problem, for kernels and plans alike: how wide
// units are, how many of them a thread asks for at once, how much shared memory sums take.
#pragma once

#include "cuda/partition.hpp"

namespace bnext::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 256;  // of a block
inline constexpr int kBlocksPerProcessor =
    2;  // so many must be able to run: 128 registers a thread

// Values of a unit that is read as a vector: 16 bytes of a plane. Of channels 4 at most, since each
// has sums of its own in registers.
constexpr int vector_of(DType dtype, Layout layout) {
    const int values = static_cast<int>(16 / size_of(dtype));
    return layout == Layout::planar || values < 4 ? values : 4;
}

// Units that a thread asks for before it uses the first: vectors, or single values. As many as
// leave no register of a kernel to be spilled, which is seen when it is compiled.
constexpr int batch_of(DType dtype, Layout layout, bool vectors, int inputs) {
    const bool planar = layout == Layout::planar;
    if (!vectors) return planar && inputs == 1 ? 12 : 8;
    if (inputs == 1) return 4;
    if (planar) return size_of(dtype) == 2 ? 2 : 4;
    return 2;
}

struct KernelShape {
    int unit;           // values
    int unit_channels;  // 1, or as many
    int batch;          // units
    Index unit_bytes;
};
constexpr KernelShape kernel_shape(DType dtype, Layout layout, bool vectors, int inputs) {
    const int unit = vectors ? vector_of(dtype, layout) : 1;
    return {unit, layout == Layout::planar ? 1 : unit, batch_of(dtype, layout, vectors, inputs),
            unit * size_of(dtype)};
}

// Sums of a channel, in registers and in shared memory (sums.hpp), and as doubles in the workspace.
struct Sums {
    double n = 0;
    double first = 0;
    double second = 0;
    double pilot = 0;
};
inline constexpr int kSumsValues = 4;
inline constexpr Index kPartialBytes = kSumsValues * static_cast<Index>(sizeof(double));
inline constexpr int kCoefficients = 4;  // of a channel, as doubles

// Behind what is kept: a row of sums for every warp, two for the block, and the coefficients.
BNEXT_HOST_DEVICE Index shared_bytes_of_sums(const Cut& cut) {
    const Index rows = cut.threads / kWarp + 2;
    return cut.slab_channels() * (rows * static_cast<Index>(sizeof(Sums)) +
                                  kCoefficients * static_cast<Index>(sizeof(double)));
}

}  // namespace bnext::cuda
