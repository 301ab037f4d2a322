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

// One line, into the second-level cache. Not __builtin_prefetch: GCC takes a function that does
// nothing else for one without effect, and drops the call.
BNEXT_FORCE_INLINE void prefetch_line(const void* p) {
#if defined(__x86_64__)
    asm volatile("prefetcht1 (%0)" : : "r"(p));
#elif defined(__aarch64__)
    asm volatile("prfm pldl2keep, [%0]" : : "r"(p));
#else
    __builtin_prefetch(p, 0, 2);
#endif
}

// The lines of N packs from p on.
template <int N, class T>
BNEXT_FORCE_INLINE void prefetch_packs(const T* p) {
    constexpr int kBytes = N * kLanes * static_cast<int>(sizeof(T));
    unrolled<(kBytes + 63) / 64>([&](auto line) BNEXT_INLINE_LAMBDA {
        prefetch_line(reinterpret_cast<const char*>(p) + 64 * line);
    });
}

// What a planar reduction will read once this run is over: the beginning of the channel's next run.
// Hardware prefetchers follow a run by themselves, but start anew at the next.
template <class T>
class Lookahead {
public:
    BNEXT_FORCE_INLINE Lookahead(const View<const T>& view, const Tiling& tiling, const Tile& tile,
                                 Index o, Index c)
        : next_(nullptr), from_(tile.inner_end - tile.inner_begin) {
        if (tile.inner_end < tiling.inner() || o + 1 >= tiling.outer()) return;
        next_ = at(view, o + 1, c, 0);
        from_ = from_ > kReach ? from_ - kReach : 0;
    }
    // Two packs' worth, when those at j of the run are read.
    BNEXT_FORCE_INLINE void prefetch_pair(Index j) const {
        if (j >= from_) prefetch_packs<2>(next_ + (j - from_));
    }

private:
    static constexpr Index kReach = 1024 / static_cast<Index>(sizeof(T));
    const T* next_;
    Index from_;
};

// Rows of a tile are one pitch apart along inner, or along outer where there is no inner axis.
BNEXT_FORCE_INLINE bool is_outer_only(const Tile& tile) {
    return tile.inner_begin == 0 && tile.inner_end == 1;
}

template <class T>
BNEXT_FORCE_INLINE Index row_pitch(const View<T>& view, const Tile& tile) {
    return is_outer_only(tile) ? view.stride.outer : view.stride.inner;
}

// Calls f(o, i, rows) for blocks of at most kRows consecutive rows, which are gone through by
// groups of columns: what belongs to the columns (sums, coefficients) stays in registers meanwhile.
// The rows that will come next are prefetched, since hardware prefetchers do not follow such a
// path; without that, and with 16 rows, this took up to twice as long (two cores, Zen 4, rows of 1
// to 16 KiB).
inline constexpr Index kRowBlock = 8;
inline constexpr Index kSummedRows = 16;  // in a reduction, whose sums are visited after each block

template <Index kRows, class F>
BNEXT_FORCE_INLINE void for_each_row_block(const Tile& tile, F&& f) {
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

// Packs of columns that are gone through together, with up to four packs of sums or coefficients
// for each.
inline constexpr int kGroupPacks = kNativeBytes == 64 ? 4 : 1;

// Calls f(Number<G>, c, columns) for groups of G packs of columns: kGroupPacks while there are so
// many, then single ones, then one of which only the first `columns` exist (else 0).
template <class F>
BNEXT_FORCE_INLINE void for_each_column_group(Index width, F&& f) {
    Index c = 0;
    for (; c + kGroupPacks * kLanes <= width; c += kGroupPacks * kLanes) {
        f(Number<kGroupPacks>{}, c, 0);
    }
    if constexpr (kGroupPacks > 1) {
        for (; c + kLanes <= width; c += kLanes) f(Number<1>{}, c, 0);
    }
    if (c < width) f(Number<1>{}, c, static_cast<int>(width - c));
}

// Calls f(c, columns) for every pack of columns; `columns` of a last one exist (else 0).
template <class F>
BNEXT_FORCE_INLINE void for_each_pack(Index width, F&& f) {
    Index c = 0;
    for (; c + kLanes <= width; c += kLanes) f(c, 0);
    if (c < width) f(c, static_cast<int>(width - c));
}

template <class T>
BNEXT_FORCE_INLINE Pack<Compute<T>> load_columns(const T* p, int columns) {
    return columns == 0 ? load(p) : load_first(p, columns, Compute<T>{0});
}
template <class T>
BNEXT_FORCE_INLINE void store_columns(T* p, int columns, const Pack<Compute<T>>& values) {
    columns == 0 ? store(p, values) : store_first(p, columns, values);
}

// Values before p reaches a 64-byte boundary (p is a multiple of sizeof(T)), at most n.
template <class T>
BNEXT_FORCE_INLINE int values_to_boundary(const T* p, Index n) {
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(p) % 64);
    const Index head = (past == 0 ? 0 : 64 - past) / static_cast<Index>(sizeof(T));
    return static_cast<int>(head < n ? head : n);
}

