// Backward, over rows, with g = dy * act'(z) and h = g * weight:
//     dx = rstd * (h - E[h] - xhat * E[h * xhat]),  dweight = sum g * xhat,  dbias = sum g
// E the mean over a row, without its E[h] where rows are not centered; sums over all rows.
//
// A block has rows side by side. Its threads keep the same columns, so that they sum g * xhat and g
// of each column without waiting: in the arithmetic's type over some rows, and those in double, in
// a place of the workspace that is the block's own. A second launch adds up the blocks' sums in
// order. Where shared memory has no room for sums of all columns, a launch over columns makes them
// of x and dy.
//
// Bytes: x and dy once, where both rows fit shared memory beside the sums of columns; what does not
//        is read again, backwards. dx once; the residual twice, dresidual once. Of each block, two
//        doubles for each column in every 32 rows, which stay in the second-level cache. A launch
//        over columns reads x, dy and the residual once more.
// Error: of float32 sums over up to 8 values, or over 32 rows; four roundings in dx.
#pragma once

#include "cuda/row_kernels.hpp"

namespace bnext::cuda {

// Of dx = h * scale + xhat * slope + offset.
struct BackwardRow {
    double slope, offset;
};

// A block's sums of g * xhat and of g: value v of unit u at (sum * V + v) * units + u, a part for
// each team, of which the next one begins in other banks of shared memory.
template <class K>
class RowColumns {
    using C = typename K::C;

public:
    BNEXT_DEVICE RowColumns(const Arguments& a, const RowTeam& team, const RowPlaces<K>& places)
        : a_(a),
          length_((a.row.centered ? 2 : 1) * a.row.width),
          step_(length_ + team.lanes),
          all_(places.columns),
          own_(all_ + team.team * step_) {
        for (int t = 0; wanted() && t < team.teams; ++t) clear(all_ + t * step_);
    }
    [[nodiscard]] BNEXT_DEVICE bool wanted() const { return a_.row.partials != nullptr; }

    // Of one unit, which is the thread's own.
    BNEXT_DEVICE void add(Index unit, const C (&g)[K::V], const C (&xhat)[K::V]) const {
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            C* const of_weight = own_ + v * a_.row.units + unit;
            *of_weight = device::fma_of(g[v], xhat[v], *of_weight);
            if (a_.row.centered) of_weight[a_.row.width] += g[v];
        }
    }
    // To the block's place in the workspace; every thread of the block calls it.
    BNEXT_DEVICE void merge(const RowTeam& team, bool first) const {
        device::block_barrier();
        double* const slot = a_.row.partials + device::block() * length_;
        for (Index e = device::thread(); e < length_; e += device::threads()) {
            double total = first ? 0.0 : slot[e];
            for (int t = 0; t < team.teams; ++t) {
                total += static_cast<double>(all_[t * step_ + e]);
                all_[t * step_ + e] = 0;
            }
            slot[e] = total;
        }
        device::block_barrier();
    }

private:
    BNEXT_DEVICE void clear(C* sums) const {
        for (Index e = device::thread(); e < length_; e += device::threads()) sums[e] = 0;
    }

    const Arguments& a_;
    Index length_, step_;
    C* all_;
    C* own_;
};

// The arrays of one row.
template <class K>
struct BackwardUnits {
    RowUnits<K> x, dy, residual;

    BNEXT_DEVICE BackwardUnits(const Arguments& a, const RowTeam& team, const RowPlaces<K>& places,
                               Index row)
        : x(a, a.in[0], row, team, places.units_of(a, 0)),
          dy(a, a.in[1], row, team, places.units_of(a, 1)),
          residual(a, a.residual, row, team, nullptr) {}

