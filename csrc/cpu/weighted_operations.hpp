// Passes over positions with weights (cpu/weights.hpp), called by the passes of operations.hpp.
#pragma once

#include "cpu/operations.hpp"
#include "cpu/weights.hpp"

namespace bnext::cpu {

// Whether a backward pass over positions with weights is an activated one.
constexpr bool writes_activated(const Fused& fused) {
    return fused.residual || fused.changes_backward();
}

template <class T>
double weighted_collect_stats(const Problem& given, const View<const T>& x,
                              const StatisticsOut& out, const Weights<Compute<T>>& weights);

template <class T>
void weighted_apply_norm(const Problem& given, const View<const T>& x, const View<T>& y,
                         const StatisticsOut& rows, double eps, const Affine<T>& affine,
                         const Weights<Compute<T>>& weights);

template <class T>
double weighted_forward(const Problem& given, const View<const T>& x, const View<T>& y,
                        const Affine<T>& affine, double eps, const StatisticsOut& out,
                        const Weights<Compute<T>>& weights);

// The backward pass, its first phase alone (`apply` false), or its second alone (`reduce` false, of
// n values).
template <class T>
void weighted_backward(const Problem& given, const View<const T>& dy, const View<const T>& x,
                       const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                       double* sum_dy, double* sum_dy_xmu, const Weights<Compute<T>>& weights,
                       bool reduce, bool apply, double n);

template <class T>
double weighted_activated_forward(const Problem& given, const View<const T>& x, const View<T>& y,
                                  const Affine<T>& affine, double eps, const StatisticsOut& rows,
                                  const Applied<T>& applied, const Weights<Compute<T>>& weights);

template <class T>
void weighted_activated_apply_norm(const Problem& given, const View<const T>& x, const View<T>& y,
                                   const StatisticsOut& rows, double eps, const Affine<T>& affine,
                                   const Applied<T>& applied, const Weights<Compute<T>>& weights);

// As weighted_backward.
template <class T>
void weighted_activated_backward(const Problem& given, const View<const T>& dy,
                                 const View<const T>& x, const View<T>& dx, const StatisticsIn& of,
                                 const Param<T>* weight, double* sum_dy, double* sum_dy_xmu,
                                 const Applied<T>& applied, const Weights<Compute<T>>& weights,
                                 bool reduce, bool apply, double n);

}  // namespace bnext::cpu
