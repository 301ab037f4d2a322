// collect_stats, apply_norm, and both fused.
#include <algorithm>
#include <cmath>

#include "core/float_mode.hpp"
#include "core/formulas.hpp"
#include "core/moments.hpp"
#include "core/problem.hpp"
#include "core/statistics.hpp"
#include "core/tiling.hpp"
#include "cpu/coefficients.hpp"
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
Terms<T> terms_of(Index c, const StatisticsIn& of, const Affine<T>& affine) {
    return {of.mean() + c, of.mean_low() + c, of.rstd() + c,
            affine.weight != nullptr ? affine.weight + c : nullptr,
            affine.bias != nullptr ? affine.bias + c : nullptr};
}

template <class T>
NormConstants norm_constants(Index c, const StatisticsIn& of, const Affine<T>& affine) {
    const double weight = affine.weight != nullptr ? static_cast<double>(affine.weight[c]) : 1.0;
    const double bias = affine.bias != nullptr ? static_cast<double>(affine.bias[c]) : 0.0;
    return {of.mean()[c], weight * of.rstd()[c], bias};
}

template <class T, class Rows>
void write_norm(const Setting<T>& setting, const View<const T>& x, const View<T>& y,
                const Region& region, const StatisticsIn& of, const Affine<T>& affine,
                const Extremes& extremes, const Rows& rows, Index offset, const Access& access) {
    write_region(
        setting, &x, &y, region, extremes, rows, offset, access,
        [&](Index c) { return norm_constants(c, of, affine).is_extreme(of.rstd()[c]); },
        [&](Index c) {
            const NormConstants constants = norm_constants(c, of, affine);
            write_channel(y, region, c, [&](double value) { return constants.y(value); }, x);
        });
}

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

template <class T>
struct Forward : Statistics<T> {
    const View<T>& y;
    const Affine<T>& affine;
    double eps;
    double count;
    Extremes extremes{};

    template <Index Capacity>
    using Coefficients = CoefficientRows<Compute<T>, F<T>::kRows, Capacity>;

    template <class Rows>
    void finish(const ChannelRange& channels, const double* a, const double* b, Rows& rows,
                Index offset) const {
        this->keep(channels, a, b);
        const StatisticsOut& of = this->out;
        const Index c = channels.begin;
        this->setting.finish_statistics(channels.size(), of.m2() + c, count, eps, of.var() + c,
                                        of.rstd() + c);
        extremes.note(
            make_coefficients(this->setting, channels, terms_of<T>(c, of, affine), rows, offset));
    }
    template <class Rows>
    void apply(const Region& region, const Rows& rows, Index offset, Index ahead) const {
        write_norm<T>(this->setting, this->x, y, region, this->out, affine, extremes, rows, offset,
                      {this->setting.stores, ahead, this->setting.wraps()});
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
    run_two_phase(Forward<T>{{setting, x, out}, y, affine, eps, count}, problem, setting.plan,
                  setting.threads);
}

template <class T>
void apply_norm(const Problem& problem, const View<const T>& x, const View<T>& y,
                const StatisticsOut& of, double eps, const Affine<T>& affine) {
    if (problem.elements() == 0) {
        active_table().finish_statistics(problem.channels, nullptr, 0.0, eps, of.var(), of.rstd());
        return;
    }
    const Setting<T> setting = prepare_forward<T>(problem, kWritingWork<F<T>>);
    const Index columns = setting.plan.tiling.columns();
    CoefficientRows<Compute<T>, F<T>::kRows, 0> rows(problem.channels * columns);
    const Extremes extremes;
    run_elementwise(
        problem, setting.plan, setting.threads,
        [&](const ChannelRange& channels) {
            const Index c = channels.begin;
            setting.finish_statistics(channels.size(), nullptr, 0.0, eps, of.var() + c,
                                      of.rstd() + c);
            extremes.note(make_coefficients(setting, channels, terms_of<T>(c, of, affine), rows,
                                            c * columns));
        },
        [&](const Region& region) {
            write_norm<T>(setting, x, y, region, of, affine, extremes, rows,
                          region.channels.begin * columns, {setting.stores, 0, true});
        });
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
