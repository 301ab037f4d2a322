// Helpers that several phases share: walking the rows and columns of an interleaved region,
// prefetching what comes next, and loading values as they are summed.

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

// Values before p reaches a 64-byte boundary (p is a multiple of sizeof(T)), at most n.
template <class T>
BNEXT_FORCE_INLINE int values_to_boundary(const T* p, Index n) {
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(p) % 64);
    const Index head = (past == 0 ? 0 : 64 - past) / static_cast<Index>(sizeof(T));
    return static_cast<int>(head < n ? head : n);
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
template <class T, int kReads>
class Lookahead {
public:
    BNEXT_FORCE_INLINE Lookahead(const View<const T>* in, const Tiling& tiling, const Tile& tile,
                                 Index o, Index c)
        : from_(tile.inner_end - tile.inner_begin) {
        for (int i = 0; i < kReads; ++i) next_[i] = nullptr;
        if (tile.inner_end < tiling.inner() || o + 1 >= tiling.outer()) return;
        for (int i = 0; i < kReads; ++i) next_[i] = at(in[i], o + 1, c, 0);
        from_ = from_ > kReach ? from_ - kReach : 0;
    }
    // Two packs' worth, when those at j of the run are read.
    BNEXT_FORCE_INLINE void prefetch_pair(Index j) const {
        if (j < from_) return;
        unrolled<kReads>([&](auto i)
                             BNEXT_INLINE_LAMBDA { prefetch_packs<2>(next_[i] + (j - from_)); });
    }

private:
    static constexpr Index kReach = 1024 / static_cast<Index>(sizeof(T));
    const T* next_[kReads];
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

// Rows of an input, from one column on.
template <class T>
struct RowsIn {
    const T* first;
    Index pitch;
};

// Calls f(o, i, rows) for blocks of at most `most` consecutive rows, which are gone through by
// groups of columns: what belongs to the columns (sums, coefficients) stays in registers meanwhile.
// The rows that will come next are prefetched, since hardware prefetchers do not follow such a
// path; without that this took up to twice as long (two cores, Zen 4, rows of 1 to 16 KiB).
template <class F>
BNEXT_FORCE_INLINE void for_each_row_block(const Tile& tile, Index most, F&& f) {
    const bool outer_only = is_outer_only(tile);
    const Index begin = outer_only ? tile.outer_begin : tile.inner_begin;
    const Index end = outer_only ? tile.outer_end : tile.inner_end;
    const Index outer_end = outer_only ? tile.outer_begin + 1 : tile.outer_end;
    for (Index o = tile.outer_begin; o < outer_end; ++o) {
        for (Index r = begin; r < end; r += most) {
            const Index rows = r + most < end ? most : end - r;
            outer_only ? f(r, 0, rows) : f(o, r, rows);
        }
    }
}

// Rows of a block of a reduction: 32 KiB where rows are one piece of memory (with 16, large arrays
// were read a tenth slower), else few, since far strides cost translations.
inline constexpr Index kSummedRows = 16;  // for so many, sums stay in registers

template <class T>
BNEXT_FORCE_INLINE Index rows_of_block(Index width, Index pitch) {
    constexpr Index kBlockBytes = 32 * 1024;
    const Index rows = pitch == width ? kBlockBytes / (width * static_cast<Index>(sizeof(T))) : 0;
    return rows < kSummedRows ? kSummedRows : rows / kSummedRows * kSummedRows;
}

// Packs of columns that are gone through together, with up to four packs of sums or coefficients
// for each.
inline constexpr int kGroupPacks = kNativeBytes == 64 ? 4 : 1;

// Calls f(Number<G>, c, columns) for groups of G packs of columns: kMost while there are so many,
// then single ones, then one of which only the first `columns` exist (else 0).
template <int kMost, class F>
BNEXT_FORCE_INLINE void for_each_column_group(Index width, F&& f) {
    Index c = 0;
    for (; c + kMost * kLanes <= width; c += kMost * kLanes) f(Number<kMost>{}, c, 0);
    if constexpr (kMost > 1) {
        for (; c + kLanes <= width; c += kLanes) f(Number<1>{}, c, 0);
    }
    if (c < width) f(Number<1>{}, c, static_cast<int>(width - c));
}

// While G packs of columns from c on of row r are gone through, in a block of `rows` rows that
// begins at p: a piece of the next block. Where that is one piece of memory, its lines are asked
// for in their order there.
template <int G, class T>
BNEXT_FORCE_INLINE void prefetch_next_block(const T* p, Index pitch, bool dense, Index rows,
                                            Index r, Index c) {
    const T* const next = p + rows * pitch;
    prefetch_packs<G>(dense ? next + c * rows + r * (G * kLanes) : next + r * pitch + c);
}

// Calls f(c, columns) for every pack of columns; `columns` of a last one exist (else 0).
template <class F>
BNEXT_FORCE_INLINE void for_each_pack(Index width, F&& f) {
    Index c = 0;
    for (; c + kLanes <= width; c += kLanes) f(c, 0);
    if (c < width) f(c, static_cast<int>(width - c));
}

// Calls f(j, columns) for the packs of [begin, end), of which `columns` values exist (0: all). f is
// compiled once, whole packs or not: there are many of these loops.
template <class F>
BNEXT_FORCE_INLINE void for_each_pack_of(Index begin, Index end, F&& f) {
    for (Index j = begin; j < end; j += kLanes) {
        f(j, end - j < kLanes ? static_cast<int>(end - j) : 0);
    }
}

BNEXT_FORCE_INLINE int lanes_in(int columns) { return columns == 0 ? kLanes : columns; }

template <class T>
BNEXT_FORCE_INLINE Pack<Compute<T>> load_columns(const T* p, int columns, Compute<T> others = 0) {
    return columns == 0 ? load(p) : load_first(p, columns, others);
}
template <class T>
BNEXT_FORCE_INLINE void store_columns(T* p, int columns, const Pack<Compute<T>>& values) {
    columns == 0 ? store(p, values) : store_first(p, columns, values);
}

// Values as doubles, or as what elementwise arithmetic is in: the first n, or all for n = 0.
template <class C, class T>
BNEXT_FORCE_INLINE Pack<C> load_as(const T* p, int n, C fill = 0) {
    if constexpr (std::is_same_v<C, Compute<T>>) {
        return load_columns(p, n, fill);
    } else if constexpr (kIs16Bit<T>) {
        return widen(load_columns(p, n, static_cast<float>(fill)));
    } else {
        return n == 0 ? load_wide(p) : widen(load_first(p, n, static_cast<T>(fill)));
    }
}
template <class C, class T>
BNEXT_FORCE_INLINE void store_as(T* p, int n, const Pack<C>& values) {
    if constexpr (std::is_same_v<C, Compute<T>>) {
        store_columns(p, n, values);
    } else {
        store_columns(p, n, round_to<Compute<T>>(values));
    }
}

// In what type values are summed. float32 and float64: in double, so that sums are exact beside the
// data, and squares neither overflow nor vanish. 16-bit data: in float32, for groups of at most 16
// values, and then in double.
template <class T>
using Sum = std::conditional_t<kIs16Bit<T>, float, double>;

template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_sum(const T* p) {
    if constexpr (kIs16Bit<T>) {
        return load(p);
    } else {
        return load_wide(p);
    }
}
// The first n lanes; the others from `fill`, which is one of T's values.
template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_first_sum(const T* p, int n, Sum<T> fill) {
    if constexpr (kIs16Bit<T>) {
        return load_first(p, n, fill);
    } else {
        return widen(load_first(p, n, static_cast<T>(fill)));
    }
}
// The same, and all lanes for n = 0.
template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_sum(const T* p, int n, Sum<T> fill) {
    return n == 0 ? load_sum(p) : load_first_sum(p, n, fill);
}

// Pack h of two packs of values in a row, in the order of a unit.
template <int h, class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_sum_of_pair(const T* p) {
    if constexpr (kIs16Bit<T>) {
        return load_of_unit<h>(p);
    } else {
        return load_sum(p + h * kLanes);
    }
}

// G packs of columns of a row, by units where that is possible; what belongs to these columns, in
// the same order; and the way back into the order of columns.
template <class T, int G>
inline constexpr bool kLoadsUnits = kIs16Bit<T> && kColumnsByUnits && G % kUnitPacks<T> == 0;

template <class T, int G>
BNEXT_FORCE_INLINE void load_row(const T* p, int columns, Pack<Sum<T>> (&values)[G]) {
    if constexpr (kLoadsUnits<T, G>) {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            values[g] = load_of_unit<g % 2>(p + g / 2 * kUnit<T>);
        });
    } else {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            values[g] = load_sum(p + g * kLanes, columns, Sum<T>{0});
        });
    }
}
template <class T, int G>
BNEXT_FORCE_INLINE void load_per_column(const Sum<T>* p, Pack<Sum<T>> (&packs)[G]) {
    unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
        if constexpr (kLoadsUnits<T, G>) {
            packs[g] = columns_of_unit<T, g % 2>(p + g / 2 * kUnit<T>);
        } else {
            packs[g] = load(p + g * kLanes);
        }
    });
}
template <class T, int G>
BNEXT_FORCE_INLINE void order_per_column(Pack<Sum<T>> (&packs)[G]) {
    if constexpr (kLoadsUnits<T, G>) into_column_order<T>(packs);
}
