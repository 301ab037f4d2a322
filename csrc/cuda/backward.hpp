// Backward: sums of dy and of dy * (x - mean) of each channel, and
//     dx = weight * rstd * (dy - E[dy] - xhat * E[dy * xhat]),  xhat = (x - mean) * rstd
//
// Sums: accumulator.hpp. With mean = center + low, the low part is taken off once, at
// the end. Coefficients: as on the CPU,
//     dx = ((x - center) * slope + (dy - offset)) * scale
// Error: of a batch's float32 sums; four roundings in dx.
#pragma once

#include "cuda/forward.hpp"

namespace bnext::cuda {

template <class K>
struct Backward {
    using C = typename K::C;
    using F = Formula<Pass::backward, Epilogue::none, C>;

    using Accumulator = cuda::Accumulator<K, F::kSummed>;

    BNEXT_DEVICE static void prefetch(const Arguments& a, Index channel) {
        prefetch_parameter<K>(a, a.weight, channel);
        device::prefetch(statistic(a, Row::rstd, channel));
    }

    BNEXT_DEVICE_CALL static void finish(const Arguments& a, Index channel, Sums total, bool writes,
                                         C* coefficients) {
        using P = typename K::P;
        const double low = low_part<C>(saved_mean(a, channel));
        const double sum_dy = total.first;
        const double sum_dy_xmu = total.second - low * total.first;
        if (coefficients != nullptr) set(a, channel, total.n, sum_dy, sum_dy_xmu, coefficients);
        if (!writes) return;
        if (a.sums != nullptr) {
            a.sums[channel] = sum_dy;
            a.sums[a.cut.channels + channel] = sum_dy_xmu;
        }
        if (a.n != nullptr) a.n[channel] = total.n;
        if (a.dweight != nullptr) {
            const double rstd = *statistic(a, Row::rstd, channel);
            static_cast<P*>(a.dweight)[channel] = static_cast<P>(sum_dy_xmu * rstd);
            static_cast<P*>(a.dbias)[channel] = static_cast<P>(sum_dy);
        }
    }

    BNEXT_DEVICE static void set(const Arguments& a, Index channel, double n, double sum_dy,
                                 double sum_dy_xmu, C* coefficients) {
        const HighLow mean = saved_mean(a, channel);
        const double rstd = *statistic(a, Row::rstd, channel);
        const double tilt = -rstd * (rstd * (sum_dy_xmu / n));
        coefficients[F::kCenter] = static_cast<C>(mean.high);
        coefficients[F::kSlope] = static_cast<C>(tilt);
        coefficients[F::kOffset] = static_cast<C>(sum_dy / n + low_part<C>(mean) * tilt);
        coefficients[F::kScale] = static_cast<C>(parameter<K>(a, a.weight, channel, 1.0) * rstd);
    }

    BNEXT_DEVICE static void coefficients_of(const Arguments& a, Index channel, bool,
                                             C* coefficients) {
        const double n = a.n != nullptr ? a.n[channel] : a.count;
        set(a, channel, n, a.sums[channel], a.sums[a.cut.channels + channel], coefficients);
    }
};

}  // namespace bnext::cuda