    // xhat and g of this thread's unit k, which is number `unit` of the row.
    template <class S>
    BNEXT_DEVICE void values(const Arguments& a, int k, Index unit, const RowNumbers<S>& numbers,
                             typename K::C (&xhat)[K::V], typename K::C (&g)[K::V]) const {
        using C = typename K::C;
        const typename K::U of_x = x[k], of_dy = dy[k];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            xhat[v] = static_cast<C>(numbers.xhat(static_cast<S>(wide_value<K>(of_x, v))));
            g[v] = wide_value<K>(of_dy, v);
        }
        if constexpr (K::kActivated) {
            C z[K::V];
            arguments_at<K>(a, a.row.z_weight, a.row.z_bias, unit, residual.place(k), xhat, z);
            BNEXT_UNROLL
            for (int v = 0; v < K::V; ++v) g[v] = gradient_through(a.fused, z[v], g[v]);
        }
    }
};

// The sums of h and of h * xhat over the thread's values, of a row that float32 has no range for.
template <class K>
BNEXT_DEVICE void sum_extreme_row(const Arguments& a, const RowTeam& team, int count,
                                  const BackwardUnits<K>& units, const RowNumbers<double>& numbers,
                                  double& first, double& second) {
    BNEXT_UNROLL_BY(1)
    for (int k = 0; k < count; ++k) {
        const Index unit = team.lane + Index{k} * team.lanes;
        typename K::C xhat[K::V], g[K::V];
        units.values(a, k, unit, numbers, xhat, g);
        typename K::P weight[K::V];
        parameters_at<K>(a.weight, unit, 1, weight);
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const double h = static_cast<double>(g[v]) * static_cast<double>(weight[v]);
            first += h;
            second = device::fma_of(h, static_cast<double>(xhat[v]), second);
        }
    }
}

// The same of any other row.
template <class K>
BNEXT_DEVICE void sum_row(const Arguments& a, const RowTeam& team, int count,
                          const BackwardUnits<K>& units, const RowNumbers<typename K::C>& numbers,
                          double& first, double& second) {
    using C = typename K::C;
    BNEXT_UNROLL_BY(1)
    for (int k = 0; k < count; k += K::kBatch) {
        C xhat[K::kBatch][K::V], h[K::kBatch][K::V];
        C of_h = 0, of_both = 0;
        BNEXT_UNROLL
        for (int u = 0; u < K::kBatch; ++u) {
            BNEXT_UNROLL
            for (int v = 0; v < K::V; ++v) xhat[u][v] = h[u][v] = 0;
            if (k + u >= count) continue;
            const Index unit = team.lane + Index{k + u} * team.lanes;
            units.values(a, k + u, unit, numbers, xhat[u], h[u]);
            typename K::P weight[K::V];
            parameters_at<K>(a.weight, unit, 1, weight);
            BNEXT_UNROLL
            for (int v = 0; v < K::V; ++v) {
                h[u][v] *= static_cast<C>(weight[v]);
                of_h += h[u][v];
                of_both = device::fma_of(h[u][v], xhat[u][v], of_both);
            }
        }
        if (are_ordinary(of_h, of_both)) {
            first += static_cast<double>(of_h);
            second += static_cast<double>(of_both);
            continue;
        }
        BNEXT_UNROLL
        for (int u = 0; u < K::kBatch; ++u) {
            BNEXT_UNROLL
            for (int v = 0; v < K::V; ++v) {
                const auto wide = static_cast<double>(h[u][v]);
                first += wide;
                second = device::fma_of(wide, static_cast<double>(xhat[u][v]), second);
            }
        }
    }
}

