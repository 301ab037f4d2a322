// collect_stats, apply_norm, and both fused.
#include <algorithm>

#include "core/moments.hpp"
#include "cpu/coefficients.hpp"
#include "cpu/operation.hpp"
#include "cpu/operations.hpp"
#include "cpu/two_phase.hpp"

namespace bnext::cpu {
namespace {

enum NormRow : std::size_t { kCenter, kScale, kShift, kNormRows };

// The coefficients of kernels/apply_norm.inl.hpp, computed in double and rounded once.
template <class T, class Rows>
void set_norm_coefficients(Rows& rows, Index i, double mean, double rstd, double weight,
                           double bias) {
    const auto center = static_cast<Compute<T>>(mean);
    const double low = mean - static_cast<double>(center);
    const double scale = weight * rstd;
    *rows.row(kCenter, i) = center;
    *rows.row(kScale, i) = static_cast<Compute<T>>(scale);
    *rows.row(kShift, i) = static_cast<Compute<T>>(bias - low * scale);
}

template <class T, class Rows>
NormCoefficients<T> norm_coefficients(const Rows& rows, Index offset) {
    return {rows.row(kCenter, offset), rows.row(kScale, offset), rows.row(kShift, offset)};
}

// The first phase: moments per channel. Until they are final, means are relative to the channel's
// origin (view.hpp).
template <class T>
struct Statistics {
    const Setting<T>& setting;
    const View<const T>& x;
    double* mean;
    double* m2;

    void reduce(const Region& region, double* a, double* b) const {
        setting.kernels.collect_stats(x, region, a, b);
    }
    void merge(Index done, Index more, Index channels, double* a, double* b, const double* more_a,
               const double* more_b) const {
        for (Index i = 0; i < channels; ++i) {
            Moments sum{static_cast<double>(done), a[i], b[i]};
            bnext::merge(sum, {static_cast<double>(more), more_a[i], more_b[i]});
            a[i] = sum.mean;
            b[i] = sum.m2;
        }
    }
    [[nodiscard]] double origin(Index c) const { return origin_of(x, setting.plan.tiling, c); }
    void keep(const ChannelRange& channels, const double* a, const double* b) const {
        for (Index c = channels.begin; c < channels.end; ++c) {
            mean[c] = origin(c) + a[c - channels.begin];
        }
        std::copy_n(b, channels.size(), m2 + channels.begin);
    }
};

template <class T>
struct Forward : Statistics<T> {
    const View<T>& y;
    const Affine<T>& affine;
    double eps;
    double count;

    template <Index Capacity>
    using Coefficients = CoefficientRows<Compute<T>, kNormRows, Capacity>;

    template <class Rows>
    void finish(const ChannelRange& channels, const double* a, const double* b, Rows& rows,
                Index offset) const {
        this->keep(channels, a, b);
        for (Index i = 0; i < channels.size(); ++i) {
            const Index c = channels.begin + i;
            set_norm_coefficients<T>(rows, offset + i, this->mean[c], rstd_of(b[i] / count, eps),
                                     value_or(affine.weight, c, 1.0),
                                     value_or(affine.bias, c, 0.0));
        }
    }
    template <class Rows>
    void apply(const Region& region, const Rows& rows, Index offset, Index ahead) const {
        this->setting.kernels.apply_norm(this->x, y, region, norm_coefficients<T>(rows, offset),
                                         {this->setting.stores, ahead});
    }
};

void set_empty(const Problem& problem, double* mean, double* m2) {
    std::fill_n(mean, problem.channels, 0.0);
    std::fill_n(m2, problem.channels, 0.0);
}

}  // namespace

template <class T>
void collect_stats(const Problem& problem, const View<const T>& x, double* mean, double* m2) {
    if (problem.elements() == 0) return set_empty(problem, mean, m2);
    const Setting<T> setting = prepare<T>(problem, 1);
    run_two_phase(FirstPhaseOnly<Statistics<T>>{{setting, x, mean, m2}}, problem, setting.plan,
                  setting.threads);
}

template <class T>
void forward(const Problem& problem, const View<const T>& x, const View<T>& y,
             const Affine<T>& affine, double eps, double* mean, double* m2) {
    if (problem.elements() == 0) return set_empty(problem, mean, m2);
    const Setting<T> setting = prepare<T>(problem, 2);
    const auto count = static_cast<double>(problem.count());
    run_two_phase(Forward<T>{{setting, x, mean, m2}, y, affine, eps, count}, problem, setting.plan,
                  setting.threads);
}

template <class T>
void apply_norm(const Problem& problem, const View<const T>& x, const View<T>& y,
                const double* mean, const double* rstd, const Affine<T>& affine) {
    if (problem.elements() == 0) return;
    const Setting<T> setting = prepare<T>(problem, 2);
    CoefficientRows<Compute<T>, kNormRows, 0> rows(problem.channels);
    for (Index c = 0; c < problem.channels; ++c) {
        set_norm_coefficients<T>(rows, c, mean[c], rstd[c], value_or(affine.weight, c, 1.0),
                                 value_or(affine.bias, c, 0.0));
    }
    run_elementwise(problem, setting.plan, setting.threads, [&](const Region& region) {
        setting.kernels.apply_norm(x, y, region, norm_coefficients<T>(rows, region.channels.begin),
                                   {setting.stores, 0});
    });
}

#define BNEXT_INSTANTIATE(T)                                                                \
    template void collect_stats<T>(const Problem&, const View<const T>&, double*, double*); \
    template void forward<T>(const Problem&, const View<const T>&, const View<T>&,          \
                             const Affine<T>&, double, double*, double*);                   \
    template void apply_norm<T>(const Problem&, const View<const T>&, const View<T>&,       \
                                const double*, const double*, const Affine<T>&);
BNEXT_INSTANTIATE(float)
BNEXT_INSTANTIATE(double)
#undef BNEXT_INSTANTIATE

}  // namespace bnext::cpu
