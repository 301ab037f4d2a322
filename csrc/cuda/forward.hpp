// Forward: mean and variance of each channel, and y = (x - mean) * rstd * weight + bias.
//
// Sums: of x - pilot and its square (accumulator.hpp). Coefficients: as on the CPU. With mean =
// center + low, center rounded to the arithmetic's type,
//     y = (x - center) * scale + shift,  scale = weight * rstd,  shift = bias - low * scale
// (core/statistics.hpp says where float64 arithmetic has the low part from.)
// Error: of a batch's float32 sums, relative to m2 about 2^-24; three roundings in y.
#pragma once

#include <limits>

#include "cuda/accumulator.hpp"
#include "cuda/sums.hpp"

namespace bnext::cuda {

// The parameter of a channel, or what stands for it where there is none.
template <class K>
BNEXT_DEVICE double parameter(const Arguments& a, const void* values, Index channel,
                              double otherwise) {
    using P = typename K::P;
    if (values == nullptr) return otherwise;
    return static_cast<double>(static_cast<const P*>(values)[a.cut.parameter(channel)]);
}

template <class K>
BNEXT_DEVICE void prefetch_parameter(const Arguments& a, const void* values, Index channel) {
    using P = typename K::P;
    if (values != nullptr) {
        device::prefetch(static_cast<const P*>(values) + a.cut.parameter(channel));
    }
}

// 0 where both are, as PyTorch has it.
BNEXT_DEVICE double rstd_of(double var, double eps) {
    const double sum = var + eps;
    return sum == 0.0 ? 0.0 : 1.0 / device::square_root(sum);
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

    using Accumulator = cuda::Accumulator<K, F::kSummed>;

    // Asks for what `finish` needs of a channel, long before it does.
    BNEXT_DEVICE static void prefetch(const Arguments& a, Index channel) {
        prefetch_parameter<K>(a, a.weight, channel);
        prefetch_parameter<K>(a, a.bias, channel);
        prefetch_parameter<K>(a, a.running_mean, channel);
        prefetch_parameter<K>(a, a.running_var, channel);
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
        const double scale = parameter<K>(a, a.weight, channel, 1.0) * rstd;
        coefficients[F::kCenter] = static_cast<C>(mean.high);
        coefficients[F::kScale] = static_cast<C>(scale);
        coefficients[F::kShift] =
            static_cast<C>(parameter<K>(a, a.bias, channel, 0.0) - low_part<C>(mean) * scale);
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
            constexpr double kNoM2 = std::numeric_limits<double>::quiet_NaN();
            write(a, channel, {mean, 0.0}, kNoM2, var, rstd);
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
