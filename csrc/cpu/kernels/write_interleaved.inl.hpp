// How the second phase writes what is walked by rows, by formulas as in write_planar.inl.hpp: rows
// without gaps as one piece in the order of memory; others by groups of columns, around the caches
// or through them.

// The formulas of G packs of columns from c on, of a last one the first `columns`.
template <class Formula, class T, int G>
struct FormulaGroup {
    Formula pack[G];

    BNEXT_FORCE_INLINE FormulaGroup(const typename Formula::Coefficients& all, Index c,
                                    int columns) {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            pack[g] = Formula::from(all, [&](const auto* row) BNEXT_INLINE_LAMBDA {
                if constexpr (kLoadsUnits<T, G>) {
                    constexpr int kPacks = kUnitPacks<T>;
                    return columns_of_unit<T, g % kPacks>(row + c + g / kPacks * kUnit<T>);
                } else {
                    return load_columns(row + c + g * kLanes, columns);
                }
            });
        });
    }
};

// Rows of an input, from the region's first column on.
template <class T>
struct RowsInput {
    const T* first;
    Index pitch;
    bool dense;

    [[nodiscard]] BNEXT_FORCE_INLINE const T* row(Index r, Index c) const {
        return first + r * pitch + c;
    }
    template <int G>
    BNEXT_FORCE_INLINE void prefetch(Index rows, Index r, Index c) const {
        prefetch_next_block<G>(first, pitch, dense, rows, r, c);
    }
};

// Writes columns [c, c + 16 G) of row r, or the first `columns` of them.
template <bool kStreams, class Formula, class T, int G, class... In>
BNEXT_FORCE_INLINE void write_group(T* out, const FormulaGroup<Formula, T, G>& formulas, Index r,
                                    Index c, int columns, const In&... in) {
    if constexpr (kLoadsUnits<T, G>) {
        constexpr int kPacks = kUnitPacks<T>;
        unrolled<G / kPacks>([&](auto u) BNEXT_INLINE_LAMBDA {
            const Index first = u * kUnit<T>;
            write_unit<kStreams>(out + first, [&](auto h) BNEXT_INLINE_LAMBDA {
                return formulas.pack[u * kPacks + h](load_of_unit<h>(in.row(r, c) + first)...);
            });
        });
    } else {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            const Index first = g * kLanes;
            const auto pack = formulas.pack[g](load_columns(in.row(r, c) + first, columns)...);
            kStreams ? stream(out + first, pack) : store_columns(out + first, columns, pack);
        });
    }
}

// `rows` rows, columns [begin, end), through the cache: four rows at a time, unit by unit. Data
// that a cache has want neither prefetches nor far strides.
template <class Formula, class T, class... In>
BNEXT_NO_INLINE void write_rows_cached(T* out, Index pitch, Index rows, Index begin, Index end,
                                       const typename Formula::Coefficients& all, const In&... in) {
    constexpr int kPacks = kColumnsByUnits ? kUnitPacks<T> : 1;
    const auto some_rows = [&](auto count, Index r) BNEXT_INLINE_LAMBDA {
        for_each_column_group<kPacks>(end - begin, [&](auto packs, Index k,
                                                       int columns) BNEXT_INLINE_LAMBDA {
            const Index c = begin + k;
            const FormulaGroup<Formula, T, packs> formulas(all, c, columns);
            unrolled<count>([&](auto q) BNEXT_INLINE_LAMBDA {
                write_group<false>(out + (r + q) * pitch + c, formulas, r + q, c, columns, in...);
            });
        });
    };
    Index r = 0;
    if constexpr (kNativeBytes > 16) {  // else a pack alone takes four registers or more
        for (; r + 4 <= rows; r += 4) some_rows(Number<4>{}, r);
    }
    for (; r < rows; ++r) some_rows(Number<1>{}, r);
}

// Around the caches: groups of columns, and prefetches, as in a reduction. `begin` is where lines
// begin.
template <class Formula, class T, class... In>
BNEXT_NO_INLINE void stream_rows(T* out, Index pitch, Index rows, Index begin, Index end,
                                 const typename Formula::Coefficients& all, const In&... in) {
    for_each_column_group<kGroupPacks>(
        end - begin, [&](auto packs, Index k, int) BNEXT_INLINE_LAMBDA {
            const Index c = begin + k;
            const FormulaGroup<Formula, T, packs> formulas(all, c, 0);
            for (Index r = 0; r < rows; ++r) {
                (in.template prefetch<packs>(rows, r, c), ...);
                write_group<true>(out + r * pitch + c, formulas, r, c, 0, in...);
            }
        });
}

