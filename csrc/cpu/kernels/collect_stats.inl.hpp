// collect_stats: per channel, the mean and m2 = sum of (x - mean)^2 of a region's values.
//
// Within a tile of n values, with any pilot p and d = x - p in double,
//     mean = p + (sum d) / n,    m2 = sum d^2 - (sum d)^2 / n
// and tiles are merged as core/moments.hpp says, their means relative to the channel's origin
// (view.hpp). The pilot is the tile's first value. That is
// enough even where this value is an outlier: it is one of the n, so n (p - mean)^2 <= n m2, and
// the subtraction loses a factor of n <= 4096 at most, out of the 2^53 that double has. A constant
// channel has d = 0, and so m2 = 0 exactly. For float64 data the loss would show, so there the tile
// is looked at a second time, while a cache still has it, with its mean as pilot.
//
// Traffic: x once.
// Order:   16 lanes, one lane tree per tile (planar), or blocks of 16 rows (interleaved); tiles in
//          turn.
// Error:   m2 within 4096 * 2^-53 = 5e-13 relative at worst for float32 data, a few 2^-53 for
//          float64; whatever mean/std is.

// --- planar -------------------------------------------------------------------------------------

struct TileSums {
    double d = 0;
    double d2 = 0;
};

template <bool kSquares, class T>
BNEXT_FORCE_INLINE TileSums planar_tile_sums(const View<const T>& x, const Tile& tile, Index c,
                                             T pilot) {
    const Wide shift = broadcast(static_cast<double>(pilot));
    Wide d_sum = broadcast(0.0);
    Wide d2_sum = broadcast(0.0);
    const Index n = tile.inner_end - tile.inner_begin;
    const auto add = [&](const Wide& value) {
        const Wide d = value - shift;
        d_sum = d_sum + d;
        if constexpr (kSquares) d2_sum = fma(d, d, d2_sum);
    };
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        const T* run = at(x, o, c, 0) + tile.inner_begin;
        Index j = 0;
        for (; j + kLanes <= n; j += kLanes) add(load_wide(run + j));
        if (j < n) add(load_wide_first(run + j, static_cast<int>(n - j), pilot));
    }
    return {sum_lanes(d_sum), kSquares ? sum_lanes(d2_sum) : 0.0};
}

template <class T>
void planar_collect_stats(const View<const T>& x, const Region& region, double* mean, double* m2) {
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const double origin = origin_of(x, *region.tiling, c);
        Moments sum;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = region.tiling->tile(t);
            const auto n = static_cast<double>(tile.values());
            T pilot = *(at(x, tile.outer_begin, c, 0) + tile.inner_begin);
            if constexpr (sizeof(T) == 8) {
                pilot += planar_tile_sums<false>(x, tile, c, pilot).d / n;
            }
            const TileSums s = planar_tile_sums<true>(x, tile, c, pilot);
            const double share = s.d / n;
            const double tile_m2 = s.d2 - s.d * share;
            const double tile_mean = (static_cast<double>(pilot) - origin) + share;
            merge(sum, {n, tile_mean, tile_m2 < 0.0 ? 0.0 : tile_m2});
        }
        mean[c - region.channels.begin] = sum.mean;
        m2[c - region.channels.begin] = sum.m2;
    }
}

// --- interleaved --------------------------------------------------------------------------------

// Columns that are summed together: their pilots lie on the stack. For float64, 256 rows of a strip
// are 256 KiB, which the second look finds in the second-level cache.
template <class T>
inline constexpr Index kStrip = sizeof(T) == 4 ? 1024 : 128;

// Adds a block of rows of `G` packs of columns to their sums of d (and d^2), which are in memory.
// `columns` of a last pack exist (0: all).
template <int G, bool kSquares, class T>
BNEXT_FORCE_INLINE void add_rows(const T* x, Index pitch, Index rows, int columns,
                                 const double* pilots, double* d_sums, double* d2_sums) {
    Wide pilot[G], d_sum[G], d2_sum[G];
    unrolled<G>([&](auto g) {
        pilot[g] = load_columns(pilots + g * kLanes, columns);
        d_sum[g] = d2_sum[g] = broadcast(0.0);
    });
    for (Index r = 0; r < rows; ++r) {
        unrolled<G>([&](auto g) {
            const T* p = x + r * pitch + g * kLanes;
            const Wide value = columns == 0 ? load_wide(p) : load_wide_first(p, columns, T{0});
            const Wide d = value - pilot[g];
            d_sum[g] = d_sum[g] + d;
            if constexpr (kSquares) d2_sum[g] = fma(d, d, d2_sum[g]);
        });
    }
    unrolled<G>([&](auto g) {
        add_columns(d_sums + g * kLanes, columns, d_sum[g]);
        if constexpr (kSquares) add_columns(d2_sums + g * kLanes, columns, d2_sum[g]);
    });
}

// Sums of d and d^2 of columns [first, first + width) of a tile.
template <bool kSquares, class T>
BNEXT_FORCE_INLINE void strip_sums(const View<const T>& x, const Tile& tile, Index first,
                                   Index width, const double* pilot, double* d_sums,
                                   double* d2_sums) {
    for (Index c = 0; c < width; ++c) d_sums[c] = 0.0;
    if constexpr (kSquares) {
        for (Index c = 0; c < width; ++c) d2_sums[c] = 0.0;
    }
    for_each_row_block(tile, [&](Index o, Index i, Index rows) {
        const T* row = at(x, o, 0, i) + first;
        for_each_column_group(width, [&](auto packs, Index c, int columns) {
            add_rows<packs, kSquares>(row + c, row_pitch(x, tile), rows, columns, pilot + c,
                                      d_sums + c, d2_sums + c);
        });
    });
}

// An interleaved chunk is one tile (Tiling sees to that), so there is nothing to merge here. mean
// and m2 hold the sums of d and d^2 until the last row is in.
template <class T>
void interleaved_collect_stats(const View<const T>& x, const Region& region, double* mean,
                               double* m2) {
    const Tile tile = region.tiling->tile(region.tiles.begin);
    const auto n = static_cast<double>(tile.values());
    for (Index begin = region.channels.begin; begin < region.channels.end; begin += kStrip<T>) {
        const Index left = region.channels.end - begin;
        const Index width = left < kStrip<T> ? left : kStrip<T>;
        const T* first_row = at(x, tile.outer_begin, 0, tile.inner_begin) + begin;
        double pilot[kStrip<T>];
        for (Index c = 0; c < width; ++c) pilot[c] = static_cast<double>(first_row[c]);
        if constexpr (sizeof(T) == 8) {
            strip_sums<false>(x, tile, begin, width, pilot, mean, m2);
            for (Index c = 0; c < width; ++c) pilot[c] += mean[c] / n;
        }
        strip_sums<true>(x, tile, begin, width, pilot, mean, m2);
        for (Index c = 0; c < width; ++c) {
            const double share = mean[c] / n;
            const double tile_m2 = m2[c] - mean[c] * share;
            mean[c] = (pilot[c] - origin_of(x, *region.tiling, begin + c)) + share;
            m2[c] = tile_m2 < 0.0 ? 0.0 : tile_m2;
        }
        mean += width;
        m2 += width;
    }
}
