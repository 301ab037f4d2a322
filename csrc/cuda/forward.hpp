// Forward: mean and variance of each channel, and y = (x - mean) * rstd * weight + bias.
//
// Sums: of x - pilot and its square, up to 32 values at a time in the arithmetic's type (float32
// for 16-bit data), then in double. Where squares of such a batch overflow or vanish, they are
// scaled. Coefficients: as on the CPU. With mean = center + low, center rounded to the arithmetic's
// type,
//     y = (x - center) * scale + shift,  scale = weight * rstd,  shift = bias - low * scale
// (core/statistics.hpp says where float64 arithmetic has the low part from.)
// Error: that of a batch's float32 sums, relative to m2 about 2^-24; three roundings in y.
#pragma once

#include "cuda/sums.hpp"

namespace bnext::cuda {

// A parameter, or what stands for it where there is none.
template <class P>
BNEXT_DEVICE double parameter(const void* values, Index channel, double otherwise) {
    return values == nullptr ? otherwise
                             : static_cast<double>(static_cast<const P*>(values)[channel]);
}

template <class P>
BNEXT_DEVICE void prefetch_parameter(const void* values, Index channel) {
    if (values != nullptr) device::prefetch(static_cast<const P*>(values) + channel);
}

BNEXT_DEVICE double rstd_of(double var, double eps) {
    const double sum = var + eps;
    return sum == 0.0 ? 0.0
                      : 1.0 / device::square_root(sum);  // 0 where both are, as PyTorch has it
}

// What values are multiplied by, where their squares would overflow or vanish in float32; and what
// undoes it, without dividing.
inline constexpr float kScaleUp = 0x1p70F, kScaleDown = 0x1p-70F;
template <class C>
BNEXT_DEVICE double back_of(C scale) {
    return scale == C{1} ? 1.0 : (scale > C{1} ? 0x1p-70 : 0x1p70);
}

// The mean of a channel minus its value in the arithmetic's type C: the rounding error of a float,
// and in float64 arithmetic the low part (core/statistics.hpp).
template <class C>
BNEXT_DEVICE double low_part(const HighLow& mean) {
    return sizeof(C) == 8 ? mean.low : mean.high - static_cast<double>(static_cast<C>(mean.high));
}
BNEXT_DEVICE HighLow saved_mean(const Arguments& a, Index channel) {
    return {*statistic(a, Row::mean, channel), *statistic(a, Row::mean_low, channel)};
}

template <class K>
struct Forward {
    using C = typename K::C;
    using F = Formula<Pass::forward, Epilogue::none, C>;

    // What a thread sums of its channels.
    class Accumulator {
    public:
        BNEXT_DEVICE Accumulator(const Arguments&, Index, bool) {}

        BNEXT_DEVICE void add(const Batch<K> (&in)[K::kInputs], unsigned exists, bool first_batch) {
            if (first_batch) choose_pilots(in[0], exists);
            C sum[K::kChannels], squares[K::kChannels];
            if (exists == kAllUnits<K>) {
                sum_up(in[0], [&](int, C value, int c) { return value - pilot_[c]; }, sum, squares);
            } else {
                sum_up(
                    in[0],
                    [&](int u, C value, int c) {
                        return (exists >> u & 1U) != 0 ? value - pilot_[c] : C{0};
                    },
                    sum, squares);
            }
            bool ordinary = true;
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) ordinary = ordinary && is_ordinary(squares[c]);
            if (!ordinary) return add_scaled(in[0], exists, squares);
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                first_[c] += static_cast<double>(sum[c]);
                second_[c] += static_cast<double>(squares[c]);
            }
        }

