// backward_reduce, backward_apply, and both fused.
#include <algorithm>

#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "core/tiling.hpp"
#include "cpu/coefficients.hpp"
#include "cpu/extremes.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/operation.hpp"
#include "cpu/operations.hpp"
#include "cpu/range.hpp"
#include "cpu/two_phase.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {
namespace {

enum BackwardRow : std::size_t { kCenter, kSlope, kOffset, kScale, kBackwardRows };

// Whether any of the channels is extreme. `sum_dy` and `sum_dy_xmu` have the range's sums; `of` and
// `weight` are of all channels.
template <class T, class Rows>
bool set_backward_coefficients(const Setting<T>& setting, const ChannelRange& channels,
                               const StatisticsIn& of, const Param<T>* weight, const double* sum_dy,
                               const double* sum_dy_xmu, double count, Rows& rows, Index offset) {
    const Index c = channels.begin;
    const Index columns = setting.plan.tiling.columns();
    const Index made = offset + made_at(channels.size(), columns);
    const bool extremes = setting.kernels.backward_coefficients(
        channels.size(), of.mean() + c, of.mean_low() + c, of.rstd() + c,
        weight != nullptr ? weight + c : nullptr, sum_dy, sum_dy_xmu, count,
        rows.row(kCenter, made), rows.row(kSlope, made), rows.row(kOffset, made),
        rows.row(kScale, made));
    rows.complete(offset, channels.size(), columns);
    return extremes;
}

template <class T, class Rows>
BackwardCoefficients<T> backward_coefficients(const Rows& rows, Index offset) {
    return {rows.row(kCenter, offset), rows.row(kSlope, offset), rows.row(kOffset, offset),
            rows.row(kScale, offset)};
}

// The terms of a channel's gradient. `sum_dy` and `sum_dy_xmu` have the sums of all channels.
template <class T>
struct Gradients {
    const StatisticsIn& of;
    const Param<T>* weight;
    const double* sum_dy;
    const double* sum_dy_xmu;
    double count;

    [[nodiscard]] GradientConstants constants(Index c) const {
        const double factor = weight != nullptr ? static_cast<double>(weight[c]) : 1.0;
        const double rstd = of.rstd()[c];
        return {of.mean()[c], -rstd * (rstd * (sum_dy_xmu[c] / count)), sum_dy[c] / count,
                factor * rstd};
    }
    [[nodiscard]] bool is_extreme(Index c) const { return constants(c).is_extreme(of.rstd()[c]); }
};

// Writes a region; the coefficients of its first channel are at `offset`.
template <class T, class Rows>
void write_gradient(const Setting<T>& setting, const View<const T>& dy, const View<const T>& x,
                    const View<T>& dx, const Region& region, const Gradients<T>& gradients,
                    const Extremes& extremes, const Rows& rows, Index offset,
                    const Access& access) {
    if (!kHasExtremes<T> || !extremes.any()) {
        return setting.kernels.backward_apply(dy, x, dx, region,
                                              backward_coefficients<T>(rows, offset), access);
    }
    for_each_run(
        region, [&](Index c) { return gradients.is_extreme(c); },
        [&](const Region& part) {
            const Index skipped = part.channels.begin - region.channels.begin;
            const bool apart = part.channels.size() < region.channels.size();
            const Index place = offset + skipped * setting.plan.tiling.columns();
            setting.kernels.backward_apply(dy, x, dx, part, backward_coefficients<T>(rows, place),
                                           apart ? Access{access.stores, 0, false} : access);
        },
        [&](Index c) {
            const GradientConstants constants = gradients.constants(c);
            write_channel(
                dx, region, c, [&](double grad, double value) { return constants.dx(grad, value); },
                dy, x);
        });
}

// The first phase: two sums per channel.
template <class T>
struct Sums {
    const Setting<T>& setting;
    const View<const T>& dy;
    const View<const T>& x;
    const StatisticsIn& of;
    double* sum_dy;
    double* sum_dy_xmu;

    void reduce(const Region& region, double* a, double* b) const {
        setting.kernels.backward_reduce(dy, x, region, of.mean() + region.channels.begin, a, b);
    }
    void merge(Index, Index, Index channels, double* a, double* b, const double* more_a,
               const double* more_b) const {
        for (Index i = 0; i < channels; ++i) {
            a[i] += more_a[i];
            b[i] += more_b[i];
        }
    }
    void keep(const ChannelRange& channels, const double* a, const double* b) const {
        std::copy_n(a, channels.size(), sum_dy + channels.begin);
        std::copy_n(b, channels.size(), sum_dy_xmu + channels.begin);
        if constexpr (kHasMeanLow<T>) {
            for (Index c = channels.begin; c < channels.end; ++c) {
                sum_dy_xmu[c] -= of.mean_low()[c] * sum_dy[c];
            }
        }
        if constexpr (kMayLeaveRange<T>) {
            const Tiling& tiling = setting.plan.tiling;
            const double smallest =
                kSmallestShare * static_cast<double>(tiling.values(tiling.all()));
            if (setting.any_beyond(channels.size(), a, 0.0) ||
                setting.any_beyond(channels.size(), b, smallest)) {
                mend_gradient_sums(dy, x, tiling, channels, smallest, of.mean(), sum_dy,
                                   sum_dy_xmu);
            }
        }
    }
};

template <class T>
struct Backward : Sums<T> {
    const View<T>& dx;
    const Param<T>* weight;
    double count;
    Extremes extremes{};

