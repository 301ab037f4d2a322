// Arrays of coefficients for the second phase, one value for each column (Tiling; most channels
// have one): Rows arrays in the data's compute type. On the stack for a block of channels (Capacity
// > 0), on the heap for all of them (Capacity 0).
//
// They are made channel by channel, at the end of these channels' room (made_at), and `complete`
// spreads them. Rows of all channels, on the heap or of one block (Plan::wrapped), go on behind the
// last channel as they began, for kWrap values: for kernels that write the line which one row of
// channels ends in and the next begins in. Rows begin where a line of the cache does, for the
// reason that pool_array.hpp gives.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "core/dtype.hpp"
#include "cpu/columns.hpp"
#include "cpu/pool_array.hpp"
#include "cpu/schedule.hpp"

namespace bnext::cpu {

template <class C, std::size_t Rows, Index Capacity>
class CoefficientRows {
    static constexpr bool kAll = Capacity == 0;

public:
    static constexpr std::size_t kRows = Rows;

    // On the stack of at most Capacity columns; `columns` are those that wrap, or 0.
    explicit CoefficientRows(Index columns)
        : columns_(columns),
          stride_((static_cast<std::size_t>(kAll ? columns + kWrap : Capacity) + kLineful - 1) /
                  kLineful * kLineful) {
        if constexpr (kAll) values_ = PoolArray<C>(Rows * stride_);
    }
    C* row(std::size_t r, Index offset) { return values_.data() + r * stride_ + offset; }
    [[nodiscard]] const C* row(std::size_t r, Index offset) const {
        return values_.data() + r * stride_ + offset;
    }
    void complete(Index offset, Index channels, Index columns) {
        const Index end = offset + channels * columns;
        const Index repeated = kAll || columns_ > 0 ? std::min(end, kWrap) : 0;
        const bool at_once = offset == 0 && end == columns_ && columns_ >= kPiece;
        for (std::size_t r = 0; r < Rows; ++r) {
            C* const room = row(r, offset);
            if (columns > 1) spread(room + made_at(channels, columns), room, channels, columns);
            if (at_once) {
                for (Index k = 0; k < kWrap; k += kPiece) {
                    std::memcpy(room + end + k, room + k, kPiece * sizeof(C));
                }
                continue;
            }
            for (Index c = offset; c < repeated; ++c) {
                for (Index k = c + columns_; k < columns_ + kWrap; k += columns_) {
                    *row(r, k) = *row(r, c);
                }
            }
        }
    }

private:
    static constexpr std::size_t kLineful = kLine / sizeof(C);
    static constexpr Index kPiece = 16;  // of what is repeated: no call of a function
    static_assert(static_cast<std::size_t>(Capacity) % kLineful == 0);
    struct alignas(kLine) OnStack {
        std::array<C, Rows* static_cast<std::size_t>(Capacity)> values;
        C* data() { return values.data(); }
        [[nodiscard]] const C* data() const { return values.data(); }
    };
    using Values = std::conditional_t<kAll, PoolArray<C>, OnStack>;

    Index columns_;
    std::size_t stride_;
    Values values_;
};

}  // namespace bnext::cpu
