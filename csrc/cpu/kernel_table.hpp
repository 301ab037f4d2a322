// The functions of one instruction set, for each dtype, layout, pass and epilogue: the two phases,
// and the coefficients between them.
//
// A kernel is a serial function over a Region. It knows nothing of threads, other chunks, or
// Python; two_phase.hpp decides which thread calls it on which region. Per-channel arrays are
// indexed from the region's first channel.
#pragma once

#include <cstddef>

#include "core/dtype.hpp"
#include "core/formulas.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/flag_bits.hpp"
#include "cpu/view.hpp"
#include "cpu/weights.hpp"

namespace bnext::cpu {

struct Region {
    const Tiling* tiling;
    TileRange tiles;
    ChannelRange channels;

    // Of each channel.
    [[nodiscard]] BNEXT_FORCE_INLINE double values() const {
        return static_cast<double>(tiling->values(tiles));
    }
};

// What activated formulas apply, and the flags that they write or read, if any (core/formulas.hpp).
struct Activated {
    Fused fused;
    FlagBits flags{};
};

// Rows of coefficients in the order of the formula's Row (core/formulas.hpp), one value for each
// column (Tiling) of the region.
template <class C>
struct CoefficientsIn {
    const C* row[kMostRows];
    const Activated* activated = nullptr;  // not null for activated formulas
    const Weights<C>* weights = nullptr;   // not null for kernels of weighted positions
};

// The data of coefficients, for a range of channels; weight and bias may be null.
template <class T>
struct Terms {
    const double* mean;
    const double* mean_low;
    const double* rstd;
    const Param<T>* weight = nullptr;
    const Param<T>* bias = nullptr;
    const double* sum_dy = nullptr;
    const double* sum_dy_xmu = nullptr;
    double n = 0;                   // the values behind these sums
    const double* scale = nullptr;  // of dx, where it is not weight * rstd
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
    // Two sums of each cell over the region, from the first of the formula's inputs.
    //   forward:  the mean relative to the cell's origin (view.hpp), and m2
    //   backward: of dy, and of dy * (x - mean)
    // Returns n, the values behind the sums of any cell. Activated, backward: of g in place of dy
    // (core/formulas.hpp), with the rows of Normalize that z follows from. Of weighted positions
    // these have the weights, and n is their sum.
    using Reduce = double (*)(const View<const T>* in, const Region&, const double* mean,
                              const CoefficientsIn<Compute<T>>* of_z, double* a, double* b);
    // The formula at every place of the region.
    using Write = void (*)(const View<const T>* in, const View<T>* out, const Region&,
                           const CoefficientsIn<Compute<T>>&, const Access&);
    // The formula's coefficients, and whether any channel is beyond them (extremes.hpp).
    using MakeCoefficients = bool (*)(Index channels, const Terms<T>&, Compute<T>* const* rows);

    Reduce reduce;
    Write write;
    MakeCoefficients make_coefficients;
};

// By layout, pass and epilogue.
template <class T>
struct KernelSet {
    Kernels<T> of[2][kPasses][kEpilogues];
};

// The loops of an activation over a piece of values that a first-level cache has.
template <class C>
struct ActivationLoops {
    // act(z) in place of z; flags where they are kept (not null).
    void (*activate)(double slope, C* values, int n, FlagWriter* flags);
    // dy * act'(z) in place of z.
    void (*derive)(double slope, C* values, const C* dy, int n);
};

struct KernelTable : KernelSet<float>, KernelSet<double>, KernelSet<float16>, KernelSet<bfloat16> {
    const char* name;     // "avx2"
    int vector_bytes;     // of the registers the kernels were compiled for
    void (*mark_used)();  // compiled with the kernels: notes that this table ran
    // rstd of each channel, and var from m2 over n values (null: var is given)
    void (*finish_statistics)(Index channels, const double* m2, double n, double eps, double* var,
                              double* rstd);
    // whether any sum of a channel is of a size below `smallest`, or no number (range.hpp)
    bool (*any_beyond)(Index channels, const double* sums, double smallest);
    // by the activation's number, for the functions of positions with weights
    const ActivationLoops<float>* loops_of_float;
    const ActivationLoops<double>* loops_of_double;

    template <class C>
    [[nodiscard]] BNEXT_FORCE_INLINE const ActivationLoops<C>& loops(Activation activation) const {
        const auto number = static_cast<std::size_t>(activation);
        if constexpr (sizeof(C) == sizeof(float)) {
            return loops_of_float[number];
        } else {
            return loops_of_double[number];
        }
    }
    template <class T>
    [[nodiscard]] const Kernels<T>& kernels(Layout layout, Pass pass, Epilogue epilogue) const {
        return KernelSet<T>::of[static_cast<std::size_t>(layout)][static_cast<std::size_t>(pass)]
                               [static_cast<std::size_t>(epilogue)];
    }
};

// The functions of an instruction set for positions with weights, which what they take has. Their
// coefficients are made as without weights.
template <class T>
struct WeightedKernels {
    typename Kernels<T>::Reduce reduce;
    typename Kernels<T>::Write write;
};
template <class T>
struct WeightedKernelSet {
    WeightedKernels<T> of[2][kPasses][kEpilogues];
};
struct WeightedTable : WeightedKernelSet<float>,
                       WeightedKernelSet<double>,
                       WeightedKernelSet<float16>,
                       WeightedKernelSet<bfloat16> {
    template <class T>
    [[nodiscard]] const WeightedKernels<T>& kernels(Layout layout, Pass pass,
                                                    Epilogue epilogue) const {
        return WeightedKernelSet<T>::of[static_cast<std::size_t>(layout)][static_cast<std::size_t>(
            pass)][static_cast<std::size_t>(epilogue)];
    }
};

const WeightedTable& weighted_table_of(const KernelTable& table);

}  // namespace bnext::cpu
