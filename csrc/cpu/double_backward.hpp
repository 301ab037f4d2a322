// The double backward pass: the gradients of a backward pass's inputs by the gradients of its
// results. No Python here; pointers come checked. May be called from several threads at once.
//
// A backward pass has, per channel of n values, with E the mean over them, d = x - mean,
// xhat = d rstd, z = xhat weight + bias + residual and g = dy act'(z),
//     dx = weight rstd (g - E[g] - xhat E[g xhat]),
//     dweight = sum g xhat,  dbias = sum g,  dresidual = g
// Of L = sum (u dx + v dresidual) + p dweight + q dbias, with u = ddx, v = ddresidual, p = ddweight
// and q = ddbias, the gradients are
//     by g:  h = scale (u - E[u]) + slope d + q + v,    scale = weight rstd,
//            slope = rstd (p - scale U),                U = E[u xhat]
// since dx is a self-adjoint map of g. So by dy it is h act'(z). By z it is t = h dy act''(z),
// which is the gradient by the residual; by the bias it is sum t. By x, through g, z, the mean and
// rstd,
//     of_u (u - E[u]) + slope (g - E[g]) + of_d d + scale (t - E[t]),
//     of_u = -rstd scale G,                             G = E[g xhat],  K = E[u g] - E[u] E[g]
//     of_d = -rstd^2 (scale (K - 3 U G) + p G + weight E[t xhat])
// and by the weight rstd n (K - U G) + sum t xhat. Sums of t follow from sums of e = dy act''(z),
// as h is known but for numbers of the channel: two phases are enough. Where the statistics are
// constants, E, U, G, of_u and of_d are 0 in the above, and by the weight it is
// rstd sum u g + sum t xhat.
//
// Traffic: x, dy, ddx, ddresidual, and the residual or the flags, twice; each result once.
// Order, error: kernels/double_backward_reduce.inl.hpp; results are rounded once.
#pragma once

#include "core/activation.hpp"
#include "core/dtype.hpp"
#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "cpu/operations.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

// What a double backward pass is given besides the inputs of the backward pass, and its results;
// null where there is none, or it is not wanted. Of vectors, one double a channel.
template <class T>
struct TwiceArrays {
    View<const T> ddx, ddresidual;
    const double *ddweight, *ddbias;
    View<T> of_dy, of_x, of_residual;
    double *of_weight, *of_bias;
};

// `applied` has what the forward pass applied (with its parameters and flags), or is null.
// `centred`: the statistics are the batch's; otherwise constants.
template <class T>
void double_backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                     const StatisticsIn& of, const Param<T>* weight, bool centred,
                     const TwiceArrays<T>& arrays, const Applied<T>* applied);

}  // namespace bnext::cpu
