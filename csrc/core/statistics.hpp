// The statistics of each channel that a forward pass leaves for its backward pass, by name: rows of
// one double per channel, one row behind the other.
//
// The exact mean is mean + mean_low. mean is that rounded to double, which float64 data at a large
// mean / std have not enough of: where deviations are 1e8 times smaller than the mean, its last
// place is 1e8 times theirs. mean_low is 0 for narrower data, and for statistics that were given.
#pragma once

#include "core/dtype.hpp"
#include "core/inline.hpp"

namespace bnext {

// In the order in which they lie. A new row comes last: graphs that PyTorch has exported pick rows
// by their places.
enum class Row : std::uint8_t { mean, m2, var, rstd, mean_low };
inline constexpr Index kStatisticsRows = 5;
inline constexpr const char* kRowNames[] = {"mean", "m2", "var", "rstd", "mean_low"};

// Of functions of rows (layer and RMS normalization): mean, mean_low and rstd of each row.
inline constexpr Index kRowStatistics = 3;

// D: double, or const double.
template <class D>
class StatisticsRows {
public:
    StatisticsRows(D* first, Index channels) : first_(first), channels_(channels) {}
    // Writable rows are readable.
    operator StatisticsRows<const D>() const { return {first_, channels_}; }

    [[nodiscard]] D* row(Row which) const { return first_ + static_cast<Index>(which) * channels_; }
    [[nodiscard]] D* mean() const { return row(Row::mean); }
    [[nodiscard]] D* m2() const { return row(Row::m2); }
    [[nodiscard]] D* var() const { return row(Row::var); }
    [[nodiscard]] D* rstd() const { return row(Row::rstd); }
    [[nodiscard]] D* mean_low() const { return row(Row::mean_low); }

private:
    D* first_;
    Index channels_;
};

// To be written, and to be read.
using StatisticsOut = StatisticsRows<double>;
using StatisticsIn = StatisticsRows<const double>;

// A sum, and its rounding error: a + b = high + low exactly (Knuth's TwoSum). low is 0 where
// the sum is not finite.
struct HighLow {
    double high;
    double low;
};

BNEXT_FORCE_INLINE constexpr HighLow two_sum(double a, double b) {
    const double high = a + b;
    const double of_b = high - a;
    const double low = (a - (high - of_b)) + (b - of_b);
    return {high, low == low ? low : 0.0};
}

}  // namespace bnext
