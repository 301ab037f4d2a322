#include "cpu/operations.hpp"

#include <algorithm>
#include <cmath>

#include "core/float_mode.hpp"
#include "core/formulas.hpp"
#include "cpu/activated_phases.hpp"
#include "cpu/in_place.hpp"
#include "cpu/phases.hpp"
#include "cpu/weighted_operations.hpp"

namespace bnext::cpu {
namespace {

template <class T>
using Forward = Formula<Pass::forward, Epilogue::none, Compute<T>>;
template <class T>
using Backward = Formula<Pass::backward, Epilogue::none, Compute<T>>;

double set_empty(const Problem& problem, std::initializer_list<double*> rows) {
    for (double* const row : rows) std::fill_n(row, problem.channels, 0.0);
    return static_cast<double>(problem.count());
}

double finish(const Problem& problem, double n, double eps, const StatisticsOut& out) {
    active_table().finish_statistics(problem.channels, out.m2(), n, eps, out.var(), out.rstd());
    return n;
}

}  // namespace

template <class T>
double collect_stats(const Problem& problem, const View<const T>& x, const StatisticsOut& out,
                     const WeightsOf<T>* weights) {
    const bool none_count = weights != nullptr && weights->total == 0.0;
    if (problem.elements() == 0 || none_count) {
        const double n = set_empty(problem, {out.mean(), out.mean_low(), out.m2()});
        return none_count ? 0.0 : n;
    }
    if (weights != nullptr) return weighted_collect_stats<T>(problem, x, out, *weights);
    const auto setting = prepare<T>(problem, kSummingWork<Forward<T>>, Pass::forward);
    return setting.run(FirstPhaseOnly<CollectMoments<T>>{{setting, x, out}}, problem);
}

template <class T>
double statistics(const Problem& problem, const View<const T>& x, double eps,
                  const StatisticsOut& out) {
    const double n = collect_stats<T>(problem, x, out);
    const FloatMode mode;
    return finish(problem, n, eps, out);
}

template <class T>
double forward(const Problem& problem, const View<const T>& x, const View<T>& y,
               const Affine<T>& affine, double eps, const StatisticsOut& out,
               const Applied<T>* applied, const WeightsOf<T>* weights) {
    if (problem.elements() == 0) {
        return finish(problem, collect_stats<T>(problem, x, out), eps, out);
    }
    if (weights != nullptr && weights->total == 0.0) {
        collect_stats<T>(problem, x, out, weights);
        std::fill_n(out.var(), problem.channels, 0.0);
        apply_norm<T>(problem, x, y, out, eps, affine, applied, weights);
        return 0.0;
    }
    if (weights != nullptr && applied != nullptr && applied->fused.any()) {
        return weighted_activated_forward<T>(problem, x, y, affine, eps, out, *applied, *weights);
    }
    if (weights != nullptr) return weighted_forward<T>(problem, x, y, affine, eps, out, *weights);
    if (applied != nullptr && applied->fused.any()) {
        return activated_forward<T>(problem, x, y, affine, eps, out, *applied);
    }
    return forward_of_cells<T>(problem, x, y, affine, eps, out);
}

template <class T>
void apply_norm(const Problem& problem, const View<const T>& x, const View<T>& y,
                const StatisticsOut& rows, double eps, const Affine<T>& affine,
                const Applied<T>* applied, const WeightsOf<T>* weights) {
    if (problem.elements() == 0) {
        active_table().finish_statistics(problem.channels, nullptr, 0.0, eps, rows.var(),
                                         rows.rstd());
        return;
    }
    if (weights != nullptr && applied != nullptr && applied->fused.any()) {
        return weighted_activated_apply_norm<T>(problem, x, y, rows, eps, affine, *applied,
                                                *weights);
    }
    if (weights != nullptr) {
        return weighted_apply_norm<T>(problem, x, y, rows, eps, affine, *weights);
    }
    if (applied != nullptr && applied->fused.any()) {
        return activated_apply_norm<T>(problem, x, y, rows, eps, affine, *applied);
    }
    const auto setting = prepare<T>(problem, kWritingWork<Forward<T>>, Pass::forward);
    Second<Forward<T>, T, Normal<T>>{setting, &x, &y, {rows, affine, eps}}.run(problem);
}

template <class T>
void backward_reduce(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                     const StatisticsIn& of, double* sum_dy, double* sum_dy_xmu,
                     const Applied<T>* applied, const WeightsOf<T>* weights) {
    if (problem.elements() == 0) return void(set_empty(problem, {sum_dy, sum_dy_xmu}));
    if (weights != nullptr && applied != nullptr && applied->fused.changes_backward()) {
        return weighted_activated_backward<T>(problem, dy, x, {nullptr, {}}, of, nullptr, sum_dy,
                                              sum_dy_xmu, *applied, *weights, true, false, 0);
    }
    if (weights != nullptr) {
        return weighted_backward<T>(problem, dy, x, {nullptr, {}}, of, nullptr, sum_dy, sum_dy_xmu,
                                    *weights, true, false, 0);
    }
    if (begins_in_place(applied)) {
        const InPlace<T> in_place(problem.channels, of, nullptr, *applied);
        backward_reduce<T>(problem, dy, x, in_place.of(), sum_dy, sum_dy_xmu, &in_place.applied());
        return in_place.to_units_of_x(sum_dy_xmu);
    }
    if (applied != nullptr && applied->fused.changes_backward()) {
        return activated_backward<T>(problem, dy, x, {nullptr, {}}, of, nullptr, sum_dy, sum_dy_xmu,
                                     *applied, true, false, 0);
    }
    const auto setting = prepare<T>(problem, kSummingWork<Backward<T>>, Pass::backward);
    const View<const T> in[] = {x, dy};
    setting.run(FirstPhaseOnly<CollectGradients<T>>{{setting, in, of, sum_dy, sum_dy_xmu}},
                problem);
}

template <class T>
void backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
              const View<T>& dx, const StatisticsIn& of, const Param<T>* weight, double* sum_dy,
              double* sum_dy_xmu, const Applied<T>* applied, const WeightsOf<T>* weights) {
    if (problem.elements() == 0) return void(set_empty(problem, {sum_dy, sum_dy_xmu}));
    if (weights != nullptr && applied != nullptr && writes_activated(applied->fused)) {
        return weighted_activated_backward<T>(problem, dy, x, dx, of, weight, sum_dy, sum_dy_xmu,
                                              *applied, *weights, true, true, 0);
    }
    if (weights != nullptr) {
        return weighted_backward<T>(problem, dy, x, dx, of, weight, sum_dy, sum_dy_xmu, *weights,
                                    true, true, 0);
    }
    if (begins_in_place(applied)) {
        const InPlace<T> in_place(problem.channels, of, weight, *applied);
        backward<T>(problem, dy, x, dx, in_place.of(), weight, sum_dy, sum_dy_xmu,
                    &in_place.applied());
        return in_place.to_units_of_x(sum_dy_xmu);
    }
    if (applied != nullptr && applied->fused.changes_backward()) {
        return activated_backward<T>(problem, dy, x, dx, of, weight, sum_dy, sum_dy_xmu, *applied,
                                     true, true, 0);
    }
    const auto setting = prepare<T>(problem, kWholeWork<Backward<T>>, Pass::backward);
    const View<const T> in[] = {x, dy};
    setting.run(
        Both<CollectGradients<T>, Second<Backward<T>, T, Gradients<T>>>{
            {setting, in, of, sum_dy, sum_dy_xmu},
            {setting, in, &dx, {of, weight, sum_dy, sum_dy_xmu, scale_of(applied)}}},
        problem);
}