    [[nodiscard]] Gradients<T> gradients() const {
        return {this->of, weight, this->sum_dy, this->sum_dy_xmu, count};
    }

    template <Index Capacity>
    using Coefficients = CoefficientRows<Compute<T>, kBackwardRows, Capacity>;

    template <class Rows>
    void finish(const ChannelRange& channels, const double* a, const double* b, Rows& rows,
                Index offset) const {
        this->keep(channels, a, b);
        extremes.note(set_backward_coefficients(
            this->setting, channels, this->of, weight, this->sum_dy + channels.begin,
            this->sum_dy_xmu + channels.begin, count, rows, offset));
    }
    template <class Rows>
    void apply(const Region& region, const Rows& rows, Index offset, Index ahead) const {
        write_gradient(this->setting, this->dy, this->x, dx, region, gradients(), extremes, rows,
                       offset, {this->setting.stores, ahead, this->setting.wraps()});
    }
};

void set_empty(const Problem& problem, double* sum_dy, double* sum_dy_xmu) {
    std::fill_n(sum_dy, problem.channels, 0.0);
    std::fill_n(sum_dy_xmu, problem.channels, 0.0);
}

}  // namespace

template <class T>
void backward_reduce(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                     const StatisticsIn& of, double* sum_dy, double* sum_dy_xmu) {
    if (problem.elements() == 0) return set_empty(problem, sum_dy, sum_dy_xmu);
    const Setting<T> setting = prepare<T>(problem, {2, 1});
    run_two_phase(FirstPhaseOnly<Sums<T>>{{setting, dy, x, of, sum_dy, sum_dy_xmu}}, problem,
                  setting.plan, setting.threads);
}

template <class T>
void backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
              const View<T>& dx, const StatisticsIn& of, const Param<T>* weight, double* sum_dy,
              double* sum_dy_xmu) {
    if (problem.elements() == 0) return set_empty(problem, sum_dy, sum_dy_xmu);
    const Setting<T> setting = prepare<T>(problem, {3, 2});
    const auto count = static_cast<double>(problem.count());
    run_two_phase(Backward<T>{{setting, dy, x, of, sum_dy, sum_dy_xmu}, dx, weight, count}, problem,
                  setting.plan, setting.threads);
}

template <class T>
void backward_apply(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                    const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                    const double* sum_dy, const double* sum_dy_xmu, double count) {
    if (problem.elements() == 0) return;
    const Setting<T> setting = prepare<T>(problem, {3, 1});
    const Index columns = setting.plan.tiling.columns();
    CoefficientRows<Compute<T>, kBackwardRows, 0> rows(problem.channels * columns);
    const Gradients<T> gradients{of, weight, sum_dy, sum_dy_xmu, count};
    const Extremes extremes;
    run_elementwise(
        problem, setting.plan, setting.threads,
        [&](const ChannelRange& channels) {
            const Index c = channels.begin;
            extremes.note(set_backward_coefficients(setting, channels, of, weight, sum_dy + c,
                                                    sum_dy_xmu + c, count, rows, c * columns));
        },
        [&](const Region& region) {
            write_gradient(setting, dy, x, dx, region, gradients, extremes, rows,
                           region.channels.begin * columns, {setting.stores, 0, true});
        });
}

#define BNEXT_INSTANTIATE(T)                                                                     \
    template void backward_reduce<T>(const Problem&, const View<const T>&, const View<const T>&, \
                                     const StatisticsIn&, double*, double*);                     \
    template void backward<T>(const Problem&, const View<const T>&, const View<const T>&,        \
                              const View<T>&, const StatisticsIn&, const Param<T>*, double*,     \
                              double*);                                                          \
    template void backward_apply<T>(const Problem&, const View<const T>&, const View<const T>&,  \
                                    const View<T>&, const StatisticsIn&, const Param<T>*,        \
                                    const double*, const double*, double);
BNEXT_INSTANTIATE(float)
BNEXT_INSTANTIATE(double)
BNEXT_INSTANTIATE(float16)
BNEXT_INSTANTIATE(bfloat16)
#undef BNEXT_INSTANTIATE

}  // namespace bnext::cpu
