// collect_stats: per channel, the mean and m2 = sum of (x - mean)^2 of a region's values.
//
// Within a tile of n values, with any pilot p and d = x - p in double,
//     mean = p + (sum d) / n,    m2 = sum d^2 - (sum d)^2 / n
// and tiles are merged as core/moments.hpp says. The pilot is the tile's first value. That is
// enough even where the value is an outlier: it is one of the n, so n (p - mean)^2 <= n m2, and the
// subtraction loses a factor of n = 4096 at most, out of the 2^53 that double has. For float64 data
// that would show, so there the pilot is replaced by the tile's mean (a second look at values that
// are still in the first-level cache). A constant channel has d = 0 and so m2 = 0 exactly.
//
// Traffic: x once.
// Order:   16 lanes, one lane tree per tile (planar) or rows in turn (interleaved); tiles in turn.
// Error:   m2 within about n * 2^-53 relative for float32, 2^-50 for float64, whatever mean/std.

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
        if (j < n) add(widen(load_first(run + j, static_cast<int>(n - j), pilot)));
    }
    return {sum_lanes(d_sum), kSquares ? sum_lanes(d2_sum) : 0.0};
}

template <class T>
void planar_collect_stats(const View<const T>& x, const Region& region, double* mean, double* m2) {
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
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
            merge(sum, {n, static_cast<double>(pilot) + share, tile_m2 < 0.0 ? 0.0 : tile_m2});
        }
        mean[c - region.channels.begin] = sum.mean;
        m2[c - region.channels.begin] = sum.m2;
    }
}

// --- interleaved --------------------------------------------------------------------------------

// Sums over the rows of a tile of `G` packs of columns at x.data; `columns` (0 for all) of the last
// pack exist.
template <int G, class T>
struct ColumnTile {
    const View<const T>& x;  // at the first of the columns
    const Tile& tile;
    int columns;

    BNEXT_FORCE_INLINE Wide row(Index o, Index i, int g) const {
        const T* p = at(x, o, 0, i) + g * kLanes;
        return columns == 0 ? load_wide(p) : widen(load_first(p, columns, T{0}));
    }

    template <bool kSquares>
    BNEXT_FORCE_INLINE void sums(const Wide (&pilot)[G], Wide (&d_sum)[G], Wide (&d2_sum)[G]) const {
        unrolled<G>([&](auto g) { d_sum[g] = d2_sum[g] = broadcast(0.0); });
        for_each_row(tile, [&](Index o, Index i) {
            unrolled<G>([&](auto g) {
                const Wide d = row(o, i, g) - pilot[g];
                d_sum[g] = d_sum[g] + d;
                if constexpr (kSquares) d2_sum[g] = fma(d, d, d2_sum[g]);
            });
        });
    }
};

template <int G, class T>
BNEXT_FORCE_INLINE void interleaved_collect_columns(const View<const T>& x, const Tile& tile,
                                                    int columns, double done, double* mean,
                                                    double* m2) {
    const ColumnTile<G, T> tile_columns{x, tile, columns};
    const auto n = static_cast<double>(tile.values());
    const Wide rows = broadcast(n);
    Wide pilot[G], d_sum[G], d2_sum[G];
    unrolled<G>([&](auto g) {
        pilot[g] = tile_columns.row(tile.outer_begin, tile.inner_begin, g);
    });
    if constexpr (sizeof(T) == 8) {
        tile_columns.template sums<false>(pilot, d_sum, d2_sum);
        unrolled<G>([&](auto g) { pilot[g] = pilot[g] + d_sum[g] / rows; });
    }
    tile_columns.template sums<true>(pilot, d_sum, d2_sum);

    // Chan's merge, as in core/moments.hpp, on 16 channels at a time.
    const double share = n / (done + n);
    unrolled<G>([&](auto g) {
        const Wide shift = d_sum[g] / rows;
        Wide new_mean = pilot[g] + shift;
        Wide new_m2 = not_negative(d2_sum[g] - d_sum[g] * shift);
        double* mean_g = mean + g * kLanes;
        double* m2_g = m2 + g * kLanes;
        if (done > 0) {
            const Wide old_mean = columns == 0 ? load(mean_g) : load_first(mean_g, columns, 0.0);
            const Wide old_m2 = columns == 0 ? load(m2_g) : load_first(m2_g, columns, 0.0);
            const Wide delta = new_mean - old_mean;
            new_mean = old_mean + delta * broadcast(share);
            new_m2 = old_m2 + (new_m2 + delta * delta * broadcast(done * share));
        }
        if (columns == 0) {
            store(mean_g, new_mean);
            store(m2_g, new_m2);
        } else {
            store_first(mean_g, columns, new_mean);
            store_first(m2_g, columns, new_m2);
        }
    });
}

template <class T>
void interleaved_collect_stats(const View<const T>& x, const Region& region, double* mean,
                               double* m2) {
    double done = 0;  // rows merged so far
    for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
        const Tile tile = region.tiling->tile(t);
        const Index width = region.channels.size();
        Index c = 0;
        const auto columns = [&](auto packs, int partial) {
            const View<const T> at_columns{x.data + region.channels.begin + c, x.stride};
            interleaved_collect_columns<packs>(at_columns, tile, partial, done, mean + c, m2 + c);
            c += packs * kLanes;
        };
        while (c + kColumnPacks * kLanes <= width) columns(Number<kColumnPacks>{}, 0);
        while (c + kLanes <= width) columns(Number<1>{}, 0);
        if (c < width) columns(Number<1>{}, static_cast<int>(width - c));
        done += static_cast<double>(tile.values());
    }
}
