// Per-channel arrays of coefficients for the second phase: Rows arrays in the data's compute type.
// On the stack for a block of channels (Capacity > 0), on the heap for all of them (Capacity 0).
#pragma once

#include <array>
#include <vector>

#include "core/dtype.hpp"

namespace bnext::cpu {

template <class C, std::size_t Rows, Index Capacity>
class CoefficientRows {
public:
    C* row(std::size_t r, Index offset) { return &values_[r * kCapacity] + offset; }
    [[nodiscard]] const C* row(std::size_t r, Index offset) const {
        return &values_[r * kCapacity] + offset;
    }

private:
    static constexpr std::size_t kCapacity = static_cast<std::size_t>(Capacity);
    std::array<C, Rows * kCapacity> values_;
};

template <class C, std::size_t Rows>
class CoefficientRows<C, Rows, 0> {
public:
    explicit CoefficientRows(Index channels)
        : channels_(static_cast<std::size_t>(channels)), values_(Rows * channels_) {}
    C* row(std::size_t r, Index offset) { return values_.data() + r * channels_ + offset; }
    [[nodiscard]] const C* row(std::size_t r, Index offset) const {
        return values_.data() + r * channels_ + offset;
    }

private:
    std::size_t channels_;
    std::vector<C> values_;
};

// What an optional parameter has for a channel.
template <class P>
double value_or(const P* values, Index c, double otherwise) {
    return values != nullptr ? static_cast<double>(values[c]) : otherwise;
}

}  // namespace bnext::cpu