// Writes out[j] = f(j) for j in [0, n), where `whole(j)` computes the 16 values from j on, and
// `part(j, k)` a pack of which the first k lanes count; `ahead(j)` is called for every two packs.
// Streaming stores need whole, aligned lines: what precedes the first and follows the last goes
// through the cache.
template <class T, class Whole, class Part, class Ahead>
BNEXT_FORCE_INLINE void write_run(T* out, Index n, Stores stores, Whole&& whole, Part&& part,
                                  Ahead&& ahead) {
    Index j = 0;
    if (stores == Stores::streaming) {
        for (Index head = values_to_boundary(out, n); head > 0;) {  // up to 32 values of 16 bits
            const int m = static_cast<int>(head < kLanes ? head : kLanes);
            m == kLanes ? store(out + j, whole(j)) : store_first(out + j, m, part(j, m));
            j += m;
            head -= m;
        }
        for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
            ahead(j);
            stream_pair(out + j, whole(j), whole(j + kLanes));
        }
    } else {
        for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
            ahead(j);
            store(out + j, whole(j));
            store(out + j + kLanes, whole(j + kLanes));
        }
    }
    if (j + kLanes <= n) {
        store(out + j, whole(j));
        j += kLanes;
    }
    if (j < n) {
        const int rest = static_cast<int>(n - j);
        store_first(out + j, rest, part(j, rest));
    }
}

// Whether the rows of both arrays follow each other without a gap, all columns of the region.
template <class T>
BNEXT_FORCE_INLINE bool is_dense(const View<const T>& a, const View<T>& b, const Region& region) {
    const Index width = region.channels.size();
    return a.stride.outer == width && b.stride.outer == width;
}

// Rows of a tile, for writing: the columns [0, width) from column `first` on. For a group of G
// packs of columns, group(Number<G>, c, columns) loads what belongs to them and returns an object
// with
//     row(o, i), where the inputs of the group are in that row;
//     ahead(r), which prefetches them r rows later;
//     pack(r, g), the values of pack g in the r-th row from there.
//
// Through the cache: four rows at a time, pack by pack. Data that a cache has want neither
// prefetches nor far strides.
template <class T, class Group>
BNEXT_FORCE_INLINE void write_rows_cached(T* out, Index pitch, Index o, Index i, Index rows,
                                          bool outer_only, Index begin, Index end, Group&& group) {
    const auto some_rows = [&](auto count, Index r) BNEXT_INLINE_LAMBDA {
        for_each_pack(end - begin, [&](Index k, int columns) BNEXT_INLINE_LAMBDA {
            const Index c = begin + k;
            auto inputs = group(Number<1>{}, c, columns);
            outer_only ? inputs.row(o + r, i) : inputs.row(o, i + r);
            unrolled<count>([&](auto q) BNEXT_INLINE_LAMBDA {
                store_columns(out + (r + q) * pitch + c, columns, inputs.pack(q, 0));
            });
        });
    };
    Index r = 0;
    for (; r + 4 <= rows; r += 4) some_rows(Number<4>{}, r);
    for (; r < rows; ++r) some_rows(Number<1>{}, r);
}

