// Channels that the second phase's float32 arithmetic has no range for, value by value in double.
//
// Of float32 and bfloat16 data, which reach from 10^-45 to 3 * 10^38:
//   - x - mean, or dy - its mean, is more than the largest float32 where both are near the ends;
//   - the scale weight * rstd is, where deviations are below 10^-38 and eps is 0; and has few bits
//     where they are above 10^37;
//   - the slope of the backward pass is, or has few bits, for gradients of another size than that.
// Such channels are rare, and known once their statistics are: the others of a region are written
// by the kernels as ever, and these go around them. A channel's way follows from its statistics
// alone, so its bits depend neither on threads nor on the instruction set.
#pragma once

#include <atomic>
#include <cmath>
#include <type_traits>

#include "core/dtype.hpp"
#include "core/tiling.hpp"
#include "cpu/kernel_table.hpp"
#include "cpu/view.hpp"

namespace bnext::cpu {

template <class T>
inline constexpr bool kHasExtremes = std::is_same_v<Compute<T>, float>;

struct NormConstants {
    double mean, scale, bias;

    // Of rstd and weight, the weight may be small without harm: then y is near the bias.
    [[nodiscard]] bool is_extreme(double rstd) const {
        return std::abs(mean) >= kLargeDifferences || std::abs(scale) >= kLargestScale ||
               (rstd < kSmallestScale && rstd > 0.0);
    }
    [[nodiscard]] double y(double x) const { return (x - mean) * scale + bias; }
};

struct GradientConstants {
    double mean, slope, offset, scale;

    [[nodiscard]] bool is_extreme(double rstd) const {
        const double size = std::abs(slope);
        return std::abs(mean) >= kLargeDifferences || std::abs(offset) >= kLargeDifferences ||
               std::abs(scale) >= kLargestScale || size >= kLargestScale ||
               (rstd < kSmallestScale && rstd > 0.0) ||
               (rstd < kSmallSlopesMatter && rstd > 0.0 && size < kSmallestScale && size > 0.0);
    }
    [[nodiscard]] double dx(double dy, double x) const {
        return ((x - mean) * slope + (dy - offset)) * scale;
    }
};

// Whether a call has met any. Threads set it before the barrier between the phases, or for
// channels that they go on with themselves.
class Extremes {
public:
    void note(bool any) const {
        if (any) any_.store(true, std::memory_order_relaxed);
    }
    [[nodiscard]] bool any() const { return any_.load(std::memory_order_relaxed); }

private:
    mutable std::atomic<bool> any_{false};
};

// Calls one(c) for each extreme channel of a region, and ordinary(part) for runs of the others.
template <class IsExtreme, class Ordinary, class One>
void for_each_run(const Region& region, const IsExtreme& is_extreme, const Ordinary& ordinary,
                  const One& one) {
    Index begin = region.channels.begin;
    const Index end = region.channels.end;
    for (Index c = begin; c <= end; ++c) {
        if (c < end && !is_extreme(c)) continue;
        if (begin < c) ordinary(Region{region.tiling, region.tiles, {begin, c}});
        if (c < end) one(c);
        begin = c + 1;
    }
}

// f(o, i) at every place of a channel in a region.
template <class F>
void for_each_place_in(const Region& region, const F& f) {
    for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
        const Tile tile = region.tiling->tile(t);
        for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
            for (Index i = tile.inner_begin; i < tile.inner_end; ++i) f(o, i);
        }
    }
}

// A value of data, rounded.
template <class T>
T value_of(double value) {
    return static_cast<T>(static_cast<Compute<T>>(value));
}

// out = formula(values of the inputs ...) for all of a channel in a region.
template <class Formula, class T, class... In>
void write_channel(const View<T>& out, const Region& region, Index c, const Formula& formula,
                   const In&... in) {
    for_each_place_in(region, [&](Index o, Index i) {
        *at(out, o, c, i) = value_of<T>(formula(static_cast<double>(*at(in, o, c, i))...));
    });
}

}  // namespace bnext::cpu
