// What the two phases of each pass do with the sums of cells: merge them, keep them, make the
// numbers of the second phase. operation.hpp puts phases together.
#pragma once

#include <algorithm>

#include "core/cells.hpp"
#include "core/moments.hpp"
#include "core/statistics.hpp"
#include "cpu/extremes.hpp"
#include "cpu/operation.hpp"
#include "cpu/operations.hpp"
#include "cpu/range.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

template <class P>
double value_or(const P* values, Index c, double otherwise) {
    return values != nullptr ? static_cast<double>(values[c]) : otherwise;
}
template <class P>
const P* from(const P* values, Index c) {
    return values != nullptr ? values + c : nullptr;
}

// --- forward
// --------------------------------------------------------------------------------------

// Sums: moments. Until they are final, means are relative to the cell's origin (view.hpp).
template <class T, class Maps = OneToOne>
struct CollectMoments {
    const Setting<T>& setting;
    const View<const T>& x;
    const StatisticsOut& out;
    Maps maps{};
    static constexpr bool kKeepsApart =
        kIsIdentity<Maps>;  // any range of channels, not whole slabs

    double reduce(const Region& region, double* a, double* b) const {
        return setting.kernels.reduce(&x, region, nullptr, nullptr, a, b);
    }
    void merge(double done, double more, Index channels, double* a, double* b, const double* more_a,
               const double* more_b) const {
        const MergeShares shares(done, more);
        for (Index i = 0; i < channels; ++i) bnext::merge(a[i], b[i], more_a[i], more_b[i], shares);
    }
    double keep(const ChannelRange& channels, double n, const double* a, const double* b) const {
        const Tiling& tiling = setting.plan.tiling;
        double* const high = out.mean() + channels.begin;
        double* const low = out.mean_low() + channels.begin;
        set_origins(x, tiling, channels.begin, channels.size(), high);
        for (Index c = 0; c < channels.size(); ++c) {
            const HighLow mean = two_sum(high[c], a[c]);
            high[c] = mean.high;
            low[c] = kHasMeanLow<T> ? mean.low : 0.0;
        }
        std::copy_n(b, channels.size(), out.m2() + channels.begin);
        if constexpr (kMayLeaveRange<T>) {
            const double smallest = kSmallestShare * n;
            if (setting.table.any_beyond(channels.size(), b, smallest)) {
                mend_moments(x, tiling, channels, smallest, out.mean(), out.m2());
            }
        }
        return merge_slabs(maps, channels.begin, channels.end, n, kHasMeanLow<T>, out);
    }
};

template <class T>
NormConstants norm_constants(Index c, const StatisticsIn& rows, const Affine<T>& affine) {
    return {rows.mean()[c], value_or(affine.weight, c, 1.0) * rows.rstd()[c],
            value_or(affine.bias, c, 0.0)};
}

// Writes by Normalize, with var from m2 over n values, or as given (n 0).
template <class T>
struct Normal {
    StatisticsOut rows;
    const Affine<T>& affine;
    double eps;

    void prepare(const Setting<T>& setting, const ChannelRange& channels, double n) const {
        const Index c = channels.begin;
        setting.table.finish_statistics(channels.size(), n > 0 ? rows.m2() + c : nullptr, n, eps,
                                        rows.var() + c, rows.rstd() + c);
    }
    [[nodiscard]] Terms<T> terms(Index c, double) const {
        return {rows.mean() + c, rows.mean_low() + c, rows.rstd() + c, from(affine.weight, c),
                from(affine.bias, c)};
    }
    [[nodiscard]] bool is_extreme(Index c, double) const {
        return norm_constants<T>(c, rows, affine).is_extreme(rows.rstd()[c]);
    }
    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double) const {
        const NormConstants by = norm_constants<T>(c, rows, affine);
        write_channel(out[0], region, c, [&](double x) { return by.y(x); }, in[0]);
    }
};

// --- backward
// -------------------------------------------------------------------------------------

// Sums: of dy, and of dy * (x - mean). They go to one row each, of all cells.
template <class T>
struct CollectGradients {
    const Setting<T>& setting;
    const View<const T>* in;  // x, dy
    const StatisticsIn& of;
    double* sum_dy;
    double* sum_dy_xmu;
    static constexpr bool kKeepsApart = true;

