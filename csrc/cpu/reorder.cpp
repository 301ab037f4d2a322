#include "cpu/reorder.hpp"

#include <algorithm>
#include <cstdint>

#include "core/division.hpp"
#include "core/inline.hpp"
#include "cpu/parallel.hpp"

namespace bnext::cpu {
namespace {

constexpr Index kTile = 16;                   // a line of float32
constexpr Index kWorthTeam = Index{1} << 18;  // bytes
constexpr Index kStrip = 4 * kTile;           // rows of the result that one task writes

// Writes rows [begin, end) of the result, tile by tile, so that lines of both sides are used while
// the first-level cache has them. The fixed size of a tile lets the compiler unroll its loops.
template <class U>
void transpose_strip(const U* from, U* to, Index rows, Index columns, Index begin, Index end) {
    for (Index r = 0; r < rows; r += kTile) {
        for (Index c = begin; c < end; c += kTile) {
            const Index height = std::min(kTile, rows - r), width = std::min(kTile, end - c);
            const U* source = from + r * columns + c;
            U* target = to + c * rows + r;
            const auto tile = [&](Index of_rows, Index of_columns) BNEXT_INLINE_LAMBDA {
                for (Index j = 0; j < of_columns; ++j) {
                    for (Index i = 0; i < of_rows; ++i) {
                        target[j * rows + i] = source[i * columns + j];
                    }
                }
            };
            const bool whole = height == kTile && width == kTile;
            whole ? tile(kTile, kTile) : tile(height, width);
        }
    }
}

template <class U>
void transpose_all(const U* from, U* to, Index count, Index rows, Index columns) {
    const Index size = rows * columns;
    const Index bytes = count * size * static_cast<Index>(sizeof(U));
    const Index strips = divide_up(columns, kStrip);
    const int threads = bytes < kWorthTeam ? 1 : free_threads(num_threads(), bytes);
    parallel(threads, bytes, [&](const Team& team) {
        const Index last = team.share_end(count * strips);
        for (Index task = team.share_begin(count * strips); task < last; ++task) {
            const Index offset = task / strips * size;
            const Index begin = task % strips * kStrip;
            transpose_strip(from + offset, to + offset, rows, columns, begin,
                            std::min(begin + kStrip, columns));
        }
    });
}

}  // namespace

void transpose(const void* from, void* to, Index item, Index count, Index rows, Index columns) {
    const auto run = [&](auto type) {
        using U = decltype(type);
        transpose_all(static_cast<const U*>(from), static_cast<U*>(to), count, rows, columns);
    };
    if (item == 2) return run(std::uint16_t{});
    if (item == 4) return run(std::uint32_t{});
    run(std::uint64_t{});
}

}  // namespace bnext::cpu
