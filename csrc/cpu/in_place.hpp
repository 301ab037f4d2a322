// The backward pass of a call in place, which has y and no x (Rota Bulò, Porzi, Kontschieder 2018,
// section 3). With the forward call's weight w and bias, z = act^-1(y) and xhat = (z - bias) / w,
//     s1 = sum g,  s2 = sum g (z - bias) = w sum g xhat,  g = dy act'(z)
//     dx = weight rstd (g - s1/n - (z - bias) s2 / (n w^2))
// This is Gradient (core/formulas.hpp) of z in place of x, about the bias as the mean, with 1/|w|
// as rstd and a scale of its own. So it has the kernels, schedules and ranges of any backward pass.
//
// Sums leave the operations in the units of x, sum g (x - mean) = s2 / (w rstd), as they do in
// other passes: what follows from them, and what a group exchanges, is the same.
//
// Error: y is rounded, so xhat differs from the exact one by up to (2 |bias / w| + 3 |xhat|) u, u
// the unit roundoff of the data, and 2 |z / w| u more where z is from a division.
// core/check_in_place.cpp limits |bias / w|.
#pragma once

#include <cmath>

#include "core/float_mode.hpp"
#include "core/statistics.hpp"
#include "cpu/operations.hpp"
#include "cpu/phases.hpp"
#include "cpu/pool_array.hpp"

namespace bnext::cpu {

template <class T>
class InPlace {
public:
    InPlace(Index channels, const StatisticsIn& of, const Param<T>* weight,
            const Applied<T>& applied)
        : rows_(static_cast<std::size_t>((kStatisticsRows + 2) * channels), 0.0),
          channels_(channels),
          applied_(applied) {
        const FloatMode mode;
        const StatisticsOut made(rows_.data(), channels);
        double* const scale = rows_.data() + kStatisticsRows * channels;
        for (Index c = 0; c < channels; ++c) {
            const double w = value_or(applied.of_forward.weight, c, 1.0);
            made.mean()[c] = value_or(applied.of_forward.bias, c, 0.0);
            made.rstd()[c] = 1.0 / std::abs(w);
            scale[c] = value_or(weight, c, 1.0) * of.rstd()[c];
            scale[c + channels] = w * of.rstd()[c];
        }
        applied_.scale = scale;
    }

    [[nodiscard]] StatisticsIn of() const { return {rows_.data(), channels_}; }
    [[nodiscard]] const Applied<T>& applied() const { return applied_; }

    // Between sums of g (x - mean) and of g (z - bias); where rstd is 0, all deviations are.
    void to_units_of_x(double* sums) const {
        const FloatMode mode;
        for (Index c = 0; c < channels_; ++c) {
            sums[c] = slope(c) == 0.0 ? 0.0 : sums[c] / slope(c);
        }
    }
    [[nodiscard]] PoolArray<double> in_units_of_z(const double* sums) const {
        const FloatMode mode;
        PoolArray<double> made(static_cast<std::size_t>(channels_));
        for (Index c = 0; c < channels_; ++c) made.data()[c] = sums[c] * slope(c);
        return made;
    }

private:
    // Of z over x.
    [[nodiscard]] double slope(Index c) const {
        return rows_.data()[(kStatisticsRows + 1) * channels_ + c];
    }

    PoolArray<double> rows_;  // statistics as above, the scale of dx, w * rstd
    Index channels_;
    Applied<T> applied_;
};

template <class T>
const double* scale_of(const Applied<T>* applied) {
    return applied != nullptr ? applied->scale : nullptr;
}

// Whether a pass is in place, and its operands still refer to x.
template <class T>
bool begins_in_place(const Applied<T>* applied) {
    return applied != nullptr && applied->fused.in_place && applied->scale == nullptr;
}

}  // namespace bnext::cpu
