// Layer and RMS normalization: each row of a matrix by itself. No Python here; pointers come
// checked. All of it may be called from several threads at once.
#pragma once

#include "core/activation.hpp"
#include "core/dtype.hpp"
#include "cpu/row_kernels.hpp"

namespace bnext::cpu {

// What the rows of a call have in common.
struct RowProblem {
    Index rows;
    Index width;    // values of a row
    bool centered;  // layer normalization; false: RMS, whose mean is 0

    [[nodiscard]] Index elements() const { return rows * width; }
};

// What a pass does of rows whose values are divided among members of a group: their sums are merged
// between the phases.
enum class RowPhases : std::uint8_t { both, first, second };

// Of a backward pass over such rows: which phase, the sums of g and of g * xhat for each row, and
// how many values a row has.
struct DividedRows {
    RowPhases phases = RowPhases::both;
    RowSums sums{nullptr, nullptr};
    Index width = 0;
};

// What a call applies besides, y = act(z) with z = norm(x) + residual, and what its backward pass
// makes z of again.
template <class T>
struct RowsApplied {
    Fused fused{};
    Matrix<const T> residual{nullptr, 0};  // null where there is none, or it is not read
    Matrix<T> dresidual{nullptr, 0};       // null where it is not wanted
    // Of a backward pass: the forward call's. May be null.
    const Param<T>* weight = nullptr;
    const Param<T>* bias = nullptr;
};

// The first phase of a forward pass: mean, and its low part, and m2 of each row over the values
// that are here.
template <class T>
void collect_rows(const RowProblem& problem, const Matrix<const T>& x, const RowStatistics& mean,
                  double* m2);

// rstd of each row, of m2 over n values.
void finish_rows(Index rows, const double* m2, double n, double eps, double* rstd);

// y = (x - mean) * rstd * weight + bias, and what was normalized by. weight and bias may be null.
template <class T>
void normalize_rows(const RowProblem& problem, const Matrix<const T>& x, const Matrix<T>& y,
                    const Param<T>* weight, const Param<T>* bias, double eps,
                    const RowStatistics& out, const RowsApplied<T>& applied = {},
                    RowPhases phases = RowPhases::both);

// dx; and dweight and dbias, sums over all rows of one double for each column. weight may be null;
// dbias is not written where rows are not centered. Without dweight, dx alone. After an activation
// also dresidual, if it is wanted. The phases apart: the first fills `divided`, and the second has
// in it the sums over all values of a row.
template <class T>
void differentiate_rows(const RowProblem& problem, const Matrix<const T>& dy,
                        const Matrix<const T>& x, const Matrix<T>& dx, const Param<T>* weight,
                        const RowStatistics& of, double* dweight, double* dbias,
                        const RowsApplied<T>& applied = {}, const DividedRows& divided = {});

}  // namespace bnext::cpu
