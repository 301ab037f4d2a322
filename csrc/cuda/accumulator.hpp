// The two sums that a thread makes of its channels: forward of d = x - pilot and of d * d, backward
// of dy and of dy * d, d = x - mean. n of both counts the values.
//
// Up to 32 values at a time are summed in the arithmetic's type (float32 for 16-bit data), then in
// double. Where such a batch's sums overflow, or squares vanish, they are made again of scaled
// values.
#pragma once

#include "cuda/values.hpp"

namespace bnext::cuda {

// What values are multiplied by, where their squares would overflow or vanish in float32; and what
// undoes it, without dividing.
inline constexpr float kScaleUp = 0x1p70F, kScaleDown = 0x1p-70F;
template <class C>
BNEXT_DEVICE double back_of(C scale) {
    return scale == C{1} ? 1.0 : (scale > C{1} ? 0x1p-70 : 0x1p70);
}

// kSummed: how many of the arrays are summed, x, or x and dy.
template <class K, int kSummed>
class Accumulator {
    using C = typename K::C;
    static constexpr bool kForward = kSummed == 1;

public:
    BNEXT_DEVICE Accumulator(const Arguments& a, Index channel, bool active) {
        if constexpr (!kForward) {
            if (!active) return;
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                center_[c] = static_cast<C>(*statistic(a, Row::mean, channel + c));
            }
        }
    }

    // Units that do not exist are 0.
    BNEXT_DEVICE void add(const Batch<K> (&in)[K::kInputs], unsigned exists, bool first_batch) {
        if (kForward && first_batch) choose_pilots(in[0], exists);
        C first[K::kChannels], second[K::kChannels];
        if (!kForward || exists == kAllUnits<K>) {
            sum_up(in, [&](int, C value, int c) { return value - center_[c]; }, first, second);
        } else {
            sum_up(
                in,
                [&](int u, C value, int c) {
                    return (exists >> u & 1U) != 0 ? value - center_[c] : C{0};
                },
                first, second);
        }
        bool ordinary = true;
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            ordinary = ordinary && is_ordinary(first[c], second[c]);
        }
        if (!ordinary) return add_scaled(in, exists, first, second);
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            first_[c] += static_cast<double>(first[c]);
            second_[c] += static_cast<double>(second[c]);
        }
    }

    // After so many units in all.
    BNEXT_DEVICE void take(Sums (&sums)[K::kChannels], int units) const {
        const double n = static_cast<double>(units) * K::kPerChannel;
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            sums[c] = {n, first_[c], second_[c], kForward ? static_cast<double>(center_[c]) : 0.0};
        }
    }

protected:
    // By which values are multiplied whose sums are not ordinary.
    BNEXT_DEVICE static C other_scale(C center, C second) {
        // (So far from 0, float32 values that differ at all differ by more.)
        const bool near_zero = center < C{1e10F} && center > C{-1e10F};
        const bool vanish = kForward && second < C{1};
        return vanish ? (near_zero ? C{kScaleUp} : C{1}) : C{kScaleDown};
    }
    // With deviations d(u, value, c).
    template <class D>
    BNEXT_DEVICE static void sum_up(const Batch<K> (&in)[K::kInputs], D&& d,
                                    C (&first)[K::kChannels], C (&second)[K::kChannels]) {
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) first[c] = second[c] = C{0};
        for_each_value<K>([&](int u, int v, int c) {
            const C deviation = d(u, wide<K>(in[0][u], v), c);
            const C one = kForward ? deviation : wide<K>(in[kSummed - 1][u], v);
            first[c] += one;
            second[c] = device::fma_of(one, deviation, second[c]);
        });
    }
    // Once more, with the values scaled of channels whose sums are not ordinary. (Channel after
    // channel, which takes fewer registers.)
    BNEXT_DEVICE void add_scaled(const Batch<K> (&in)[K::kInputs], unsigned exists,
                                 const C (&first_before)[K::kChannels],
                                 const C (&second_before)[K::kChannels]) {
        BNEXT_UNROLL
        for (int c = 0; c < K::kChannels; ++c) {
            C scale = 1, first = 0, second = 0;
            if (!is_ordinary(first_before[c], second_before[c])) {
                scale = other_scale(center_[c], second_before[c]);
            }
            for_each_value<K>([&](int u, int v, int of) {
                if (of != c) return;
                C d = device::fma_of(wide<K>(in[0][u], v), scale, -center_[c] * scale);
                if (kForward) d = (exists >> u & 1U) != 0 ? d : C{0};
                const C one = kForward ? d : wide<K>(in[kSummed - 1][u], v) * scale;
                first += one;
                second = device::fma_of(one, d, second);
            });
            const double back = back_of(scale);
            first_[c] += static_cast<double>(first) * back;
            second_[c] += static_cast<double>(second) * (back * back);
        }
    }
    BNEXT_DEVICE static int units_of(unsigned exists) {
        int units = 0;
        BNEXT_UNROLL
        for (int u = 0; u < K::kBatch; ++u) units += static_cast<int>(exists >> u & 1U);
        return units;
    }
    // The middle one of the means of the first three units, so that no outlier comes near it. The
    // mean of all, where there are fewer (then no other batch follows). 0 where that is not a
    // number.
    BNEXT_DEVICE void choose_pilots(const Batch<K>& x, unsigned exists) {
        if constexpr (kForward) {
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
                center_[c] = pilot - pilot == C{0} ? pilot : C{0};
            }
        }
    }

    // Whether float32 sums neither overflow nor, being of squares, vanish. (Sums of a constant do
    // vanish, and are looked at twice.)
    BNEXT_DEVICE static bool is_ordinary(C first, C second) {
        constexpr C kMost = C{1e37F};
        if (sizeof(C) == 8) return true;
        if (kForward) return second < kMost && second > C{1e-30F};
        return first < kMost && first > -kMost && second < kMost && second > -kMost;
    }

    C center_[K::kChannels] = {};
    double first_[K::kChannels] = {}, second_[K::kChannels] = {};
};

}  // namespace bnext::cuda
