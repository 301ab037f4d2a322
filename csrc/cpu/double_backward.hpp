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
// In a group E is the mean over all members' values, and p and q are each member's own
// (core/double_backward.hpp): the phases by themselves, with sums that are added up in between.
//
// Traffic: x, dy, ddx, ddresidual, and the residual or the flags, twice; each result once.
// Order, error: kernels/double_backward_reduce.inl.hpp; results are rounded once.
#pragma once

#include "core/activation.hpp"
#include "core/double_backward.hpp"
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

// What a double backward pass is of. `applied` has what the forward pass applied (with its
// parameters and flags), or is null. `centred`: the statistics are the batch's; otherwise
// constants.
template <class T>
struct TwiceOf {
    const Problem& problem;
    View<const T> dy, x;
    StatisticsIn statistics;
    const Param<T>* weight;
    bool centred;
    const Applied<T>* applied;

    [[nodiscard]] Fused fused() const { return applied != nullptr ? applied->fused : Fused{}; }
    [[nodiscard]] bool is_curved() const { return !fused().is_piecewise_linear(); }
};

template <class T>
void double_backward(const TwiceOf<T>& of, const TwiceArrays<T>& arrays);

// --- in a group ---------------------------------------------------------------------------------

// Of each channel, values that sums of ddx and of g may be about: two rows.
template <class T>
void double_backward_pilots(const TwiceOf<T>& of, const TwiceArrays<T>& arrays, double* pilots);

// The sums of a part about pilots that all parts have, `twice_rows_of` rows.
template <class T>
void double_backward_reduce(const TwiceOf<T>& of, const TwiceArrays<T>& arrays,
                            const double* pilots, double* sums);

// Such rows, and over how many values they are sums.
struct TwiceTotal {
    const double* sums;
    double n;
};
// The results from the sums of all parts, with gradients by the parameters from `mine`: a part's
// shares, or of all parts.
template <class T>
void double_backward_apply(const TwiceOf<T>& of, const TwiceArrays<T>& arrays, const double* pilots,
                           const TwiceTotal& mine, const TwiceTotal& all);

}  // namespace bnext::cpu
