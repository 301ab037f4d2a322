// The kernels of the double backward pass, for one dtype: serial functions over a Region, as in
// kernel_table.hpp. double_backward.hpp has the derivation, and the order in which they are called.
#pragma once

#include "core/double_backward.hpp"
#include "core/dtype.hpp"
#include "cpu/kernel_table.hpp"

namespace bnext::cpu {

// What both phases read and write. Arrays and results that a call does without are null.
template <class T>
struct DoubleBackward {
    View<const T> x, dy, ddx, ddresidual, residual;
    View<T> of_dy, of_x, of_residual;  // the gradients
    Activated activated;
    // Of each channel, the values that sums of ddx and of g are about: in all parts the same.
    const double *pilot_u, *pilot_g;

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
