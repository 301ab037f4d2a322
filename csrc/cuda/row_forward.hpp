// Forward, over rows: mean and rstd of each row, and y = act(xhat * weight + bias + residual) with
// xhat = (x - mean) * rstd. RMS normalization has a mean of 0.
//
// Sums: with a pilot p, the median of the first, middle and last value of a row, of d = x - p and
// d * d; mean = p + (sum d) / n, m2 = sum d^2 - (sum d)^2 / n. Where that cancels more than two
// bits, and always of float64 data, the sums are made again with this mean as p. Without centering
// p is 0. Bytes: x once, where a row fits shared memory; what does not is read again, backwards.
// The
//        residual and y once, parameters once a row, from a cache.
// Error: of a batch's float32 sums, relative to m2 about 2^-24; three roundings in y. Where a
//        batch's sums leave float32's range they are made again in double; rows whose mean or rstd
//        does are normalized in double.
#pragma once

#include "cuda/row_kernels.hpp"

namespace bnext::cuda {

template <class C>
struct ForwardRow {
    RowNumbers<C> usual;
    RowNumbers<double> extreme;
    bool is_extreme;
    bool cancels;  // the sums are to be made again about the mean
};

// The median of three values of a row; 0 where that is not a number.
template <class K>
BNEXT_DEVICE typename K::C pilot_of_row(const Arguments& a, Index row) {
    using C = typename K::C;
    using One = Unit<typename K::T, 1>;
    const auto* const values = static_cast<const One*>(
        static_cast<const void*>(static_cast<const char*>(a.in[0].data) + row * a.in[0].outer));
    const auto value = [&](Index column) {
        const One one = device::load(values + column);
        return device::widened_of<1>(one.value, 0);
    };
    const C p = value(0), q = value(a.row.width / 2), r = value(a.row.width - 1);
    const C low = p < q ? p : q, high = p < q ? q : p;
    const C top = high < r ? high : r;
    const C middle = low < top ? top : low;
    return middle - middle == C{0} ? middle : C{0};
}

// Adds the deviations of one batch, from unit k on, of `count` units.
template <class K>
BNEXT_DEVICE void add_deviations(const RowUnits<K>& x, int k, int count, typename K::C pilot,
                                 double& first, double& second) {
    using C = typename K::C;
    C d[K::kValues];
    bool varies = false;
    C of_d = 0, of_squares = 0;
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) {
        const bool exists = k + u < count;
        typename K::U unit{};
        if (exists) unit = x[k + u];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            d[u * K::V + v] = exists ? wide_value<K>(unit, v) - pilot : C{0};
        }
    }
    BNEXT_UNROLL
    for (int v = 0; v < K::kValues; ++v) {
        of_d += d[v];
        of_squares = device::fma_of(d[v], d[v], of_squares);
        varies = varies || d[v] != C{0};
    }
    const bool vanishes = sizeof(C) < 8 && !(of_squares > C{1e-30F}) && varies;
    if (are_ordinary(of_d, of_squares) && !vanishes) {
        first += static_cast<double>(of_d);
        second += static_cast<double>(of_squares);
        return;
    }
    BNEXT_UNROLL
    for (int u = 0; u < K::kBatch; ++u) {
        if (k + u >= count) break;
        const typename K::U unit = x[k + u];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            const double wide =
                static_cast<double>(wide_value<K>(unit, v)) - static_cast<double>(pilot);
            first += wide;
            second = device::fma_of(wide, wide, second);
        }
    }
}

template <class K, class S>
BNEXT_DEVICE void write_normalized(const Arguments& a, const RowTeam& team, Index row, int count,
                                   const RowUnits<K>& x, const RowNumbers<S>& numbers) {
    using C = typename K::C;
    const RowUnits<K> y(a, a.out[0], row, team, nullptr);
    const RowUnits<K> residual(a, a.residual, row, team, nullptr);
    BNEXT_UNROLL_BY(1)
    for (int k = count; k-- > 0;) {
        const typename K::U unit = x[k];
        C xhat[K::V], z[K::V];
        BNEXT_UNROLL
        for (int v = 0; v < K::V; ++v) {
            xhat[v] = static_cast<C>(numbers.xhat(static_cast<S>(wide_value<K>(unit, v))));
        }
        arguments_at<K>(a, a.weight, a.bias, team.lane + Index{k} * team.lanes, residual.place(k),
                        xhat, z);
        if constexpr (K::kActivated) {
            BNEXT_UNROLL
            for (int v = 0; v < K::V; ++v) z[v] = activate(a.fused, z[v]);
        }
        typename K::U out;
        device::narrow<K::V>(out.value, z);
        device::store_once(y.place(k), out);
    }
}

template <class K>
BNEXT_KERNEL BNEXT_LAUNCH_BOUNDS normalize_row(BNEXT_CONSTANT Arguments a) {
    using C = typename K::C;
    const RowTeam team(a);
    const RowPlaces<K> places(a, 1);
    const int units = team.units_of(a);
    const auto n = static_cast<double>(a.row.width);
    Index begin = device::block() * team.teams;
    for (; begin < a.row.rows; begin += a.row.stride) {
        const bool exists = begin + team.team < a.row.rows;
        const Index row = exists ? begin + team.team : begin;
        const int count = exists ? units : 0;
        const RowUnits<K> x(a, a.in[0], row, team, places.units);
        x.fetch(count);
        C pilot = a.row.centered ? pilot_of_row<K>(a, row) : C{0};
        bool looks = exists;
        wait_for_units<K>();
        const auto finish = [&](double first, double second, bool writes) {
            HighLow mean{0.0, 0.0};
            double m2 = second;
            bool cancels = false;
            if (a.row.centered) {
                mean = two_sum(static_cast<double>(pilot), first / n);
                m2 = second - first * (first / n);
                m2 = m2 < 0.0 ? 0.0 : m2;
                cancels = sizeof(C) == 8 || second > 4.0 * m2;
                if (sizeof(C) < 8) mean.low = 0.0;
            }
            const double rstd = rstd_of(m2 / n, a.eps);
            if (writes && looks) {
                *row_statistic(a, 0, row) = mean.high;
                *row_statistic(a, 1, row) = mean.low;
                *row_statistic(a, 2, row) = rstd;
            }
            return ForwardRow<C>{RowNumbers<C>(mean, rstd), RowNumbers<double>(mean, rstd),
                                 is_extreme_row<C>(mean.high, rstd), cancels};
        };
        ForwardRow<C> found{};
        BNEXT_UNROLL_BY(1)
        for (int look = 0; look < 2; ++look) {
            double of_d = 0, of_squares = 0;
            const int seen = looks ? count : 0;
            BNEXT_UNROLL_BY(1)
            for (int k = 0; k < seen; k += K::kBatch) {
                add_deviations<K>(x, k, seen, pilot, of_d, of_squares);
            }
            const auto made = agreed_of<ForwardRow<C>>(team, places, of_d, of_squares, finish);
            if (looks) found = made;
            looks = looks && made.cancels;
            if (!any_team(team, looks)) break;
            pilot = found.usual.center;
        }
        if (found.is_extreme) {
            write_normalized<K>(a, team, row, count, x, found.extreme);
        } else {
            write_normalized<K>(a, team, row, count, x, found.usual);
        }
    }
}

}  // namespace bnext::cuda