    double reduce(const Region& region, double* a, double* b) const {
        return setting.kernels.reduce(in, region, of.mean() + region.channels.begin, nullptr, a, b);
    }
    void merge(double, double, Index channels, double* a, double* b, const double* more_a,
               const double* more_b) const {
        for (Index i = 0; i < channels; ++i) {
            a[i] += more_a[i];
            b[i] += more_b[i];
        }
    }
    double keep(const ChannelRange& channels, double n, const double* a, const double* b) const {
        const auto value_of_input = [&](int k) {
            return [this, k](Index o, Index c, Index i) {
                return static_cast<double>(*at(in[k], o, c, i));
            };
        };
        return keep(channels, n, a, b, value_of_input(1), value_of_input(0));
    }
    // Where dy(o, c, i) and x(o, c, i) are the gradients and the values that were summed.
    template <class Dy, class X>
    double keep(const ChannelRange& channels, double n, const double* a, const double* b,
                const Dy& dy, const X& x) const {
        std::copy_n(a, channels.size(), sum_dy + channels.begin);
        std::copy_n(b, channels.size(), sum_dy_xmu + channels.begin);
        if constexpr (kHasMeanLow<T>) {
            for (Index c = channels.begin; c < channels.end; ++c) {
                sum_dy_xmu[c] -= of.mean_low()[c] * sum_dy[c];
            }
        }
        if constexpr (kMayLeaveRange<T>) {
            const double smallest = kSmallestShare * n;
            if (setting.table.any_beyond(channels.size(), a, 0.0) ||
                setting.table.any_beyond(channels.size(), b, smallest)) {
                mend_gradient_sums(dy, x, setting.plan.tiling, channels, smallest, of.mean(),
                                   sum_dy, sum_dy_xmu);
            }
        }
        return n;
    }
};

// Writes by Gradient, from such sums over n values.
template <class T>
struct Gradients {
    const StatisticsIn& rows;
    const Param<T>* weight;
    const double* sum_dy;
    const double* sum_dy_xmu;
    const double* scale = nullptr;  // in place of weight * rstd

    void prepare(const Setting<T>&, const ChannelRange&, double) const {}
    [[nodiscard]] Terms<T> terms(Index c, double n) const {
        return {rows.mean() + c, rows.mean_low() + c, rows.rstd() + c, from(weight, c),
                nullptr,         sum_dy + c,          sum_dy_xmu + c,  n,
                from(scale, c)};
    }
    [[nodiscard]] GradientConstants constants(Index c, double n) const {
        const double rstd = rows.rstd()[c];
        return {rows.mean()[c], -rstd * (rstd * (sum_dy_xmu[c] / n)), sum_dy[c] / n,
                scale != nullptr ? scale[c] : value_or(weight, c, 1.0) * rstd};
    }
    [[nodiscard]] bool is_extreme(Index c, double n) const {
        return constants(c, n).is_extreme(rows.rstd()[c]);
    }
    void write_one(const View<const T>* in, const View<T>* out, const Region& region, Index c,
                   double n) const {
        const GradientConstants by = constants(c, n);
        write_channel(
            out[0], region, c, [&](double x, double dy) { return by.dx(dy, x); }, in[0], in[1]);
    }
};

// --- whole passes
// ---------------------------------------------------------------------------------

// Forward of cells, whose weight and bias `affine` has cell by cell; rows get the statistics of
// each cell's slab. Returns the n of a slab.
template <class T, class Maps = OneToOne>
double forward_of_cells(const Problem& problem, const View<const T>& x, const View<T>& y,
                        const Affine<T>& affine, double eps, const StatisticsOut& rows,
                        const Maps& maps = {}) {
    using F = Formula<Pass::forward, Epilogue::none, Compute<T>>;
    const Setting<T> setting =
        prepare<T>(problem, kWholeWork<F>, Pass::forward, Epilogue::none, maps.cells_of_slab);
    return setting.run(
        Both<CollectMoments<T, Maps>, Second<F, T, Normal<T>>>{
            {setting, x, rows, maps}, {setting, &x, &y, {rows, affine, eps}}},
        problem);
}

}  // namespace bnext::cpu