inline constexpr Index kWrittenRows = 16;  // of a block

// Rows of a tile, the columns [0, width) from column `first` on.
//
// Lines can be streamed where all rows begin alike. Where rows are dense, the line that one ends in
// and the next begins in is streamed as well: `begin` columns are left to the row before, for which
// coefficients go on behind the last column as they began (coefficients.hpp).
template <class Formula, class T, class... In>
BNEXT_FORCE_INLINE void write_rows(const View<T>& view, const Tile& tile, Index first, Index width,
                                   bool dense, Stores stores,
                                   const typename Formula::Coefficients& all, const In&... views) {
    const Index pitch = row_pitch(view, tile);
    const bool outer_only = is_outer_only(tile);
    const bool streams = stores == Stores::streaming && width >= 2 * kLanes &&
                         pitch * static_cast<Index>(sizeof(T)) % 64 == 0;
    const bool wraps = streams && dense && outer_only;
    for_each_row_block(tile, kWrittenRows, [&](Index o, Index i, Index rows) BNEXT_INLINE_LAMBDA {
        T* const out = at(view, o, 0, i) + first;
        const auto input = [&](const View<const T>& in, Index r) BNEXT_INLINE_LAMBDA {
            const Index in_pitch = row_pitch(in, tile);
            return RowsInput<T>{at(in, o, 0, i) + first + r * in_pitch, in_pitch,
                                in_pitch == width};
        };
        if (!streams) {
            return write_rows_cached<Formula>(out, pitch, rows, 0, width, all, input(views, 0)...);
        }
        const Index head = values_to_boundary(out, width);
        // The last row of the tile has no next one to go on in.
        const Index whole = wraps ? (o + rows < tile.outer_end ? rows : rows - 1) : 0;
        if (!wraps || o == tile.outer_begin) {
            write_rows_cached<Formula>(out, pitch, wraps ? 1 : rows, 0, head, all,
                                       input(views, 0)...);
        }
        stream_rows<Formula>(out, pitch, whole, head, head + width, all, input(views, 0)...);
        if (whole == rows) return;
        const Index end = head + (width - head) / kLanes * kLanes;
        T* const rest = out + whole * pitch;
        stream_rows<Formula>(rest, pitch, rows - whole, head, end, all, input(views, whole)...);
        write_rows_cached<Formula>(rest, pitch, rows - whole, end, width, all,
                                   input(views, whole)...);
    });
}

// The coefficients of a pack whose first channel is k.
template <class Formula>
BNEXT_FORCE_INLINE Formula formula_of_pack(const typename Formula::Coefficients& all, Index k) {
    return Formula::from(all, [&](const auto* row) BNEXT_INLINE_LAMBDA { return load(row + k); });
}

// Those of pack h of a unit.
template <class Formula, class T, int h>
BNEXT_FORCE_INLINE Formula formula_of_unit(const typename Formula::Coefficients& all, Index k) {
    return Formula::from(
        all, [&](const auto* row) BNEXT_INLINE_LAMBDA { return columns_of_unit<T, h>(row + k); });
}

// Rows that leave no gap can be written as one piece, in the order of memory.
template <class Formula, class T>
struct InOrder {
    // Coefficients are read again for every row, and have to stay in the first-level cache: with
    // more, rows of 16 KiB took up to twice as long.
    static constexpr Index kTable = 8 * 1024 / static_cast<Index>(sizeof(Formula));
    static constexpr Index kMostChannels = 2 * kTable * kLanes;

    // From a table of formulas, one for each pack of a row.
    BNEXT_FORCE_INLINE static bool by_table(Index width) {
        return kColumnsByUnits && width % kUnit<T> == 0 && width <= kTable * kLanes;
    }
    // Faster than groups of columns by 10 to 60 % on a Zen 4, but for two inputs around the caches,
    // where it took up to a third longer: what is prefetched there counts more. Without a table it
    // pays only where rows share lines.
    BNEXT_FORCE_INLINE static bool pays(Index width, bool streams, std::size_t inputs) {
        if (by_table(width)) return !streams || inputs == 1;
        return width * static_cast<Index>(sizeof(T)) % 64 != 0 && width <= kMostChannels;
    }
};

