// Backward: sums of dy and of dy * (x - mean) of each channel, and
//     dx = weight * rstd * (dy - E[dy] - xhat * E[dy * xhat]),  xhat = (x - mean) * rstd
//
// Sums: up to 32 products at a time in the arithmetic's type (float32 for 16-bit data), then in
// double; scaled where they overflow. With mean = center + low, the low part is taken off once, at
// the end. Coefficients: as on the CPU,
//     dx = ((x - center) * slope + (dy - offset)) * scale
// Error: that of a batch's float32 sums; four roundings in dx.
#pragma once

#include "cuda/forward.hpp"

namespace bnext::cuda {

template <class K>
struct Backward {
    using C = typename K::C;
    using F = Formula<Pass::backward, Epilogue::none, C>;

    class Accumulator {
    public:
        BNEXT_DEVICE Accumulator(const Arguments& a, Index channel, bool active) {
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                center_[c] = active ? static_cast<C>(*statistic(a, Row::mean, channel + c)) : C{0};
            }
        }

        BNEXT_DEVICE void add(const Batch<K> (&in)[K::kInputs], unsigned, bool) {
            C sum[K::kChannels], products[K::kChannels];
            sum_up(
                in, [&](C value, int c) { return value - center_[c]; },
                [](C dy, int) { return dy; }, sum, products);
            bool ordinary = true;
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                ordinary = ordinary && is_ordinary(sum[c], products[c]);
            }
            if (!ordinary) return add_scaled(in, sum, products);
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                first_[c] += static_cast<double>(sum[c]);
                second_[c] += static_cast<double>(products[c]);
            }
        }

        BNEXT_DEVICE void take(Sums (&sums)[K::kChannels], int) const {
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) sums[c] = {0.0, first_[c], second_[c], 0.0};
        }

    private:
        // Of dy, as given(dy, c), and of dy * d(x, c); dy is 0 where there is none.
        template <class D, class G>
        BNEXT_DEVICE static void sum_up(const Batch<K> (&in)[K::kInputs], D&& d, G&& given,
                                        C (&sum)[K::kChannels], C (&products)[K::kChannels]) {
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) sum[c] = products[c] = C{0};
            for_each_value<K>([&](int u, int v, int c) {
                const C dy = given(wide<K>(in[1][u], v), c);
                sum[c] += dy;
                products[c] = device::fma_of(dy, d(wide<K>(in[0][u], v), c), products[c]);
            });
        }
        // Once more, where a channel's products overflow, with both factors scaled.
        BNEXT_DEVICE void add_scaled(const Batch<K> (&in)[K::kInputs],
                                     const C (&sum_before)[K::kChannels],
                                     const C (&products_before)[K::kChannels]) {
            C scale[K::kChannels], sum[K::kChannels], products[K::kChannels];
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                scale[c] = is_ordinary(sum_before[c], products_before[c]) ? C{1} : C{kScaleDown};
            }
            sum_up(
                in,
                [&](C value, int c) {
                    return device::fma_of(value, scale[c], -center_[c] * scale[c]);
                },
                [&](C dy, int c) { return dy * scale[c]; }, sum, products);
            BNEXT_UNROLL
            for (int c = 0; c < K::kChannels; ++c) {
                const double back = back_of(scale[c]);
                first_[c] += static_cast<double>(sum[c]) * back;
                second_[c] += static_cast<double>(products[c]) * (back * back);
            }
        }
        BNEXT_DEVICE static bool is_ordinary(C sum, C products) {
            if constexpr (sizeof(C) == 8) {
                return true;
            } else {
                constexpr C kMost = C{1e37F};
                return sum < kMost && sum > -kMost && products < kMost && products > -kMost;
            }
        }

        C center_[K::kChannels];
        double first_[K::kChannels] = {}, second_[K::kChannels] = {};
    };

    BNEXT_DEVICE static void prefetch(const Arguments& a, Index channel) {
        if (channel >= a.cut.channels) return;
        prefetch_parameter<typename K::P>(a.weight, channel);
        device::prefetch(statistic(a, Row::rstd, channel));
    }

    BNEXT_DEVICE_CALL static void finish(const Arguments& a, Index channel, Sums total, bool writes,
                                         C* coefficients) {
        using P = typename K::P;
        const double low = low_part<C>(saved_mean(a, channel));
        const double sum_dy = total.first;
        const double sum_dy_xmu = total.second - low * total.first;
        if (coefficients != nullptr) set(a, channel, sum_dy, sum_dy_xmu, coefficients);
        if (!writes) return;
        if (a.sums != nullptr) {
            a.sums[channel] = sum_dy;
            a.sums[a.cut.channels + channel] = sum_dy_xmu;
        }
        if (a.dweight != nullptr) {
            const double rstd = *statistic(a, Row::rstd, channel);
            static_cast<P*>(a.dweight)[channel] = static_cast<P>(sum_dy_xmu * rstd);
            static_cast<P*>(a.dbias)[channel] = static_cast<P>(sum_dy);
        }
    }

    BNEXT_DEVICE static void set(const Arguments& a, Index channel, double sum_dy,
                                 double sum_dy_xmu, C* coefficients) {
        using P = typename K::P;
        const HighLow mean = saved_mean(a, channel);
        const double rstd = *statistic(a, Row::rstd, channel);
        const double tilt = -rstd * (rstd * (sum_dy_xmu / a.count));
        coefficients[F::kCenter] = static_cast<C>(mean.high);
        coefficients[F::kSlope] = static_cast<C>(tilt);
        coefficients[F::kOffset] = static_cast<C>(sum_dy / a.count + low_part<C>(mean) * tilt);
        coefficients[F::kScale] = static_cast<C>(parameter<P>(a.weight, channel, 1.0) * rstd);
    }

    BNEXT_DEVICE static void coefficients_of(const Arguments& a, Index channel, bool,
                                             C* coefficients) {
        set(a, channel, a.sums[channel], a.sums[a.cut.channels + channel], coefficients);
    }
};

}  // namespace bnext::cuda
