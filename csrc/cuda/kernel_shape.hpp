// What a kernel's kind decides about the cut of a problem, for kernels and plans alike: how wide
// units are, how many of them a thread asks for at once, how much shared memory sums take.
#pragma once

#include <algorithm>

#include "core/formulas.hpp"
#include "cuda/partition.hpp"
#include "cuda/tuning.hpp"

namespace bnext::cuda {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 256;  // of a block
// So many blocks must be able to run on a multiprocessor: with 2, 128 registers a thread.
inline constexpr int kBlocksPerProcessor = BNEXT_CUDA_BLOCKS;

// Whether there are kernels for units of so many values: of 16 bytes, of 16-bit data 8 as well; and
// single ones.
constexpr bool has_unit(DType dtype, int values) {
    const auto most = static_cast<int>(16 / size_of(dtype));
    return values == 1 || values == most || (most == 8 && values == 4);
}
inline constexpr int kUnits[] = {8, 4, 2, 1};  // the widest first
// Of kernels with an activation there are fewer: units of four values, and single ones, which are
// the same for both layouts.
constexpr bool has_activated_unit(DType dtype, int values) {
    return values == 1 || (values == 4 && dtype != DType::float64);
}
constexpr Layout activated_layout(Layout layout, int unit) {
    return unit == 1 ? Layout::planar : layout;
}
// Kernels for 8 channels have no register to spare for positions of several runs.
constexpr Runs runs_of(Layout layout, int values) {
    if (layout == Layout::planar) return Runs::many;
    return values == 8 ? Runs::one : Runs::either;
}

// Units of a batch: what a thread loads, sums and writes together. As many as leave no register of
// a kernel to be spilled, which is seen when it is compiled.
constexpr int batch_of(DType dtype, Layout layout, int unit, int inputs) {
    const bool planar = layout == Layout::planar;
    if (unit == 1) return planar && inputs == 1 ? 12 : 8;
    const int batch = inputs == 1 ? 4 : 2;
    return planar && unit * size_of(dtype) < 16 ? 2 * batch : batch;
}

// Batches that are on their way while one is used: a power of two.
constexpr int ahead_of(Index batch_bytes, int inputs) {
    const Index batches = tuning::kBytesAhead / (kMostThreads * batch_bytes * inputs);
    return batches < 4 ? 2 : 4;
}

// Sums of a channel (sums.hpp), in registers, shared memory and the workspace.
struct Sums {
    double n = 0;
    double first = 0;
    double second = 0;
    double pilot = 0;
};
inline constexpr Index kSumsBytes = static_cast<Index>(sizeof(Sums));

// The most that a formula for which there are kernels has of something.
template <class Number>
constexpr int most_of_kernels(Number number) {
    return std::max(int{number(Formula<Pass::forward, Epilogue::none, float>{})},
                    int{number(Formula<Pass::backward, Epilogue::none, float>{})});
}
inline constexpr int kMostInputs = most_of_kernels([](auto f) { return decltype(f)::kReads; });
inline constexpr int kMostOutputs = most_of_kernels([](auto f) { return decltype(f)::kWrites; });
// Of a channel, of the arithmetic's type.
inline constexpr int kCoefficients =
    most_of_kernels([](auto f) { return int{decltype(f)::kRows}; });

// Of those with an activation.
inline constexpr int kActivatedCoefficients = kMostRows;

// Shared memory behind the data: where there are sums, a row of them for the block and one for
// every warp; then the coefficients.
struct KernelShape {
    int unit;           // values
    int unit_channels;  // 1, or as many
    int batch;          // units
    int ahead;          // batches
    Index unit_bytes;
    Index arithmetic_bytes;  // of a value
};
constexpr KernelShape kernel_shape(DType dtype, Layout layout, int unit, int inputs) {
    const int batch = batch_of(dtype, layout, unit, inputs);
    const Index unit_bytes = unit * size_of(dtype);
    return {unit,       layout == Layout::planar ? 1 : unit,
            batch,      ahead_of(batch * unit_bytes, inputs),
            unit_bytes, dtype == DType::float64 ? 8 : 4};
}

BNEXT_HOST_DEVICE Index shared_bytes_of_coefficients(const Cut& cut, Index value_bytes,
                                                     int coefficients) {
    return cut.slab_channels() * coefficients * value_bytes;
}
BNEXT_HOST_DEVICE Index shared_bytes_of_sums(const Cut& cut) {
    return cut.slab_channels() * (cut.threads / kWarp + 1) * kSumsBytes;
}

}  // namespace bnext::cuda