// Writes n values that follow each other, of channels 0, 1, ... width - 1, 0, 1, ... Coefficients
// go on behind the last channel as they began. Between the ends all is written by whole units, on
// boundaries of lines if they are streamed.
template <bool kStreams, class Formula, class T, class... In>
BNEXT_NO_INLINE void write_in_order(T* out, Index n, Index width,
                                    const typename Formula::Coefficients& all, const In*... in) {
    constexpr int kPacks = kUnitPacks<T>;
    Index j = 0;
    const auto some = [&](Index end) BNEXT_INLINE_LAMBDA {
        for (Index m = 0; j < end; j += m) {
            m = end - j < kLanes ? end - j : kLanes;
            const auto formula = formula_of_pack<Formula>(all, j % width);
            const int columns = static_cast<int>(m % kLanes);
            store_columns(out + j, columns, formula(load_columns(in + j, columns)...));
        }
    };
    if (kStreams) some(values_to_boundary(out, n));
    if (InOrder<Formula, T>::by_table(width)) {
        Formula table[InOrder<Formula, T>::kTable];
        const Index units = width / kUnit<T>;
        for (Index u = 0; u < units; ++u) {
            const Index k = (j + u * kUnit<T>) % width;
            unrolled<kPacks>([&](auto h) BNEXT_INLINE_LAMBDA {
                table[u * kPacks + h] = formula_of_unit<Formula, T, h>(all, k);
            });
        }
        while (j + kUnit<T> <= n) {
            for (Index u = 0; u < units && j + kUnit<T> <= n; ++u, j += kUnit<T>) {
                write_unit<kStreams>(out + j, [&](auto h) BNEXT_INLINE_LAMBDA {
                    return table[u * kPacks + h](load_of_unit<h>(in + j)...);
                });
            }
        }
        return some(n);
    }
    const Index step = kUnit<T> % width;
    for (Index k = j % width; j + kUnit<T> <= n; j += kUnit<T>) {
        if constexpr (kColumnsByUnits) {
            write_unit<kStreams>(out + j, [&](auto h) BNEXT_INLINE_LAMBDA {
                return formula_of_unit<Formula, T, h>(all, k)(load_of_unit<h>(in + j)...);
            });
        } else {
            unrolled<kPacks>([&](auto h) BNEXT_INLINE_LAMBDA {
                constexpr Index first = h * kLanes;
                const auto pack = formula_of_pack<Formula>(all, k + first)(load(in + j + first)...);
                kStreams ? stream(out + j + first, pack) : store(out + j + first, pack);
            });
        }
        k += step;
        if (k >= width) k -= width;
    }
    some(n);
}

// The second phase over an interleaved region, tiles from the last to the first.
template <class Formula, class T, class... In>
BNEXT_FORCE_INLINE void write_interleaved(const View<T>& out, const Region& region,
                                          const typename Formula::Coefficients& all,
                                          const Access& access, const In&... in) {
    const Index columns = region.tiling->columns();
    const Index width = region.channels.size() * columns;
    const bool dense =
        access.wraps && out.stride.outer == width && ((in.stride.outer == width) && ...);
    const bool in_order = dense && InOrder<Formula, T>::pays(
                                       width, access.stores == Stores::streaming, sizeof...(in));
    const auto write = [&](Index o, Index n) BNEXT_INLINE_LAMBDA {
        const Index c = region.channels.begin;
        access.stores == Stores::streaming
            ? write_in_order<true, Formula>(at(out, o, c, 0), n, width, all, at(in, o, c, 0)...)
            : write_in_order<false, Formula>(at(out, o, c, 0), n, width, all, at(in, o, c, 0)...);
    };
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = rows_of_tile(*region.tiling, t);
        if (in_order && is_outer_only(tile)) {
            write(tile.outer_begin, (tile.outer_end - tile.outer_begin) * width);
            continue;
        }
        write_rows<Formula>(out, tile, region.channels.begin * columns, width, dense, access.stores,
                            all, in...);
    }
    if (access.stores == Stores::streaming) fence();
}
