// Helpers that several phases share: walking the runs of a planar region, the rows and columns of
// an interleaved one, and writing a run of consecutive values with the stores that the plan chose.

// Calls f(o, i) for every row of the tile, in index order.
template <class F>
BNEXT_FORCE_INLINE void for_each_row(const Tile& tile, F&& f) {
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        for (Index i = tile.inner_begin; i < tile.inner_end; ++i) f(o, i);
    }
}

// Calls f(o, c, i, n) for every run of n consecutive values of a planar region, tiles from the last
// to the first. Channels are innermost, since neighbouring planes are neighbours in memory.
template <class F>
BNEXT_FORCE_INLINE void for_each_run_backwards(const Region& region, F&& f) {
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = region.tiling->tile(t);
        for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
            for (Index c = region.channels.begin; c < region.channels.end; ++c) {
                f(o, c, tile.inner_begin, tile.inner_end - tile.inner_begin);
            }
        }
    }
}

// The run that the caller will read first when this one, among the last, is written: outer runs are
// read upwards and written downwards. Without anything ahead, the run itself, which costs nothing.
template <class T>
BNEXT_FORCE_INLINE const T* run_ahead(const View<const T>& view, const Region& region,
                                      const Access& access, Index o, Index c, Index i) {
    const Index outer = access.ahead == 0 ? o : region.tiling->outer() - 1 - o;
    return at(view, outer, c + access.ahead, 0) + i;
}

// Where a channel's values go on after run o of the tile; the run itself, if they do not.
template <class T>
BNEXT_FORCE_INLINE const T* next_run(const View<const T>& view, const Tiling& tiling,
                                     const Tile& tile, Index o, Index c) {
    if (tile.inner_end < tiling.inner()) return at(view, o, c, 0) + tile.inner_end;
    return at(view, o + 1 < tiling.outer() ? o + 1 : o, c, 0);
}

// A pack's worth of p, into the second-level cache.
template <class T>
BNEXT_FORCE_INLINE void prefetch(const T* p) {
    constexpr int kBytes = kLanes * static_cast<int>(sizeof(T));
    unrolled<kBytes / 64>(
        [&](auto line) { __builtin_prefetch(reinterpret_cast<const char*>(p) + 64 * line, 0, 2); });
}

// Rows of a tile are one pitch apart along inner, or along outer where there is no inner axis.
BNEXT_FORCE_INLINE bool is_outer_only(const Tile& tile) {
    return tile.inner_begin == 0 && tile.inner_end == 1;
}

template <class T>
BNEXT_FORCE_INLINE Index row_pitch(const View<T>& view, const Tile& tile) {
    return is_outer_only(tile) ? view.stride.outer : view.stride.inner;
}

// Calls f(o, i, rows) for blocks of at most 16 consecutive rows. A block is summed by itself and
// then added to the sums so far: its rows are read side by side, each in the order of memory, the
// sums (in a cache) are visited once per block, and rounding errors grow with the root of 16 and of
// the number of blocks rather than of all rows.
template <class F>
BNEXT_FORCE_INLINE void for_each_row_block(const Tile& tile, F&& f) {
    constexpr Index kRows = 16;
    const bool outer_only = is_outer_only(tile);
    const Index begin = outer_only ? tile.outer_begin : tile.inner_begin;
    const Index end = outer_only ? tile.outer_end : tile.inner_end;
    const Index outer_end = outer_only ? tile.outer_begin + 1 : tile.outer_end;
    for (Index o = tile.outer_begin; o < outer_end; ++o) {
        for (Index r = begin; r < end; r += kRows) {
            const Index rows = r + kRows < end ? kRows : end - r;
            outer_only ? f(r, 0, rows) : f(o, r, rows);
        }
    }
}

// Calls f(packs, c, columns) for groups of columns from c on: kColumnPacks packs while there are
// so many, then single ones, then one of which only the first `columns` exist (else 0).
template <class F>
BNEXT_FORCE_INLINE void for_each_column_group(Index width, F&& f) {
    Index c = 0;
    for (; c + kColumnPacks * kLanes <= width; c += kColumnPacks * kLanes) {
        f(Number<kColumnPacks>{}, c, 0);
    }
    for (; c + kLanes <= width; c += kLanes) f(Number<1>{}, c, 0);
    if (c < width) f(Number<1>{}, c, static_cast<int>(width - c));
}

BNEXT_FORCE_INLINE Wide load_columns(const double* p, int columns) {
    return columns == 0 ? load(p) : load_first(p, columns, 0.0);
}
BNEXT_FORCE_INLINE void add_columns(double* p, int columns, const Wide& more) {
    const Wide sum = load_columns(p, columns) + more;
    columns == 0 ? store(p, sum) : store_first(p, columns, sum);
}

// Values before p reaches a 64-byte boundary (p is a multiple of sizeof(T)), at most n.
template <class T>
BNEXT_FORCE_INLINE int values_to_boundary(const T* p, Index n) {
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(p) % 64);
    const Index head = (past == 0 ? 0 : 64 - past) / static_cast<Index>(sizeof(T));
    return static_cast<int>(head < n ? head : n);
}

// Writes out[j] = f(j) for j in [0, n), where `whole(j)` computes the 16 values from j on, and
// `part(j, k)` a pack of which the first k lanes count. Streaming stores need whole, aligned lines:
// what precedes the first and follows the last goes through the cache.
template <class T, class Whole, class Part>
BNEXT_FORCE_INLINE void write_run(T* out, Index n, Stores stores, Whole&& whole, Part&& part) {
    Index j = 0;
    if (stores == Stores::streaming) {
        if (const int head = values_to_boundary(out, n); head > 0) {
            store_first(out, head, part(j, head));
            j = head;
        }
        for (; j + kLanes <= n; j += kLanes) stream(out + j, whole(j));
    } else {
        for (; j + kLanes <= n; j += kLanes) store(out + j, whole(j));
    }
    if (j < n) {
        const int rest = static_cast<int>(n - j);
        store_first(out + j, rest, part(j, rest));
    }
}
