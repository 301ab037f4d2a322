// Per-channel arrays of coefficients for the second phase: Rows arrays in the data's compute type.
// On the stack for a block of channels (Capacity > 0), on the heap for all of them (Capacity 0).
//
// Those of all channels go on behind the last one as they began, for kWrap values: for kernels that
// write the line which one row of channels ends in and the next begins in.
#pragma once

#include <algorithm>
#include <array>
#include <memory>

#include "core/dtype.hpp"

namespace bnext::cpu {

constexpr Index kWrap = 64;  // a line of the smallest elements, and two packs

template <class C, std::size_t Rows, Index Capacity>
class CoefficientRows {
public:
    C* row(std::size_t r, Index offset) { return &values_[r * kCapacity] + offset; }
    [[nodiscard]] const C* row(std::size_t r, Index offset) const {
        return &values_[r * kCapacity] + offset;
    }

    void set_wrap(Index, Index) {}

private:
    static constexpr std::size_t kCapacity = static_cast<std::size_t>(Capacity);
    std::array<C, Rows * kCapacity> values_;
};

template <class C, std::size_t Rows>
class CoefficientRows<C, Rows, 0> {
public:
    explicit CoefficientRows(Index channels)
        : channels_(channels),
          stride_(static_cast<std::size_t>(channels + kWrap)),
          values_(new C[Rows * stride_]) {}
    C* row(std::size_t r, Index offset) { return values_.get() + r * stride_ + offset; }
    [[nodiscard]] const C* row(std::size_t r, Index offset) const {
        return values_.get() + r * stride_ + offset;
    }
    // To be called when [offset, offset + size) of all rows is set.
    void set_wrap(Index offset, Index size) {
        const Index repeated = std::min(offset + size, kWrap);
        for (std::size_t r = 0; r < Rows; ++r) {
            for (Index c = offset; c < repeated; ++c) {
                for (Index k = c + channels_; k < channels_ + kWrap; k += channels_) {
                    *row(r, k) = *row(r, c);
                }
            }
        }
    }

private:
    Index channels_;
    std::size_t stride_;
    std::unique_ptr<C[]> values_;
};

}  // namespace bnext::cpu
