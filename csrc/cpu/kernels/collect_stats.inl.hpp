// collect_stats: per channel, the mean and m2 = sum of (x - mean)^2 of a region's values.
//
// Within a tile of n values, with a pilot p and d = x - p,
//     mean = p + (sum d) / n,    m2 = sum d^2 - (sum d)^2 / n
// and tiles are merged as core/moments.hpp says, their means relative to the channel's origin
// (view.hpp). The subtraction cancels where p is far from the tile's mean.
//   - float32 data, summed in double: p is one of the tile's values, the first or a usual one. That
//     is enough even where it is an outlier: it is one of the n, so n (p - mean)^2 <= n m2, and the
//     subtraction loses a factor of n <= 4096 at most, out of the 2^53 that double has.
//   - others, for which sums have no bits to spare: p is near the mean of the tile's first values,
//     or a usual one of them (small planes, columns.inl.hpp). Where that turns out to be more than
//     three standard deviations off (an outlier among them, a trend), the tile is looked at again,
//     while a cache still has it, with its mean as pilot. float64 data always are.
// A constant channel has d = 0, and so m2 = 0 exactly.
//
// Traffic: x once.
// Order:   16 lanes over groups of some 16 values per lane, then groups, one lane tree per tile
//          (planar); or a lane for each column, over blocks of 16 rows, then the columns of a
//          channel (interleaved, and small planes); tiles in turn.
// Error:   float32: m2 within 4096 * 2^-53 = 5e-13 relative at worst; float64: a few 2^-53; both
//          whatever mean/std is. 16-bit data in float32 within a group, in double from there on:
//          the mean within 2^-22 standard deviations, m2 within 2^-18 relative, where |x - mean|
//          lies between 1e-18 and 1e18; beyond, bfloat16 channels are done again (cpu/range.hpp).

template <class T>
inline constexpr bool kAnyPilotWillDo = sizeof(T) == 4;
template <class T>
inline constexpr bool kLooksTwice = sizeof(T) == 8;  // whatever the pilot

// Whether a pilot lies farther from the mean than three standard deviations: with s = (sum d)^2 /
// n, which is n (p - mean)^2, and m2 = sum d^2 - s, whether s > 9 m2. The mean of eight values of
// ordinary data is so far off never; one in two hundred would be by a single deviation, and then a
// strip of columns was nearly always looked at twice.
BNEXT_FORCE_INLINE bool is_far(double sum_d, double sum_d2, double share_of_one) {
    return 10.0 * (sum_d * (sum_d * share_of_one)) > 9.0 * sum_d2;
}

// --- planar -------------------------------------------------------------------------------------

inline constexpr Index kPilotValues = 64, kPilotRows = 8;

// Of the compute type's values, so that it can stand in for values that are not there.
template <class T>
BNEXT_FORCE_INLINE Sum<T> pilot_near(double mean) {
    return static_cast<Sum<T>>(static_cast<Compute<T>>(mean));
}

// Near the mean of the tile's first values, found by their deviations from the very first.
template <class T>
BNEXT_FORCE_INLINE Sum<T> planar_pilot(const View<const T>& x, const Tile& tile, Index c) {
    using C = Sum<T>;
    const T* run = at(x, tile.outer_begin, c, 0) + tile.inner_begin;
    const Index most = tile.inner_end - tile.inner_begin;
    const Index n = most < kPilotValues ? most : kPilotValues;
    const C first = static_cast<C>(*run);
    if constexpr (kAnyPilotWillDo<T>) return first;
    Pack<C> sum = broadcast(C{0});
    for_each_pack(n, [&](Index j, int some) BNEXT_INLINE_LAMBDA {
        sum = sum + (load_sum(run + j, some, first) - broadcast(first));
    });
    const double mean = static_cast<double>(first) + sum_lanes(widen(sum)) / static_cast<double>(n);
    return pilot_near<T>(mean);
}

struct TileSums {
    double d;
    double d2;
};

template <class T>
BNEXT_FORCE_INLINE TileSums planar_tile_sums(const View<const T>* in, const Tiling& tiling,
                                             const Tile& tile, Index c, Sum<T> pilot) {
    RunSums<T, 1, Deviation> sums(pilot);
    Index pending = 0;
    add_tile<1>(in, tiling, tile, c, sums, pending);
    sums.end_of_group();
    return {sums.first(), sums.second()};
}

template <class T>
double planar_collect_stats(const View<const T>* in, const Region& region, const double*,
                            const CoefficientsIn<Compute<T>>*, double* mean, double* m2) {
    const View<const T>& x = in[0];
    const Tiling& tiling = *region.tiling;
    double values = 0;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const double origin = origin_of(x, tiling, c);
        Moments sum;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = tiling.tile(t);
            const auto n = static_cast<double>(tile.values());
            Sum<T> pilot = planar_pilot(x, tile, c);
            TileSums s = planar_tile_sums(in, tiling, tile, c, pilot);
            if (kLooksTwice<T> || (!kAnyPilotWillDo<T> && is_far(s.d, s.d2, 1.0 / n))) {
                pilot = pilot_near<T>(static_cast<double>(pilot) + s.d / n);
                s = planar_tile_sums(in, tiling, tile, c, pilot);
            }
            const double share = s.d / n;
            const double tile_m2 = s.d2 - s.d * share;
            const double tile_mean = (static_cast<double>(pilot) - origin) + share;
            merge(sum, {n, tile_mean, tile_m2 < 0.0 ? 0.0 : tile_m2});
        }
        mean[c - region.channels.begin] = sum.mean;
        m2[c - region.channels.begin] = sum.m2;
        values = sum.count;
    }
    return values;
}