        // After so many units in all.
        BNEXT_DEVICE void take(Sums (&sums)[K::kChannels], int units) const {
            const double n = static_cast<double>(units) * K::kPerChannel;
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                sums[c] = {n, first_[c], second_[c], static_cast<double>(pilot_[c])};
            }
        }

    private:
        // Of d(u, value, c) and its square.
        template <class D>
        BNEXT_DEVICE static void sum_up(const Batch<K>& x, D&& d, C (&sum)[K::kChannels],
                                        C (&squares)[K::kChannels]) {
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) sum[c] = squares[c] = C{0};
            for_each_value<K>([&](int u, int v, int c) {
                const C one = d(u, wide<K>(x[u], v), c);
                sum[c] += one;
                squares[c] = device::fma_of(one, one, squares[c]);
            });
        }
        // Once more, where a channel's squares overflow or vanish, with its values scaled. (Channel
        // after channel, which takes fewer registers.)
        BNEXT_DEVICE void add_scaled(const Batch<K>& x, unsigned exists,
                                     const C (&before)[K::kChannels]) {
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                C scale = 1, sum = 0, squares = 0;
                if (!is_ordinary(before[c])) {
                    // (So far from 0, float32 values that differ at all differ by more.)
                    const bool near_zero = pilot_[c] < C{1e10F} && pilot_[c] > C{-1e10F};
                    scale = before[c] < C{1} ? (near_zero ? C{kScaleUp} : C{1}) : C{kScaleDown};
                }
                for_each_value_of<K>(c, [&](int u, int v) {
                    C d = device::fma_of(wide<K>(x[u], v), scale, -pilot_[c] * scale);
                    d = (exists >> u & 1U) != 0 ? d : C{0};
                    sum += d;
                    squares = device::fma_of(d, d, squares);
                });
                const double back = back_of(scale);
                first_[c] += static_cast<double>(sum) * back;
                second_[c] += static_cast<double>(squares) * (back * back);
            }
        }
        BNEXT_DEVICE static int units_of(unsigned exists) {
            int units = 0;
            BNEXT_UNROLL
            for (int u = 0; u < K::kBatch; ++u) units += static_cast<int>(exists >> u & 1U);
            return units;
        }
        // The middle one of the means of the first three units, so that no outlier comes near it.
        // The mean of all, where there are fewer (then no other batch follows). 0 where that is not
        // a number.
        BNEXT_DEVICE void choose_pilots(const Batch<K>& x, unsigned exists) {
            static_assert(K::kBatch >= 3);
            C sum[3][K::kChannels] = {};
            for_each_value<K>([&](int u, int v, int c) {
                if (u < 3) sum[u][c] += wide<K>(x[u], v);  // 0: there is none
            });
            const int units = units_of(exists);
            const C n = static_cast<C>((units > 0 && units < 3 ? units : 1) * K::kPerChannel);
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                const C p = sum[0][c], q = sum[1][c], r = sum[2][c];
                const C low = p < q ? p : q, high = p < q ? q : p;
                const C top = high < r ? high : r;
                const C middle = low < top ? top : low;
                const C pilot = (units < 3 ? p + q : middle) / n;
                pilot_[c] = pilot - pilot == C{0} ? pilot : C{0};
            }
        }

        // Whether float32 squares neither overflow nor vanish. (Those of a constant do vanish, and
        // are looked at twice.)
        BNEXT_DEVICE static bool is_ordinary(C squares) {
            if constexpr (sizeof(C) == 8) {
                return true;
            } else {
                return squares < C{1e37F} && squares > C{1e-30F};
            }
        }

        C pilot_[K::kChannels] = {};
        double first_[K::kChannels] = {}, second_[K::kChannels] = {};
    };

    // Asks for what `finish` needs of a channel, long before it does.
    BNEXT_DEVICE static void prefetch(const Arguments& a, Index channel) {
        if (channel >= a.cut.channels) return;
        prefetch_parameter<typename K::P>(a.weight, channel);
        prefetch_parameter<typename K::P>(a.bias, channel);
        prefetch_parameter<typename K::P>(a.running_mean, channel);
        prefetch_parameter<typename K::P>(a.running_var, channel);
    }

    // From the sums of a whole channel to its statistics; written once, by the block that `writes`.
    BNEXT_DEVICE_CALL static void finish(const Arguments& a, Index channel, Sums total, bool writes,
                                         C* coefficients) {
        using P = typename K::P;
        HighLow mean = two_sum(total.pilot, total.first / total.n);
        if (sizeof(C) < 8) mean.low = 0.0;
        double m2 = total.second - total.first * (total.first / total.n);
        m2 = m2 < 0.0 ? 0.0 : m2;
        const double var = m2 / total.n;
        const double rstd = rstd_of(var, a.eps);
        if (coefficients != nullptr) set(a, channel, mean, rstd, coefficients);
        if (!writes) return;
        if (a.statistics != nullptr) {
            write(a, channel, mean, m2, var, rstd);
        }
        if (a.running_mean != nullptr && total.n > 1.0) {
            blend(static_cast<P*>(a.running_mean)[channel], mean.high, a.momentum);
            blend(static_cast<P*>(a.running_var)[channel], m2 / (total.n - a.correction),
                  a.momentum);
        }
        if (a.num_batches_tracked != nullptr && channel == 0) ++*a.num_batches_tracked;
    }

    BNEXT_DEVICE static void set(const Arguments& a, Index channel, const HighLow& mean,
                                 double rstd, C* coefficients) {
        using P = typename K::P;
        const double scale = parameter<P>(a.weight, channel, 1.0) * rstd;
        coefficients[F::kCenter] = static_cast<C>(mean.high);
        coefficients[F::kScale] = static_cast<C>(scale);
        coefficients[F::kShift] =
            static_cast<C>(parameter<P>(a.bias, channel, 0.0) - low_part<C>(mean) * scale);
    }

    // The second phase alone: coefficients from statistics of an earlier launch, or from given
    // ones.
    BNEXT_DEVICE static void coefficients_of(const Arguments& a, Index channel, bool writes,
                                             C* coefficients) {
        using P = typename K::P;
        if (a.source == Statistics::saved) {
            const double rstd = *statistic(a, Row::rstd, channel);
            return set(a, channel, saved_mean(a, channel), rstd, coefficients);
        }
        if (a.source == Statistics::absent) {
            return set(a, channel, {0.0, 0.0}, *statistic(a, Row::rstd, channel), coefficients);
        }
        double mean = 0, var = 0;
        if (a.source == Statistics::wide) {
            mean = static_cast<const double*>(a.mean)[channel];
            var = static_cast<const double*>(a.var)[channel];
        } else {
            mean = static_cast<double>(static_cast<const P*>(a.mean)[channel]);
            var = static_cast<double>(static_cast<const P*>(a.var)[channel]);
        }
        const double rstd = rstd_of(var, a.eps);
        set(a, channel, {mean, 0.0}, rstd, coefficients);
        if (writes && a.statistics != nullptr) {
            write(a, channel, {mean, 0.0}, device::not_a_number(), var, rstd);  // there is no m2
        }
    }

private:
    BNEXT_DEVICE static void write(const Arguments& a, Index channel, const HighLow& mean,
                                   double m2, double var, double rstd) {
        *statistic(a, Row::mean, channel) = mean.high;
        *statistic(a, Row::mean_low, channel) = mean.low;
        *statistic(a, Row::m2, channel) = m2;
        *statistic(a, Row::var, channel) = var;
        *statistic(a, Row::rstd, channel) = rstd;
    }
    // new = (1 - momentum) * old + momentum * batch
    template <class P>
    BNEXT_DEVICE static void blend(P& running, double batch, double momentum) {
        running =
            static_cast<P>((1.0 - momentum) * static_cast<double>(running) + momentum * batch);
    }
};

}  // namespace bnext::cuda
