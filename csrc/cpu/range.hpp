// Channels whose sums of the first phase left the range of float32, done again in double.
//
// bfloat16 has float32's range, from 10^-40 to 3 * 10^38, so squares of its values, which are
// summed in float32 for a while, overflow above 10^19 and vanish below 10^-20. A channel's final
// sums show that:
//   - an overflow is infinite or NaN in the end;
//   - each of n values loses less than 2^-149, which does not matter beside a sum of at least
//     n * 2^-110, and is taken for a loss below.
// Such a channel's values are gone through one by one. That is slow, and rare but for channels
// without any variance or gradient, whose sums are 0 because they are: of these a few values are
// looked at, and where all of them are without any as well, 0 it is. So values that vanish are
// missed where nearly all others of their channel are zeros, and that is all that is.
//
// The kernels know nothing of this: sums are tested once a channel, when they are final. What is
// done again depends on the channel's data alone, so that the result is the same whoever does it.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/dtype.hpp"
#include "core/tiling.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

template <class T>
inline constexpr bool kMayLeaveRange = DTypeOf<T>::value == DType::bfloat16;

inline constexpr double kSmallestShare = 0x1p-110;  // of one value in a sum
inline constexpr double kFarFromZero = 0x1p-40;

// Whether f(o, i) is true at any of a few places of a channel, the first and the last among them.
template <class F>
bool at_few_places(const Tiling& tiling, const F& f) {
    constexpr Index kValuesPerPlace = 512, kFewest = 4, kMost = 16;
    const Index last = tiling.outer() * tiling.inner() - 1;
    const Index steps = std::clamp((last + 1) / kValuesPerPlace, kFewest, kMost) - 1;
    for (Index k = 0; k <= steps; ++k) {
        const Index place = k < steps ? k * (last / steps) : last;
        if (f(place / tiling.inner(), place % tiling.inner())) return true;
    }
    return false;
}

// Calls f(o, i) for every value of a channel, until it is false.
template <class F>
bool for_each_place(const Tiling& tiling, const F& f) {
    for (Index o = 0; o < tiling.outer(); ++o) {
        for (Index i = 0; i < tiling.inner(); ++i) {
            if (!f(o, i)) return false;
        }
    }
    return true;
}

// The mean and m2 of channel c. With a value that is no number they stay as they are.
template <class T>
[[gnu::noinline, gnu::cold]] void exact_moments(const View<const T>& x, const Tiling& tiling,
                                                Index c, double& mean, double& m2) {
    const auto n = static_cast<double>(tiling.outer() * tiling.inner());
    const double origin = origin_of(x, tiling, c);
    const auto from_origin = [&](Index o, Index i) {
        return static_cast<double>(*at(x, o, c, i)) - origin;
    };
    double sum = 0.0, rest = 0.0, squares = 0.0;
    const bool are_numbers = for_each_place(tiling, [&](Index o, Index i) {
        const double d = from_origin(o, i);
        sum += d;
        return std::isfinite(d);
    });
    if (!are_numbers) return;
    const double near = sum / n;
    for_each_place(tiling, [&](Index o, Index i) {
        const double d = from_origin(o, i) - near;
        rest += d;
        squares += d * d;
        return true;
    });
    const double all = squares - rest * (rest / n);
    mean = origin + (near + rest / n);
    m2 = all < 0.0 ? 0.0 : all;
}

// The sums of dy and of dy * (x - mean) of channel c, where dy(o, c, i) and x(o, c, i) are the
// gradient and the value at a place. With a value that is no number they stay.
template <class Dy, class X>
[[gnu::noinline, gnu::cold]] void exact_gradient_sums(const Dy& dy, const X& x,
                                                      const Tiling& tiling, Index c, double mean,
                                                      double& sum_dy, double& sum_dy_xmu) {
    double s1 = 0.0, s2 = 0.0;
    const bool are_numbers = for_each_place(tiling, [&](Index o, Index i) {
        const double grad = dy(o, c, i);
        const double product = grad * (x(o, c, i) - mean);
        s1 += grad;
        s2 += product;
        return std::isfinite(product);
    });
    if (!are_numbers) return;
    sum_dy = s1;
    sum_dy_xmu = s2;
}

// Of the channels in a range; the arrays have all channels. Next to a mean that far from
// 0 values lie too far apart for squares to vanish, so where their sum is 0 they are 0.
template <class T>
[[gnu::noinline, gnu::cold]] void mend_moments(const View<const T>& x, const Tiling& tiling,
                                               const ChannelRange& channels, double smallest,
                                               double* mean, double* m2) {
    for (Index c = channels.begin; c < channels.end; ++c) {
        if (m2[c] >= smallest && std::isfinite(m2[c])) continue;
        if (m2[c] == 0.0) {
            if (std::abs(mean[c]) >= kFarFromZero) continue;
            const bool any = at_few_places(tiling, [&](Index o, Index i) {
                return static_cast<double>(*at(x, o, c, i)) != mean[c];
            });
            if (!any) continue;
        }
        exact_moments(x, tiling, c, mean[c], m2[c]);
    }
}

// By the same reasoning for gradients and their products with deviations.
template <class Dy, class X>
[[gnu::noinline, gnu::cold]] void mend_gradient_sums(const Dy& dy, const X& x, const Tiling& tiling,
                                                     const ChannelRange& channels, double smallest,
                                                     const double* mean, double* sum_dy,
                                                     double* sum_dy_xmu) {
    const auto n = static_cast<double>(tiling.outer() * tiling.inner());
    for (Index c = channels.begin; c < channels.end; ++c) {
        const double product = std::abs(sum_dy_xmu[c]);
        if (std::isfinite(sum_dy[c])) {
            if (product >= smallest && std::isfinite(product)) continue;
            if (product == 0.0) {
                const bool far = std::abs(mean[c]) >= kFarFromZero;
                if (far && std::abs(sum_dy[c]) >= 0x1p-60 * n) continue;
                const bool any = at_few_places(tiling, [&](Index o, Index i) {
                    return dy(o, c, i) != 0.0 && x(o, c, i) != mean[c];
                });
                if (!any) continue;
            }
        }
        exact_gradient_sums(dy, x, tiling, c, mean[c], sum_dy[c], sum_dy_xmu[c]);
    }
}

}  // namespace bnext::cpu
