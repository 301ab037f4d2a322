// The kernels of the double backward pass, for one dtype: serial functions over a Region, as in
// kernel_table.hpp. double_backward.hpp has the derivation, and the order in which they are called.
#pragma once

#include "core/dtype.hpp"
#include "cpu/kernel_table.hpp"

namespace bnext::cpu {

// Sums of each column, with d = x - mean, u = ddx - its pilot, g = dy act'(z) - its pilot,
// e = dy act''(z) and k = scale u + ddresidual. Those of e are of curved activations alone.
enum class TwiceSum : std::uint8_t { u, ud, g, gd, ug, e, ed, edd, ek, ekd };
inline constexpr int kTwiceSums = 10, kTwiceSumsOfLines = 5;

// Coefficients of each column, in the order of what they follow.
enum class TwiceRow : std::uint8_t {
    mean,    // of x
    mean_u,  // of ddx
    mean_g,  // of g
    scale,   // weight * rstd: of ddx in h, and of t
    slope,   // of x - mean in h, and of g in the gradient of x
    shift,   // of h
    of_u,    // the gradient of x, besides: of ddx,
    of_d,    // of x - mean,
    offset,  // and a number
};
inline constexpr int kTwiceRows = 9;

// What both phases read and write. Arrays and results that a call does without are null.
template <class T>
struct DoubleBackward {
    View<const T> x, dy, ddx, ddresidual, residual;
    View<T> of_dy, of_x, of_residual;  // the gradients
    Activated activated;
    bool centred;  // false: the statistics are constants, and all pilots 0

    // For each column, from the first channel's on: the rows of z, as Normalize has them; where
    // channels are extreme (extremes.hpp), which, and their constants.
    const Compute<T>* z[3];
    const bool* is_extreme;
    const double* exact[3];
    const double* row[kTwiceRows];

    [[nodiscard]] BNEXT_FORCE_INLINE bool has_activation() const {
        return activated.fused.activation != Activation::none;
    }
    [[nodiscard]] BNEXT_FORCE_INLINE bool is_curved() const {
        return !activated.fused.is_piecewise_linear();
    }
    [[nodiscard]] BNEXT_FORCE_INLINE const double* coefficients(TwiceRow which) const {
        return row[static_cast<int>(which)];
    }
    // Of a channel, in all chunks the same: the values that its sums are about. After an activation
    // g varies with act', so that a pilot would not help; and sums of zeros are 0.
    [[nodiscard]] BNEXT_FORCE_INLINE double pilot_of_u(const Tiling& tiling, Index c) const {
        return centred && ddx.data != nullptr ? origin_of(ddx, tiling, c) : 0.0;
    }
    [[nodiscard]] BNEXT_FORCE_INLINE double pilot_of_g(const Tiling& tiling, Index c) const {
        return centred && !has_activation() ? origin_of(dy, tiling, c) : 0.0;
    }
};

template <class T>
struct DoubleBackwardKernels {
    // Row s of the sums begins at sums + s * pitch, with the region's first column.
    using Reduce = void (*)(const DoubleBackward<T>&, const Region&, double* sums, Index pitch);
    using Write = void (*)(const DoubleBackward<T>&, const Region&, Stores);

    Reduce reduce[2];  // by layout
    Write write[2];
};

// The functions of one instruction set, as in KernelTable. By themselves, since files with all
// kernels take the longest to compile.
struct DoubleBackwardTable : DoubleBackwardKernels<float>,
                             DoubleBackwardKernels<double>,
                             DoubleBackwardKernels<float16>,
                             DoubleBackwardKernels<bfloat16> {
    template <class T>
    [[nodiscard]] const DoubleBackwardKernels<T>& kernels() const {
        return *this;
    }
};

const DoubleBackwardTable& double_backward_table_of(const KernelTable& table);  // of the same set

}  // namespace bnext::cpu
