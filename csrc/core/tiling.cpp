#include "core/tiling.hpp"

#include <algorithm>

#include "core/division.hpp"

namespace bnext {
namespace {

// Planar: long enough that the two horizontal sums per tile vanish beside it, short enough that
// float64's second look at it (collect_stats) finds it in the first-level cache.
constexpr Index kPlanarTileValues = 4096;
// By rows: a tile is a chunk. At least so many rows, so that slots are few beside the data; for
// float32 at most so many values, since the pilot's bound on the error grows with them; for float64
// never more than the least, so that the second look finds them in the second-level cache.
constexpr Index kMinTileRows = 128;
constexpr Index kMostTileValues = 4096;
constexpr Index kUsualChunks = 64;

Index rows_of_tile(DType dtype, Index rows, Index columns) {
    if (dtype == DType::float64) return Index{2} * kMinTileRows;
    const Index most = std::max(kUsualChunks, divide_up(rows, kMostTileValues / columns));
    return divide_up(rows, std::clamp<Index>(divide_up(rows, kMinTileRows), 1, most));
}

bool has_columns(const Problem& problem) {
    return problem.layout == Layout::planar && problem.adjoining && problem.inner <= kMostColumns;
}

}  // namespace

Tiling::Tiling(const Problem& problem)
    : outer_(problem.outer), inner_(problem.inner), walk_(problem.layout) {
    if (problem.count() == 0) return;
    if (has_columns(problem)) {
        walk_ = Layout::interleaved;
        columns_ = inner_;
        runs_per_tile_ = rows_of_tile(problem.dtype, outer_, columns_);
        tiles_ = chunks_ = divide_up(outer_, runs_per_tile_);
        return;
    }
    const bool planar = problem.layout == Layout::planar;
    const Index target =
        planar ? kPlanarTileValues : rows_of_tile(problem.dtype, problem.count(), 1);
    if (inner_ > target) {
        piece_ = round_up(divide_up(inner_, divide_up(inner_, target)), kLanes);
        pieces_ = divide_up(inner_, piece_);
        tiles_ = outer_ * pieces_;
    } else {
        runs_per_tile_ = std::max<Index>(target / inner_, 1);
        tiles_ = divide_up(outer_, runs_per_tile_);
    }
    tiles_per_chunk_ = planar ? divide_up(tiles_, kUsualChunks) : 1;
    chunks_ = divide_up(tiles_, tiles_per_chunk_);
}

TileRange Tiling::chunk(Index k) const {
    return {k * tiles_per_chunk_, std::min((k + 1) * tiles_per_chunk_, tiles_)};
}

Index Tiling::tiles_per_plane_chunk() const { return round_up(tiles_per_chunk_, pieces_); }

Index Tiling::plane_chunks() const { return divide_up(tiles_, tiles_per_plane_chunk()); }

TileRange Tiling::plane_chunk(Index k) const {
    const Index step = tiles_per_plane_chunk();
    return {k * step, std::min((k + 1) * step, tiles_)};
}

Tiling Tiling::finer(Index tiles) const {
    if (pieces_ > 1 || tiles_ >= tiles) return *this;
    Tiling result = *this;
    result.runs_per_tile_ = std::max<Index>(outer_ / tiles, 1);
    result.tiles_ = result.chunks_ = divide_up(outer_, result.runs_per_tile_);
    result.tiles_per_chunk_ = 1;
    return result;
}

Index Tiling::values(const TileRange& range) const {
    Index sum = 0;
    for (Index t = range.begin; t < range.end; ++t) sum += tile(t).values();
    return sum;
}

}  // namespace bnext