template <class K, class S>
BNEXT_DEVICE void write_gradients(const Arguments& a, const RowTeam& team, Index row, int count,
                                  const BackwardUnits<K>& units, const RowNumbers<S>& numbers,
                                  const BackwardRow& found, const RowColumns<K>& columns) {
    using C = typename K::C;
    const RowUnits<K> dx(a, a.out[0], row, team, nullptr);
    const RowUnits<K> dresidual(a, a.dresidual, row, team, nullptr);
    const S slope = static_cast<S>(found.slope), offset = static_cast<S>(found.offset);
    const bool sums_up = columns.wanted();
    BNEXT_UNROLL_BY(1)
    for (int k = count; k-- > 0;) {
        const Index unit = team.lane + Index{k} * team.lanes;
        C xhat[K::V], g[K::V], values[K::V];
        units.values(a, k, unit, numbers, xhat, g);
        typename K::P weight[K::V];
        parameters_at<K>(a.weight, unit, 1, weight);
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const S h = static_cast<S>(g[v]) * static_cast<S>(weight[v]);
            values[v] = static_cast<C>(
                device::fma_of(h, numbers.scale, static_cast<S>(xhat[v]) * slope) + offset);
        }
        typename K::U out;
        device::narrow<K::V>(out.value, values);
        device::store_once(dx.place(k), out);
        if constexpr (K::kActivated) {
            if (a.row.dresidual) {
                device::narrow<K::V>(out.value, g);
                device::store_once(dresidual.place(k), out);
            }
        }
        if (sums_up) columns.add(unit, g, xhat);
    }
}

template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS differentiate_row(BNEXT_CONSTANT Arguments a) {
    using C = typename K::C;
    const RowTeam team(a);
    const RowPlaces<K> places(a, 2);
    const int all = team.units_of(a);
    const double share = 1.0 / static_cast<double>(a.row.width);
    const RowColumns<K> columns(a, team, places);
    device::block_barrier();
    const Index begin = device::block() * a.row.block_rows, left = a.row.rows - begin;
    const Index end = begin + (left < a.row.block_rows ? left : a.row.block_rows);
    int steps = 0;
    for (Index first = begin; first < end; first += team.teams) {
        const bool exists = first + team.team < end;
        const Index row = exists ? first + team.team : first;
        const int count = exists ? all : 0;
        const BackwardUnits<K> units(a, team, places, row);
        units.x.fetch(count);
        units.dy.fetch(count);
        const HighLow mean{*row_statistic(a, 0, row), *row_statistic(a, 1, row)};
        const double rstd = *row_statistic(a, 2, row);
        const RowNumbers<C> usual(mean, rstd);
        const bool is_extreme = is_extreme_row<C>(mean.high, rstd);
        wait_for_units<K>();
        double of_h = 0, of_both = 0;
        if (is_extreme) {
            sum_extreme_row(a, team, count, units, RowNumbers<double>(mean, rstd), of_h, of_both);
        } else {
            sum_row(a, team, count, units, usual, of_h, of_both);
        }
        const auto finish = [&](double sum, double with_xhat, bool) {
            return BackwardRow{-rstd * (with_xhat * share),
                               a.row.centered ? -rstd * (sum * share) : 0.0};
        };
        const auto found = agreed_of<BackwardRow>(team, places, of_h, of_both, finish);
        if (is_extreme) {
            write_gradients(a, team, row, count, units, RowNumbers<double>(mean, rstd), found,
                            columns);
        } else {
            write_gradients(a, team, row, count, units, usual, found, columns);
        }
        ++steps;
        const bool last = first + team.teams >= end;
        if (columns.wanted() && (last || steps % kRowsBetweenMerges == 0)) {
            columns.merge(team, steps <= kRowsBetweenMerges);
        }
    }
}

// The value in a column of so many rows from `first` on, before `end`; 0 behind it.
template <class K, int kRows>
BNEXT_DEVICE void load_column(const Operand& of, Index column, Index first, Index end,
                              typename K::U (&values)[kRows]) {
    BNEXT_UNROLL
    for (int r = 0; r < kRows; ++r) {
        const Index at = reinterpret_cast<Index>(of.data) + (first + r) * of.outer +
                         column * static_cast<Index>(sizeof(typename K::U));
        values[r] = {};
        if (first + r < end) values[r] = device::load(reinterpret_cast<const typename K::U*>(at));
    }
}

template <class C>
BNEXT_DEVICE C xhat_of(const Arguments& a, Index row, C x) {
    const HighLow mean{*row_statistic(a, 0, row), *row_statistic(a, 1, row)};
    const double rstd = *row_statistic(a, 2, row);
    if (is_extreme_row<C>(mean.high, rstd)) {
        return static_cast<C>(RowNumbers<double>(mean, rstd).xhat(static_cast<double>(x)));
    }
    return RowNumbers<C>(mean, rstd).xhat(x);
}