template <class T>
void backward_apply(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                    const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                    const double* sum_dy, const double* sum_dy_xmu, double n,
                    const Applied<T>* applied, const WeightsOf<T>* weights) {
    if (problem.elements() == 0) return;
    if (weights != nullptr && applied != nullptr && writes_activated(applied->fused)) {
        // (The sums are read alone.)
        return weighted_activated_backward<T>(
            problem, dy, x, dx, of, weight, const_cast<double*>(sum_dy),
            const_cast<double*>(sum_dy_xmu), *applied, *weights, false, true, n);
    }
    if (weights != nullptr) {
        // (The sums are read alone.)
        return weighted_backward<T>(problem, dy, x, dx, of, weight, const_cast<double*>(sum_dy),
                                    const_cast<double*>(sum_dy_xmu), *weights, false, true, n);
    }
    if (begins_in_place(applied)) {
        const InPlace<T> in_place(problem.channels, of, weight, *applied);
        const auto sums = in_place.in_units_of_z(sum_dy_xmu);
        return backward_apply<T>(problem, dy, x, dx, in_place.of(), weight, sum_dy, sums.data(), n,
                                 &in_place.applied());
    }
    if (applied != nullptr && applied->fused.changes_backward()) {
        // (The sums are read alone.)
        return activated_backward<T>(problem, dy, x, dx, of, weight, const_cast<double*>(sum_dy),
                                     const_cast<double*>(sum_dy_xmu), *applied, false, true, n);
    }
    const auto setting = prepare<T>(problem, kWritingWork<Backward<T>>, Pass::backward);
    const View<const T> in[] = {x, dy};
    Second<Backward<T>, T, Gradients<T>>{
        setting, in, &dx, {of, weight, sum_dy, sum_dy_xmu, scale_of(applied)}}
        .run(problem, n);
}

