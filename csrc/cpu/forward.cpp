// collect_stats, apply_norm, and both fused.
#include <algorithm>
#include <cmath>

#include "core/float_mode.hpp"
#include "core/formulas.hpp"
#include "core/moments.hpp"
#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "core/tiling.hpp"
#include "cpu/dispatch.hpp"
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
using F = Formula<Pass::forward, Epilogue::none, Compute<T>>;

template <class T>
Setting<T> prepare_forward(const Problem& problem, const Work& work) {
    return prepare<T>(problem, work, Pass::forward, Epilogue::none);
}

template <class T>
NormConstants norm_constants(Index c, const StatisticsIn& rows, const Affine<T>& affine) {
    const double weight = affine.weight != nullptr ? static_cast<double>(affine.weight[c]) : 1.0;
    const double bias = affine.bias != nullptr ? static_cast<double>(affine.bias[c]) : 0.0;
    return {rows.mean()[c], weight * rows.rstd()[c], bias};
}

// The data of the second phase, with var from m2 over `count` values, or var as given (count 0).
template <class T>
struct Normal {
    StatisticsOut rows;
    const Affine<T>& affine;
    double eps;
    double count = 0;

    void prepare(const Setting<T>& setting, const ChannelRange& channels) const {
        const Index c = channels.begin;
        setting.finish_statistics(channels.size(), count > 0 ? rows.m2() + c : nullptr, count, eps,
                                  rows.var() + c, rows.rstd() + c);
    }
    [[nodiscard]] Terms<T> terms(Index c) const {
        return {rows.mean() + c, rows.mean_low() + c, rows.rstd() + c,
                affine.weight != nullptr ? affine.weight + c : nullptr,
                affine.bias != nullptr ? affine.bias + c : nullptr};
    }
    [[nodiscard]] NormConstants constants(Index c) const { return norm_constants(c, rows, affine); }
    [[nodiscard]] bool is_extreme(Index c) const { return constants(c).is_extreme(rows.rstd()[c]); }
    void write_one(const View<const T>* in, const View<T>* out, const Region& region,
                   Index c) const {
        const NormConstants by = constants(c);
        write_channel(out[0], region, c, [&](double x) { return by.y(x); }, in[0]);
    }
};

// The first phase: moments per channel. Until they are final, means are relative to the channel's
// origin (view.hpp).
template <class T>
struct Statistics {
    const Setting<T>& setting;
    const View<const T>& x;
    const StatisticsOut& out;

    void reduce(const Region& region, double* a, double* b) const {
        setting.kernels.reduce(&x, region, nullptr, a, b);
    }
    void merge(Index done, Index more, Index channels, double* a, double* b, const double* more_a,
               const double* more_b) const {
        const MergeShares shares(static_cast<double>(done), static_cast<double>(more));
        for (Index i = 0; i < channels; ++i) bnext::merge(a[i], b[i], more_a[i], more_b[i], shares);
    }
    [[nodiscard]] double origin(Index c) const { return origin_of(x, setting.plan.tiling, c); }
    void keep(const ChannelRange& channels, const double* a, const double* b) const {
        for (Index c = channels.begin; c < channels.end; ++c) {
            const HighLow mean = two_sum(origin(c), a[c - channels.begin]);
            out.mean()[c] = mean.high;
            out.mean_low()[c] = kHasMeanLow<T> ? mean.low : 0.0;
        }
        std::copy_n(b, channels.size(), out.m2() + channels.begin);
        if constexpr (kMayLeaveRange<T>) {
            const Tiling& tiling = setting.plan.tiling;
            const double smallest =
                kSmallestShare * static_cast<double>(tiling.values(tiling.all()));
            if (setting.any_beyond(channels.size(), b, smallest)) {
                mend_moments(x, tiling, channels, smallest, out.mean(), out.m2());
            }
        }
    }
};

void set_empty(const Problem& problem, const StatisticsOut& out) {
    for (double* const row : {out.mean(), out.mean_low(), out.m2()}) {
        std::fill_n(row, problem.channels, 0.0);
    }
}

}  // namespace

template <class T>
void collect_stats(const Problem& problem, const View<const T>& x, const StatisticsOut& out) {
    if (problem.elements() == 0) return set_empty(problem, out);
    const Setting<T> setting = prepare_forward<T>(problem, kSummingWork<F<T>>);
    run_two_phase(FirstPhaseOnly<Statistics<T>>{{setting, x, out}}, problem, setting.plan,
                  setting.threads);
}

template <class T>
void forward(const Problem& problem, const View<const T>& x, const View<T>& y,
             const Affine<T>& affine, double eps, const StatisticsOut& out) {
    const auto count = static_cast<double>(problem.count());
    if (problem.elements() == 0) {
        set_empty(problem, out);
        active_table().finish_statistics(problem.channels, out.m2(), count, eps, out.var(),
                                         out.rstd());
        return;
    }
    const Setting<T> setting = prepare_forward<T>(problem, kWholeWork<F<T>>);
    using Writing = Second<F<T>, T, Normal<T>>;
    run_two_phase(Both<Statistics<T>, Writing>{{setting, x, out},
                                               {setting, &x, &y, {out, affine, eps, count}}},
                  problem, setting.plan, setting.threads);
}

template <class T>
void apply_norm(const Problem& problem, const View<const T>& x, const View<T>& y,
                const StatisticsOut& rows, double eps, const Affine<T>& affine) {
    if (problem.elements() == 0) {
        active_table().finish_statistics(problem.channels, nullptr, 0.0, eps, rows.var(),
                                         rows.rstd());
        return;
    }
    const Setting<T> setting = prepare_forward<T>(problem, kWritingWork<F<T>>);
    Second<F<T>, T, Normal<T>>{setting, &x, &y, {rows, affine, eps}}.run(problem);
}

template <class T>
void statistics(const Problem& problem, const View<const T>& x, double eps,
                const StatisticsOut& out) {
    collect_stats<T>(problem, x, out);
    const FloatMode mode;
    active_table().finish_statistics(problem.channels, out.m2(),
                                     static_cast<double>(problem.count()), eps, out.var(),
                                     out.rstd());
}

template <class T>
void pointwise_coefficients(Index channels, const StatisticsIn& of, const Affine<T>& affine,
                            Compute<T>* rows) {
    using C = Compute<T>;
    constexpr int kLeast = -126, kMost = 126;  // exponents of normal float32
    const FloatMode mode;
    for (Index c = 0; c < channels; ++c) {
        const NormConstants constants = norm_constants(c, of, affine);
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

#define BNEXT_INSTANTIATE(T)                                                                    \
    template void collect_stats<T>(const Problem&, const View<const T>&, const StatisticsOut&); \
    template void statistics<T>(const Problem&, const View<const T>&, double,                   \
                                const StatisticsOut&);                                          \
    template void pointwise_coefficients<T>(Index, const StatisticsIn&, const Affine<T>&,       \
                                            Compute<T>*);                                       \
    template void forward<T>(const Problem&, const View<const T>&, const View<T>&,              \
                             const Affine<T>&, double, const StatisticsOut&);                   \
    template void apply_norm<T>(const Problem&, const View<const T>&, const View<T>&,           \
                                const StatisticsOut&, double, const Affine<T>&);
BNEXT_INSTANTIATE(float)
BNEXT_INSTANTIATE(double)
BNEXT_INSTANTIATE(float16)
BNEXT_INSTANTIATE(bfloat16)
#undef BNEXT_INSTANTIATE

}  // namespace bnext::cpu
