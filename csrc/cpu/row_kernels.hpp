// The kernels of layer and RMS normalization, for one dtype: serial functions over rows of one
// matrix, of which each is normalized by itself. rows.hpp has the order in which they are called.
#pragma once

#include "core/dtype.hpp"
#include "core/inline.hpp"
#include "cpu/kernel_table.hpp"

namespace bnext::cpu {

// Rows of contiguous values, `pitch` elements apart. Of a block of rows that was made in memory of
// its own, `data` is where row 0 and column 0 would be.
template <class T>
struct Matrix {
    T* data;
    Index pitch;

    [[nodiscard]] BNEXT_FORCE_INLINE T* at(Index r, Index column) const { return row(r) + column; }
    [[nodiscard]] BNEXT_FORCE_INLINE T* row(Index r) const { return data + r * pitch; }
};

struct ColumnRange {
    Index begin;
    Index end;

    [[nodiscard]] BNEXT_FORCE_INLINE Index size() const { return end - begin; }
};

// Neighbouring rows, or the same columns of each.
struct RowBlock {
    Index begin;
    Index end;
    ColumnRange columns;

    [[nodiscard]] BNEXT_FORCE_INLINE Index rows() const { return end - begin; }
};

// What rows are normalized by, from row 0 on: xhat = (x - mean - mean_low) * rstd.
struct RowStatistics {
    double* mean;
    double* mean_low;
    double* rstd;
};

// Two sums of each row over some of its columns.
struct RowSums {
    double* first;
    double* second;
};

// What the backward pass of rows reads and writes.
template <class T>
struct RowGradient {
    Matrix<const T> dy;
    Matrix<const T> x;
    Matrix<T> dx;
    const Param<T>* weight;  // from column 0 on
    RowStatistics of;
    RowSums sums;  // of whole rows, from row 0 on: g = dy * weight, and g * xhat
    Index width;   // the values of a row
    // What follows in memory where dy and x are not read from there, but made of others.
    Matrix<const T> next_dy = dy;
    Matrix<const T> next_x = x;
};

struct RowAccess {
    Stores stores = Stores::cached;
    // Rows behind a block that the caller goes on with. They are prefetched while it is written.
    Index ahead = 0;
};

// The median of the first, middle and last value of a row (as view.hpp has it of a channel).
template <class T>
BNEXT_FORCE_INLINE double origin_of_row(const T* x, Index width) {
    const auto value = [x](Index i) BNEXT_INLINE_LAMBDA { return static_cast<Compute<T>>(x[i]); };
    return median_of(value(0), value(width / 2), value(width - 1));
}

// Whether a row's numbers are beyond what float32 has, so that the row is written in double.
template <class T>
BNEXT_FORCE_INLINE bool is_extreme_row(const RowStatistics& of, Index row) {
    if constexpr (sizeof(T) == 8) return false;
    constexpr double kLargest = 0x1p100, kSmallest = 0x1p-100;
    const double rstd = of.rstd[row], mean = of.mean[row];
    const bool usual = rstd <= kLargest && (rstd >= kSmallest || rstd == 0.0) && mean < kLargest &&
                       mean > -kLargest;
    return !usual;
}

// Values of a row, what they are combined with, and what the caller goes on with, which is
// prefetched; the residual and `next` may be null.
template <class T>
struct RowPiece {
    const T* x;
    const T* residual;
    const T* next;
    const Param<T>* weight;
    const Param<T>* bias;
    Index n;
};

// The steps of an activated pass over a piece of a row, in arithmetic of S. Buffers of S end with a
// whole pack.
template <class T, class S>
struct RowSteps {
    // z = xhat * weight + bias + residual
    void (*argument)(const RowStatistics&, Index row, const RowPiece<T>&, S* z);
    void (*widen)(const T* values, Index n, S* to);
    // Streaming: past the caches, from the first line of the cache on; `fence` behind the last.
    void (*narrow)(const S* values, Index n, T* to, bool streams);
};

template <class T>
struct RowKernels {
    // Of each row of a block, from its first on: the mean about the row's origin (of `width`
    // values), and m2. Not centered: 0, and the sum of squares.
    using Moments = void (*)(const Matrix<const T>& x, Index width, const RowBlock&, bool centered,
                             const RowSums& moments);
    // y = xhat * weight + bias
    using Normalize = void (*)(const Matrix<const T>& x, const Matrix<T>& y, const RowBlock&,
                               const RowStatistics&, const Param<T>* weight, const Param<T>* bias,
                               const RowAccess&);
    // The sums of RowGradient over a block's columns, from its first row on.
    using Reduce = void (*)(const RowGradient<T>&, const RowBlock&, const RowSums& sums);
    // dx = rstd * (g - mean of g - xhat * mean of g * xhat). Adds dy * xhat and dy of the rows to
    // dweight and dbias, in turn, or begins them if `fresh`. Without dweight, dx alone.
    using Differentiate = void (*)(const RowGradient<T>&, const RowBlock&, double* dweight,
                                   double* dbias, bool fresh, const RowAccess&);

    Moments moments;
    Normalize normalize;
    Reduce reduce[2];                // by whether rows are centered
    Differentiate differentiate[2];  // the same
    RowSteps<T, Compute<T>> steps;   // of activated passes
    RowSteps<T, double> wide_steps;  // the same, of extreme rows
};

// The functions of one instruction set, as in KernelTable. By themselves, since files with all
// kernels take the longest to compile.
struct RowTable : RowKernels<float>, RowKernels<double>, RowKernels<float16>, RowKernels<bfloat16> {
    void (*fence)();  // makes what was streamed visible to other threads

    template <class T>
    [[nodiscard]] const RowKernels<T>& kernels() const {
        return *this;
    }
};

const RowTable& row_table_of(const KernelTable& table);  // of the same instruction set

}  // namespace bnext::cpu
