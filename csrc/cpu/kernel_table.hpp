// What one instruction set offers: the four phases, for each dtype and layout.
//
// A kernel is a serial function over a Region. It knows nothing of threads, chunks of others, or
// Python; operations.cpp decides who calls it on what. Per-channel arrays are indexed from the
// region's first channel.
#pragma once

#include "core/dtype.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

struct Region {
    const Tiling* tiling;
    TileRange tiles;
    ChannelRange channels;
};

// One value for each column (Tiling) of the region.
//
// y = (x - center) * scale + shift. center is the mean rounded to T; what the rounding lost is in
// shift (computed in double), so that nothing cancels when mean/std is large.
template <class T>
struct NormCoefficients {
    const Compute<T>* center;
    const Compute<T>* scale;
    const Compute<T>* shift;
};

// dx = ((x - center) * slope + (dy - offset)) * scale; slope is negative where dweight is positive
template <class T>
struct BackwardCoefficients {
    const Compute<T>* center;
    const Compute<T>* slope;
    const Compute<T>* offset;
    const Compute<T>* scale;
};

// Where float32 is no longer enough for these formulas (extremes.hpp).
constexpr double kLargeDifferences = 0x1p103;  // half a unit of the largest float32
constexpr double kLargestScale = 0x1p127;
constexpr double kSmallestScale = 0x1p-122;  // below 2^-126 float32 loses bits
// With ordinary deviations, a slope as small as that does not show in dx.
constexpr double kSmallSlopesMatter = 0x1p-20;  // below that rstd

enum class Stores : std::uint8_t { cached, streaming };

// How the second phase goes about memory; no result depends on it.
struct Access {
    Stores stores = Stores::cached;
    // How many channels ahead the caller will go on with its first phase, or 0. Planar kernels
    // prefetch those while they write, so that reads and writes overlap.
    Index ahead = 0;
    // Whether coefficients go on behind the region's last channel as they began (coefficients.hpp).
    bool wraps = false;
};

template <class T>
struct Kernels {
    // m2 of the region's values, and their mean relative to the channel's origin (view.hpp)
    using CollectStats = void (*)(const View<const T>& x, const Region&, double* mean, double* m2);
    using ApplyNorm = void (*)(const View<const T>& x, const View<T>& y, const Region&,
                               const NormCoefficients<T>&, const Access&);
    // sum of dy and of dy * (x - mean) over the region's values
    using BackwardReduce = void (*)(const View<const T>& dy, const View<const T>& x, const Region&,
                                    const double* mean, double* sum_dy, double* sum_dy_xmu);
    using BackwardApply = void (*)(const View<const T>& dy, const View<const T>& x,
                                   const View<T>& dx, const Region&, const BackwardCoefficients<T>&,
                                   const Access&);

    // the coefficients above from statistics and sums, and whether any channel is beyond them
    // (extremes.hpp); weight and bias may be null
    using MakeNormCoefficients = bool (*)(Index channels, const double* mean,
                                          const double* mean_low, const double* rstd,
                                          const Param<T>* weight, const Param<T>* bias,
                                          Compute<T>* center, Compute<T>* scale, Compute<T>* shift);
    using MakeBackwardCoefficients = bool (*)(Index channels, const double* mean,
                                              const double* mean_low, const double* rstd,
                                              const Param<T>* weight, const double* sum_dy,
                                              const double* sum_dy_xmu, double count,
                                              Compute<T>* center, Compute<T>* slope,
                                              Compute<T>* offset, Compute<T>* scale);

    CollectStats collect_stats;
    ApplyNorm apply_norm;
    BackwardReduce backward_reduce;
    BackwardApply backward_apply;
    MakeNormCoefficients norm_coefficients;
    MakeBackwardCoefficients backward_coefficients;
};

template <class T>
struct LayoutKernels {
    Kernels<T> planar;
    Kernels<T> interleaved;

    [[nodiscard]] const Kernels<T>& of(Layout layout) const {
        return layout == Layout::planar ? planar : interleaved;
    }
};

struct KernelTable {
    const char* name;     // "avx2"
    int vector_bytes;     // of the registers the kernels were compiled for
    void (*mark_used)();  // compiled with the kernels: notes that this table ran
    // rstd of each channel, and var from m2 (null: var is given)
    void (*finish_statistics)(Index channels, const double* m2, double count, double eps,
                              double* var, double* rstd);
    // whether any sum of a channel is of a size below `smallest`, or no number (range.hpp)
    bool (*any_beyond)(Index channels, const double* sums, double smallest);
    LayoutKernels<float> float32;
    LayoutKernels<double> float64;
    LayoutKernels<bnext::float16> float16;
    LayoutKernels<bnext::bfloat16> bfloat16;

    template <class T>
    [[nodiscard]] const Kernels<T>& kernels(Layout layout) const {
        constexpr DType dtype = DTypeOf<T>::value;
        if constexpr (dtype == DType::float32) {
            return float32.of(layout);
        } else if constexpr (dtype == DType::float64) {
            return float64.of(layout);
        } else if constexpr (dtype == DType::float16) {
            return float16.of(layout);
        } else {
            return bfloat16.of(layout);
        }
    }
};

}  // namespace bnext::cpu
