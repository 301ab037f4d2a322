// backward_reduce, backward_apply, and both fused.
#include <algorithm>

#include "core/formulas.hpp"
#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "core/tiling.hpp"
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

// The data of the second phase. `sum_dy` and `sum_dy_xmu` have the sums of all channels.
template <class T>
struct Gradients {
    const StatisticsIn& rows;
    const Param<T>* weight;
    const double* sum_dy;
    const double* sum_dy_xmu;
    double count;

    void prepare(const Setting<T>&, const ChannelRange&) const {}
    [[nodiscard]] Terms<T> terms(Index c) const {
        return {rows.mean() + c, rows.mean_low() + c,
                rows.rstd() + c, weight != nullptr ? weight + c : nullptr,
                nullptr,         sum_dy + c,
                sum_dy_xmu + c,  count};
    }
    [[nodiscard]] GradientConstants constants(Index c) const {
        const double factor = weight != nullptr ? static_cast<double>(weight[c]) : 1.0;
        const double rstd = rows.rstd()[c];
        return {rows.mean()[c], -rstd * (rstd * (sum_dy_xmu[c] / count)), sum_dy[c] / count,
                factor * rstd};
    }
    [[nodiscard]] bool is_extreme(Index c) const { return constants(c).is_extreme(rows.rstd()[c]); }
    void write_one(const View<const T>* in, const View<T>* out, const Region& region,
                   Index c) const {
        const GradientConstants by = constants(c);
        write_channel(
            out[0], region, c, [&](double x, double dy) { return by.dx(dy, x); }, in[0], in[1]);
    }
};

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
    using Writing = Second<F<T>, T, Gradients<T>>;
    run_two_phase(
        Both<Sums<T>, Writing>{{setting, in, of, sum_dy, sum_dy_xmu},
                               {setting, in, &dx, {of, weight, sum_dy, sum_dy_xmu, count}}},
        problem, setting.plan, setting.threads);
}

template <class T>
void backward_apply(const Problem& problem, const View<const T>& dy, const View<const T>& x,
                    const View<T>& dx, const StatisticsIn& of, const Param<T>* weight,
                    const double* sum_dy, const double* sum_dy_xmu, double count) {
    if (problem.elements() == 0) return;
    const Setting<T> setting = prepare_backward<T>(problem, kWritingWork<F<T>>);
    const View<const T> in[] = {x, dy};
    Second<F<T>, T, Gradients<T>>{setting, in, &dx, {of, weight, sum_dy, sum_dy_xmu, count}}.run(
        problem);
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