// A slot's sums of g * xhat and of g, of which each thread has a column. Blocks of a slot are side
// by side.
template <class T>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS sum_columns(BNEXT_CONSTANT Arguments a) {
    using K = RowKind<T, 1, true>;
    using C = typename K::C;
    constexpr int kRows = 4;  // at once
    const Index blocks = (a.row.width + device::threads() - 1) / device::threads();
    const Index slot = device::block() / blocks;
    const Index column = device::block() % blocks * device::threads() + device::thread();
    if (column >= a.row.width) return;
    typename K::P scale[1], shift[1];
    parameters_at<K>(a.row.z_weight, column, 1, scale);
    parameters_at<K>(a.row.z_bias, column, 0, shift);
    const Index begin = slot * a.row.slot_rows, left = a.row.rows - begin;
    const Index end = begin + (left < a.row.slot_rows ? left : a.row.slot_rows);
    double of_weight = 0, of_bias = 0;
    BNEXT_UNROLL_BY(1)
    for (Index first = begin; first < end; first += kRows) {
        typename K::U x[kRows], dy[kRows], residual[kRows];
        load_column<K>(a.in[0], column, first, end, x);
        load_column<K>(a.in[1], column, first, end, dy);
        load_column<K>(a.residual, column, first, a.fused.residual ? end : first, residual);
        C with_xhat = 0, alone = 0;
        BNEXT_UNROLL
        for (int r = 0; r < kRows; ++r) {
            if (first + r >= end) break;
            const C xhat = xhat_of(a, first + r, wide_value<K>(x[r], 0));
            C g = wide_value<K>(dy[r], 0);
            if (a.fused.activation != Activation::none) {
                C z = device::fma_of(xhat, static_cast<C>(scale[0]), static_cast<C>(shift[0]));
                if (a.fused.residual) z += wide_value<K>(residual[r], 0);
                g = gradient_through(a.fused, z, g);
            }
            with_xhat = device::fma_of(g, xhat, with_xhat);
            alone += g;
        }
        of_weight += static_cast<double>(with_xhat);
        of_bias += static_cast<double>(alone);
    }
    const Index length = (a.row.centered ? 2 : 1) * a.row.width;
    double* const sums = a.row.partials + slot * length + column;
    sums[0] = of_weight;
    if (a.row.centered) sums[a.row.width] = of_bias;
}

// dweight and dbias from the sums of all slots: a warp has each of 32 columns of every
// kRowMergeWarps-th slot, and the first adds up theirs.
inline constexpr int kRowMergeWarps = 8;

template <class P>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS merge_row_sums(BNEXT_CONSTANT Arguments a) {
    const int warp = device::thread() / kWarp, lane = device::thread() % kWarp;
    const Index length = (a.row.centered ? 2 : 1) * a.row.width;
    const Index e = device::block() * kWarp + lane;
    auto* const sums = reinterpret_cast<double*>(device::shared_memory());
    double total = 0;
    if (e < length) {
        BNEXT_UNROLL_BY(8)
        for (Index slot = warp; slot < a.row.slots; slot += kRowMergeWarps) {
            total += a.row.partials[slot * length + e];
        }
    }
    sums[warp * kWarp + lane] = total;
    device::block_barrier();
    if (warp > 0 || e >= length) return;
    for (int w = 1; w < kRowMergeWarps; ++w) total += sums[w * kWarp + lane];
    const bool of_weight = e < a.row.width;
    const Index place = of_weight ? e : e - a.row.width;
    const Index values = a.row.width / a.row.units;
    P* const out = static_cast<P*>(of_weight ? a.dweight : a.dbias);
    out[place % a.row.units * values + place / a.row.units] = static_cast<P>(total);
}

}  // namespace bnext::cuda
