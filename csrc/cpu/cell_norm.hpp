// Norms of cells: group and instance normalization. Both passes, over arrays whose examples are
// normalized each for itself (core/cell_problem.hpp).
#pragma once

#include "core/cell_problem.hpp"
#include "core/statistics.hpp"
#include "cpu/operations.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

// An array of examples.
template <class T>
struct Examples {
    T* data;
    Strides stride;  // within an example
    Index step;      // from an example to the next

    // Example e from cell c on.
    [[nodiscard]] View<T> of(Index e, Index c) const {
        return {data + e * step + c * stride.channel, stride};
    }
};

// y = (x - mean) * rstd * weight + bias, by the moments of slabs, which `slabs` gets, and by the
// parameters of channels. Returns n, the values of a slab.
template <class T>
double cell_forward(const CellProblem& problem, const Examples<const T>& x, const Examples<T>& y,
                    const Affine<T>& affine, double eps, const StatisticsOut& slabs);

// With g = dy * weight and the means over a slab's values,
//     dx = rstd * (g - mean of g - xhat * mean of g * xhat)
// and dweight (C,) = sum of dy * xhat, dbias (C,) = sum of dy, over the cells of each channel.
template <class T>
void cell_backward(const CellProblem& problem, const Examples<const T>& dy,
                   const Examples<const T>& x, const Examples<T>& dx, const StatisticsIn& slabs,
                   const Param<T>* weight, double* dweight, double* dbias);

}  // namespace bnext::cpu
