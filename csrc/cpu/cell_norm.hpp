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

// What a pass applies besides normalizing: no flags are kept. The residual is where the forward
// pass has one, and where the backward pass reads it. Of a backward pass: the residual's gradient,
// where there was a residual and an activation; and the parameters of the forward call.
template <class T>
struct CellsApplied {
    Fused fused{};
    Examples<const T> residual{nullptr, {}, 0};
    Examples<T> dresidual{nullptr, {}, 0};
    Affine<T> of_forward{nullptr, nullptr};
};

// y = act((x - mean) * rstd * weight + bias + residual), by the moments of slabs, which `slabs`
// gets, and by the parameters of channels. Returns n, the values of a slab.
template <class T>
double cell_forward(const CellProblem& problem, const Examples<const T>& x, const Examples<T>& y,
                    const Affine<T>& affine, double eps, const StatisticsOut& slabs,
                    const CellsApplied<T>& applied = {});

// With g = dy * weight and the means over a slab's values,
//     dx = rstd * (g - mean of g - xhat * mean of g * xhat)
// and dweight (C,) = sum of dy * xhat, dbias (C,) = sum of dy, over the cells of each channel.
// After an activation dy * act'(z) takes the place of dy, with z of the forward call's parameters.
// It is also the residual's gradient.
template <class T>
void cell_backward(const CellProblem& problem, const Examples<const T>& dy,
                   const Examples<const T>& x, const Examples<T>& dx, const StatisticsIn& slabs,
                   const Param<T>* weight, double* dweight, double* dbias,
                   const CellsApplied<T>& applied = {});

}  // namespace bnext::cpu
