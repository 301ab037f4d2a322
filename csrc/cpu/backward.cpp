// backward_reduce, backward_apply, and both fused.
#include <algorithm>

#include "core/formulas.hpp"
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

template <class T>
using F = Formula<Pass::backward, Epilogue::none, Compute<T>>;

template <class T>
Setting<T> prepare_backward(const Problem& problem, const Work& work) {
    return prepare<T>(problem, work, Pass::backward, Epilogue::none);
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
    // From channel c on.
    [[nodiscard]] Terms<T> terms(Index c) const {
        return {of.mean() + c,  of.mean_low() + c,
                of.rstd() + c,  weight != nullptr ? weight + c : nullptr,
                nullptr,        sum_dy + c,
                sum_dy_xmu + c, count};
    }
    [[nodiscard]] bool is_extreme(Index c) const { return constants(c).is_extreme(of.rstd()[c]); }
};

template <class T, class Rows>
void write_gradient(const Setting<T>& setting, const View<const T>* in, const View<T>& dx,
                    const Region& region, const Gradients<T>& gradients, const Extremes& extremes,
                    const Rows& rows, Index offset, const Access& access) {
    write_region(
        setting, in, &dx, region, extremes, rows, offset, access,
        [&](Index c) { return gradients.is_extreme(c); },
        [&](Index c) {
            const GradientConstants constants = gradients.constants(c);
            write_channel(
                dx, region, c, [&](double value, double grad) { return constants.dx(grad, value); },
                in[0], in[1]);
        });
}

// The first phase: two sums per channel.
template <class T>
struct Sums {
    const Setting<T>& setting;
    const View<const T>* in;  // x, dy
    const StatisticsIn& of;
    double* sum_dy;
    double* sum_dy_xmu;

    void reduce(const Region& region, double* a, double* b) const {
        setting.kernels.reduce(in, region, of.mean() + region.channels.begin, a, b);
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
                mend_gradient_sums(in[1], in[0], tiling, channels, smallest, of.mean(), sum_dy,
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
    using Coefficients = CoefficientRows<Compute<T>, F<T>::kRows, Capacity>;

    template <class Rows>
    void finish(const ChannelRange& channels, const double* a, const double* b, Rows& rows,
                Index offset) const {
        this->keep(channels, a, b);
        extremes.note(make_coefficients(this->setting, channels, gradients().terms(channels.begin),
                                        rows, offset));
    }
    template <class Rows>
    void apply(const Region& region, const Rows& rows, Index offset, Index ahead) const {
        write_gradient(this->setting, this->in, dx, region, gradients(), extremes, rows, offset,
                       {this->setting.stores, ahead, this->setting.wraps()});
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
    const Setting<T> setting = prepare_backward<T>(problem, kSummingWork<F<T>>);
    const View<const T> in[] = {x, dy};
    run_two_phase(FirstPhaseOnly<Sums<T>>{{setting, in, of, sum_dy, sum_dy_xmu}}, problem,
                  setting.plan, setting.threads);
}

template <class T>
void backward(const Problem& problem, const View<const T>& dy, const View<const T>& x,
              const View<T>& dx, const StatisticsIn& of, const Param<T>* weight, double* sum_dy,
              double* sum_dy_xmu) {
    if (problem.elements() == 0) return set_empty(problem, sum_dy, sum_dy_xmu);
    const Setting<T> setting = prepare_backward<T>(problem, kWholeWork<F<T>>);
    const View<const T> in[] = {x, dy};
    const auto count = static_cast<double>(problem.count());
    run_two_phase(Backward<T>{{setting, in, of, sum_dy, sum_dy_xmu}, dx, weight, count}, problem,
                  setting.plan, setting.threads);
}

template <class T>
void backward_apply(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                    const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                    const double* sum_dy, const double* sum_dy_xmu, double count) {
    if (problem.elements() == 0) return;
    const Setting<T> setting = prepare_backward<T>(problem, kWritingWork<F<T>>);
    const View<const T> in[] = {x, dy};
    const Index columns = setting.plan.tiling.columns();
    CoefficientRows<Compute<T>, F<T>::kRows, 0> rows(problem.channels * columns);
    const Gradients<T> gradients{of, weight, sum_dy, sum_dy_xmu, count};
    const Extremes extremes;
    run_elementwise(
        problem, setting.plan, setting.threads,
        [&](const ChannelRange& channels) {
            const Index c = channels.begin;
            extremes.note(
                make_coefficients(setting, channels, gradients.terms(c), rows, c * columns));
        },
        [&](const Region& region) {
            write_gradient(setting, in, dx, region, gradients, extremes, rows,
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
