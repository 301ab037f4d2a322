// How the rows of layer and RMS normalization are cut. A function of the shape alone: it fixes the
// order of all sums, and so every bit of the result.
//
//   tile    so many values of a row are summed about one pilot value
//   piece   tiles of a row whose sums have a slot; merged in the order of columns
//   chunk   rows whose sums for each column have a slot; merged in the order of rows
#pragma once

#include <algorithm>

#include "core/division.hpp"

namespace bnext {

constexpr Index kRowTileValues = 4096;
constexpr Index kRowPieceTiles = 16;

struct RowTiling {
    Index rows;
    Index width;

    static constexpr Index kPieceValues = kRowTileValues * kRowPieceTiles;
    // Enough chunks for the threads of a large machine, and rows enough in each that slots, of
    // float64, are little beside the data.
    static constexpr Index kMostChunks = 64;
    static constexpr Index kLeastRows = 16;

    [[nodiscard]] Index pieces() const {
        return std::max<Index>(divide_up(width, kPieceValues), 1);
    }
    [[nodiscard]] Index piece_begin(Index k) const { return std::min(k * kPieceValues, width); }
    [[nodiscard]] Index chunk_rows() const {
        return std::max(kLeastRows, divide_up(rows, kMostChunks));
    }
    [[nodiscard]] Index chunks() const { return divide_up(rows, chunk_rows()); }
    // Rows that a backward kernel gets at once, the first of a chunk, and of each block behind it.
    // Both phases of a block find it in the second-level cache.
    [[nodiscard]] Index block_rows() const {
        constexpr Index kValues = 32768, kMost = 8;
        return std::clamp<Index>(kValues / std::max<Index>(width, 1), 1, kMost);
    }
};

}  // namespace bnext