// --- interleaved, and small planes ---------------------------------------------------------------

// Columns summed together: 10 KiB on the stack, and in the first-level cache beside the rows.
template <class T>
using PilotStrip = Strip<Sum<T>, 512>;

// The means of the tile's first rows, by their deviations from the very first.
template <class T>
BNEXT_FORCE_INLINE void set_pilots(const View<const T>& x, const Tile& tile, Index first,
                                   Index width, PilotStrip<T>& sums) {
    using C = Sum<T>;
    const T* row = at(x, tile.outer_begin, 0, tile.inner_begin) + first;
    const Index most =
        is_outer_only(tile) ? tile.outer_end - tile.outer_begin : tile.inner_end - tile.inner_begin;
    const Index rows = kAnyPilotWillDo<T> ? 1 : (most < kPilotRows ? most : kPilotRows);
    const Pack<C> share = broadcast(C{1} / static_cast<C>(rows));
    const Index pitch = row_pitch(x, tile);
    for_each_pack(width, [&](Index c, int columns) BNEXT_INLINE_LAMBDA {
        const Pack<C> start = load_sum(row + c, columns, C{0});
        Pack<C> sum = broadcast(C{0});
        for (Index r = 1; r < rows; ++r) {
            sum = sum + (load_sum(row + r * pitch + c, columns, C{0}) - start);
        }
        store(sums.center + c, fma(sum, share, start));
    });
}

// Whether a pilot was far from the mean; those that were are moved there.
template <class T>
BNEXT_FORCE_INLINE bool improve_pilots(Index channels, double share_of_one,
                                       const PilotStrip<T>& sums, Sum<T>* pilots) {
    constexpr bool kAll = kLooksTwice<T>;
    bool any = kAll;  // looked at first by itself: a loop without branches
    for (Index c = 0; c < channels; ++c) any |= is_far(sums.first[c], sums.second[c], share_of_one);
    if (!any) return false;
    for (Index c = 0; c < channels; ++c) {
        if (kAll || is_far(sums.first[c], sums.second[c], share_of_one)) {
            const double mean = static_cast<double>(pilots[c]) + sums.first[c] * share_of_one;
            pilots[c] = static_cast<Sum<T>>(mean);
        }
    }
    return true;
}

// The origins (view.hpp) of a pack of channels, which lie side by side.
template <class T>
BNEXT_FORCE_INLINE Wide origins_side_by_side(const View<const T>& x, const Tiling& tiling,
                                             Index first, int columns) {
    const auto values = [&](Index o, Index i) BNEXT_INLINE_LAMBDA {
        return widen(load_columns(at(x, o, first, i), columns));
    };
    return median(values(0, 0), values(tiling.outer() / 2, tiling.inner() / 2),
                  values(tiling.outer() - 1, tiling.inner() - 1));
}

// A chunk that is walked by rows is one tile (Tiling sees to that), so there is nothing to merge
// here.
template <class T>
double interleaved_collect_stats(const View<const T>* in, const Region& region, const double*,
                                 const CoefficientsIn<Compute<T>>*, double* mean, double* m2) {
    const View<const T>& x = in[0];
    const Tiling& tiling = *region.tiling;
    const Tile tile = tiling.tile(region.tiles.begin);
    const Tile rows = rows_of_tile(tiling, region.tiles.begin);
    const Index columns = tiling.columns();
    const double n = region.values();
    const double share_of_one = 1.0 / n;
    PilotStrip<T> sums;
    Sum<T>* const pilots = sums.centers(columns);
    const Index strip = channels_of_strip(sums.kMost, columns);
    for (Index begin = region.channels.begin; begin < region.channels.end; begin += strip) {
        const Index left = region.channels.end - begin;
        const Index channels = left < strip ? left : strip;
        if (columns == 1) {
            set_pilots(x, rows, begin, channels, sums);
        } else {
            set_pilots_of_channels(x, tile, begin, channels, sums.shared);
        }
        for (bool again = false;; again = true) {  // a loop, so that it is compiled once
            sum_channels<1>(in, rows, begin, channels, columns, sums);
            if (kAnyPilotWillDo<T> || again) break;
            if (!improve_pilots<T>(channels, share_of_one, sums, pilots)) break;
        }
        const Wide one = broadcast(share_of_one);
        for_each_pack(channels, [&](Index c, int some) BNEXT_INLINE_LAMBDA {
            const Wide sum = load(sums.first + c);
            const Wide share = sum * one;
            const Wide pilot = widen(load(pilots + c));
            const Wide origin = columns == 1 ? origins_side_by_side(x, tiling, begin + c, some)
                                             : origins_apart(x, tiling, begin + c, channels - c);
            store_columns(mean + c, some, (pilot - origin) + share);
            store_columns(m2 + c, some, not_negative(load(sums.second + c) - sum * share));
        });
        mean += channels;
        m2 += channels;
    }
    return n;
}