// Around the caches: groups of columns, and prefetches, as in a reduction. `begin` is where lines
// begin.
template <class T, class Group>
BNEXT_FORCE_INLINE void stream_rows(T* out, Index pitch, Index o, Index i, Index rows, Index begin,
                                    Index end, Group&& group) {
    for_each_column_group(end - begin, [&](auto packs, Index k, int) BNEXT_INLINE_LAMBDA {
        const Index c = begin + k;
        auto inputs = group(packs, c, 0);
        inputs.row(o, i);
        for (Index r = 0; r < rows; ++r) {
            inputs.ahead(r + kRowBlock);
            T* const p = out + r * pitch + c;
            if constexpr (packs % 2 == 0) {
                unrolled<packs / 2>([&](auto h) BNEXT_INLINE_LAMBDA {
                    constexpr int g = 2 * h;
                    stream_pair(p + g * kLanes, inputs.pack(r, g), inputs.pack(r, g + 1));
                });
            } else {
                unrolled<packs>(
                    [&](auto g) BNEXT_INLINE_LAMBDA { stream(p + g * kLanes, inputs.pack(r, g)); });
            }
        }
    });
}

// Lines can be streamed where all rows begin alike. Where rows are dense, the line that one ends in
// and the next begins in is streamed as well: `begin` columns are left to the row before, for which
// coefficients go on behind the last column as they began (coefficients.hpp).
template <class T, class Group>
BNEXT_FORCE_INLINE void write_rows(const View<T>& view, const Tile& tile, Index first, Index width,
                                   bool dense, Stores stores, Group&& group) {
    const Index pitch = row_pitch(view, tile);
    const bool outer_only = is_outer_only(tile);
    const bool streams = stores == Stores::streaming && width >= 2 * kLanes &&
                         pitch * static_cast<Index>(sizeof(T)) % 64 == 0;
    const bool wraps = streams && dense && outer_only;
    for_each_row_block<kRowBlock>(tile, [&](Index o, Index i, Index rows) BNEXT_INLINE_LAMBDA {
        T* const out = at(view, o, 0, i) + first;
        if (!streams) {
            return write_rows_cached(out, pitch, o, i, rows, outer_only, 0, width, group);
        }
        const Index head = values_to_boundary(out, width);
        // The last row of the tile has no next one to go on in.
        const Index whole = wraps ? (o + rows < tile.outer_end ? rows : rows - 1) : 0;
        if (!wraps || o == tile.outer_begin) {
            write_rows_cached(out, pitch, o, i, wraps ? 1 : rows, outer_only, 0, head, group);
        }
        stream_rows(out, pitch, o, i, whole, head, head + width, group);
        if (whole == rows) return;
        const Index end = head + (width - head) / kLanes * kLanes;
        T* const rest = out + whole * pitch;
        const Index ro = outer_only ? o + whole : o;
        stream_rows(rest, pitch, ro, i, rows - whole, head, end, group);
        write_rows_cached(rest, pitch, ro, i, rows - whole, outer_only, end, width, group);
    });
}

// In what type values are summed. float32 and float64: in double, so that sums are exact beside the
// data, and squares neither overflow nor vanish. 16-bit data: in float32, for groups of at most 16
// values, and then in double.
template <class T>
struct SumOf {
    using type = double;
};
template <class T>
    requires kIs16Bit<T>
struct SumOf<T> {
    using type = float;
};
template <class T>
using Sum = typename SumOf<T>::type;

template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_sum(const T* p) {
    if constexpr (kIs16Bit<T>) {
        return load(p);
    } else {
        return load_wide(p);
    }
}
// The first n lanes (all for 0); the others from `fill`, which is one of T's values.
template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_sum(const T* p, int n, Sum<T> fill) {
    if (n == 0) return load_sum(p);
    if constexpr (kIs16Bit<T>) {
        return load_first(p, n, fill);
    } else {
        return widen(load_first(p, n, static_cast<T>(fill)));
    }
}
