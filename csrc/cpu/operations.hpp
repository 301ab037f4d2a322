// The operations: the four phases alone, and fused. No Python here; pointers and strides come
// checked. All of them may be called from several threads at once.
#pragma once

#include "core/activation.hpp"
#include "core/dtype.hpp"
#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "cpu/flag_bits.hpp"
#include "cpu/view.hpp"
#include "cpu/weights.hpp"

namespace bnext::cpu {

template <class T>
struct Affine {  // null where there is none: weight 1, bias 0
    const Param<T>* weight;
    const Param<T>* bias;
};

// What is applied besides (core/activation.hpp), and the arrays that it takes; null for a pass that
// applies nothing.
template <class T>
struct Applied {
    Fused fused;
    View<const T> residual{nullptr, {}};
    FlagBits flags{};                        // written by forward, read by backward
    View<T> dresidual{nullptr, {}};          // written by backward
    Affine<T> of_forward{nullptr, nullptr};  // for backward, the weight and bias that z has
    const double* scale = nullptr;  // of dx, where it is not weight * rstd (cpu/in_place.hpp)
};

// n, the number of values behind the statistics of each channel, comes from the sums; of empty data
// it is their number in the shape. With weights of positions it is their sum, and values at
// positions that do not count are not looked at. Then `dresidual` is written wherever there was a
// residual, also without an activation.
template <class T>
using WeightsOf = Weights<Compute<T>>;

// The mean, its low part and m2; 0 where there are no values. Returns n.
template <class T>
double collect_stats(const Problem& problem, const View<const T>& x, const StatisticsOut& out,
                     const WeightsOf<T>* weights = nullptr);

// y = (x - mean) * rstd * weight + bias, with rstd from var; nothing else of `rows` changes.
template <class T>
void apply_norm(const Problem& problem, const View<const T>& x, const View<T>& y,
                const StatisticsOut& rows, double eps, const Affine<T>& affine,
                const Applied<T>* applied = nullptr, const WeightsOf<T>* weights = nullptr);

// sum_dy (C,) and sum_dy_xmu (C,) = sum of dy * (x - mean)
template <class T>
void backward_reduce(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                     const StatisticsIn& of, double* sum_dy, double* sum_dy_xmu,
                     const Applied<T>* applied = nullptr, const WeightsOf<T>* weights = nullptr);

// dx from sums over n values: in a group, the values of all members
template <class T>
void backward_apply(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                    const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                    const double* sum_dy, const double* sum_dy_xmu, double n,
                    const Applied<T>* applied = nullptr, const WeightsOf<T>* weights = nullptr);

// The statistics that `forward` gives, alone.
template <class T>
double statistics(const Problem& problem, const View<const T>& x, double eps,
                  const StatisticsOut& out);

// Coefficients for a compiler that writes y = (x * unit - center) * scale + shift itself: rows
// (4, C) of unit, center, scale and shift. The unit is a power of two. It is 1 but for the channels
// of extremes.hpp, whose values it scales into the range of float32.
template <class T>
void pointwise_coefficients(Index channels, const StatisticsIn& of, const Affine<T>& affine,
                            Compute<T>* rows);

// collect_stats and apply_norm in one region; x comes from memory once where a slab stays in a
// cache. Returns n.
template <class T>
double forward(const Problem& problem, const View<const T>& x, const View<T>& y,
               const Affine<T>& affine, double eps, const StatisticsOut& out,
               const Applied<T>* applied = nullptr, const WeightsOf<T>* weights = nullptr);

// backward_reduce and backward_apply in one region.
template <class T>
void backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
              const View<T>& dx, const StatisticsIn& of, const Param<T>* weight, double* sum_dy,
              double* sum_dy_xmu, const Applied<T>* applied = nullptr,
              const WeightsOf<T>* weights = nullptr);

}  // namespace bnext::cpu
