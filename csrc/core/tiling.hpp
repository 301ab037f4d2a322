// Tiling: how a Problem is cut into pieces.
//
// A function of the Problem alone: neither the data, the number of threads nor the machine may
// enter here, since it fixes the order of all sums, and so every bit of the result.
//
// A tile is the unit that is summed about one pilot value: 4096 values of a planar channel, 256 to
// 4096 of one that is walked by rows. A chunk is a run of tiles (of rows: one) whose partial result
// has a slot of its own, merged in index order.
#pragma once

#include "core/inline.hpp"
#include "core/problem.hpp"

namespace bnext {

constexpr Index kLanes = 16;  // of a pack, whatever the registers
// Planes of at most so many values, less than a pack, are columns of rows. By themselves they leave
// lanes empty: 5 to 14 times as long with 2 values, twice with 12 (float32, AVX-512, 16 to 256
// examples). With 16 there is little to win, and with few examples something to lose.
constexpr Index kMostColumns = kLanes - 1;

// Values [outer_begin, outer_end) x [inner_begin, inner_end) of every channel: either several whole
// inner runs, or a piece of one.
struct Tile {
    Index outer_begin;
    Index outer_end;
    Index inner_begin;
    Index inner_end;

    [[nodiscard]] BNEXT_FORCE_INLINE Index values() const {
        return (outer_end - outer_begin) * (inner_end - inner_begin);
    }
};

struct TileRange {
    Index begin;
    Index end;
};

struct ChannelRange {
    Index begin;
    Index end;

    [[nodiscard]] BNEXT_FORCE_INLINE Index size() const { return end - begin; }
};

class Tiling {
public:
    explicit Tiling(const Problem& problem);

    [[nodiscard]] BNEXT_FORCE_INLINE Index outer() const { return outer_; }
    [[nodiscard]] BNEXT_FORCE_INLINE Index inner() const { return inner_; }
    // Whose kernels walk the problem. Those of interleaved ones, which go by rows, also walk small
    // planes that adjoin: all of an example are a row, of which a channel has as many columns as a
    // plane has values. Else a channel has one.
    [[nodiscard]] Layout walk() const { return walk_; }
    [[nodiscard]] BNEXT_FORCE_INLINE Index columns() const { return columns_; }
    [[nodiscard]] Index tiles() const { return tiles_; }
    [[nodiscard]] Index chunks() const { return chunks_; }
    [[nodiscard]] TileRange all() const { return {0, tiles_}; }
    [[nodiscard]] TileRange chunk(Index k) const;
    // About as large, but whole inner runs: for what only writes, and keeps nothing per chunk.
    [[nodiscard]] Index plane_chunks() const;
    [[nodiscard]] TileRange plane_chunk(Index k) const;
    // The same walk in at least `tiles` tiles, if there are as many inner runs, and a tile to a
    // chunk: for what only writes. Sums are of the tiles that the problem has by itself.
    [[nodiscard]] Tiling finer(Index tiles) const;
    [[nodiscard]] Index values(const TileRange& range) const;

    [[nodiscard]] BNEXT_FORCE_INLINE Tile tile(Index t) const {
        if (pieces_ == 1) {
            const Index begin = t * runs_per_tile_;
            const Index end = begin + runs_per_tile_;
            return {begin, end < outer_ ? end : outer_, 0, inner_};
        }
        const Index run = t / pieces_;
        const Index begin = (t % pieces_) * piece_;
        const Index end = begin + piece_;
        return {run, run + 1, begin, end < inner_ ? end : inner_};
    }

private:
    [[nodiscard]] Index tiles_per_plane_chunk() const;

    Index outer_;
    Index inner_;
    Layout walk_;
    Index columns_ = 1;
    Index runs_per_tile_ = 1;  // whole inner runs in a tile, where they are short
    Index pieces_ = 1;         // tiles in an inner run, where it is long
    Index piece_ = 0;          // values in such a tile
    Index tiles_ = 0;
    Index tiles_per_chunk_ = 1;
    Index chunks_ = 0;
};

}  // namespace bnext