template <class T>
void pointwise_coefficients(Index channels, const StatisticsIn& of, const Affine<T>& affine,
                            Compute<T>* rows) {
    using C = Compute<T>;
    constexpr int kLeast = -126, kMost = 126;  // exponents of normal float32
    const FloatMode mode;
    for (Index c = 0; c < channels; ++c) {
        const NormConstants constants = norm_constants<T>(c, of, affine);
        const double rstd = of.rstd()[c];
        const bool apart = kHasExtremes<T> && constants.is_extreme(rstd) && std::isfinite(rstd) &&
                           std::isfinite(constants.mean);
        const int room = kMost - 1 - std::max(std::ilogb(constants.mean), -1);
        const double unit =
            apart ? std::ldexp(1.0, std::clamp(std::ilogb(rstd), kLeast, room)) : 1.0;
        const C center = static_cast<C>(constants.mean);
        const double low =
            kHasMeanLow<T> ? of.mean_low()[c] : constants.mean - static_cast<double>(center);
        rows[c] = static_cast<C>(unit);
        rows[c + channels] = static_cast<C>(static_cast<double>(center) * unit);
        rows[c + 2 * channels] = static_cast<C>(constants.scale / unit);
        rows[c + 3 * channels] = static_cast<C>(constants.bias - low * constants.scale);
    }
}

#define BNEXT_INSTANTIATE(T)                                  \
    template decltype(collect_stats<T>) collect_stats<T>;     \
    template decltype(statistics<T>) statistics<T>;           \
    template decltype(forward<T>) forward<T>;                 \
    template decltype(apply_norm<T>) apply_norm<T>;           \
    template decltype(backward_reduce<T>) backward_reduce<T>; \
    template decltype(backward<T>) backward<T>;               \
    template decltype(backward_apply<T>) backward_apply<T>;   \
    template decltype(pointwise_coefficients<T>) pointwise_coefficients<T>;
BNEXT_INSTANTIATE(float)
BNEXT_INSTANTIATE(double)
BNEXT_INSTANTIATE(float16)
BNEXT_INSTANTIATE(bfloat16)
#undef BNEXT_INSTANTIATE

}  // namespace bnext::cpu
