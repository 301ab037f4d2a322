// How the second phase writes what is walked by rows, by formulas as in write_planar.inl.hpp: rows
// without gaps as one piece in the order of memory; others by groups of columns, around the caches
// or through them.

// The formula of a pack whose first column is k, of which the first `columns` exist (0: all).
template <class Formula, class C>
BNEXT_FORCE_INLINE Formula formula_of_pack(const CoefficientsIn<C>& all, Index k, int columns) {
    return formula_from<Formula>(
        all, [&](const C* row) BNEXT_INLINE_LAMBDA { return load_columns(row + k, columns); });
}

// The formula of pack h of the unit whose first column is k.
template <class Formula, class T, int h>
BNEXT_FORCE_INLINE Formula formula_of_unit(const CoefficientsIn<Compute<T>>& all, Index k) {
    return formula_from<Formula>(all, [&](const Compute<T>* row) BNEXT_INLINE_LAMBDA {
        return columns_of_unit<T, h>(row + k);
    });
}

// The formulas of G packs of columns from c on, of a last one the first `columns`.
template <class Formula, class T, int G>
struct FormulaGroup {
    Formula pack[G];

    BNEXT_FORCE_INLINE FormulaGroup(const CoefficientsIn<Compute<T>>& all, Index c, int columns) {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            if constexpr (kLoadsUnits<T, G>) {
                constexpr int kPacks = kUnitPacks<T>;
                pack[g] = formula_of_unit<Formula, T, g % kPacks>(all, c + g / kPacks * kUnit<T>);
            } else {
                pack[g] = formula_of_pack<Formula>(all, c + g * kLanes, columns);
            }
        });
    }
};

// Rows of the inputs and outputs, from one column on.
//
// What writes by rows or runs takes them by reference and begins with a copy of its own: members
// behind a reference are read again after every store, and a copy that a caller makes is moved as
// vectors, whose loads wait until all stores before them, streamed ones too, have left the
// processor.
template <class Formula, class T>
struct Rows {
    struct Input {
        const T* first;
        Index pitch;
        bool dense;
    };
    struct Output {
        T* first;
        Index pitch;
    };
    Input in[Formula::kReads];
    Output out[Formula::kWrites];
    [[no_unique_address]] FlagPlaceOf<Formula> flags;

    // The same from row r on.
    [[nodiscard]] BNEXT_FORCE_INLINE Rows from(Index r) const {
        Rows rows = *this;
        for (int i = 0; i < Formula::kReads; ++i) rows.in[i].first += r * in[i].pitch;
        for (int w = 0; w < Formula::kWrites; ++w) rows.out[w].first += r * out[w].pitch;
        rows.flags = flags.row(r);
        return rows;
    }
};

// Writes columns [c, c + 16 G) of row r, or the first `columns` of them.
template <bool kStreams, class Formula, class T, int G>
BNEXT_FORCE_INLINE void write_group(const Rows<Formula, T>& rows,
                                    const FormulaGroup<Formula, T, G>& formulas, Index r, Index c,
                                    int columns) {
    const auto from = [&](auto i, Index first) BNEXT_INLINE_LAMBDA {
        return rows.in[i].first + r * rows.in[i].pitch + c + first;
    };
    const auto to = [&](auto w, Index first) BNEXT_INLINE_LAMBDA {
        return rows.out[w].first + r * rows.out[w].pitch + c + first;
    };
    const auto flags_at = [&](Index first) BNEXT_INLINE_LAMBDA {
        return [&, first]() BNEXT_INLINE_LAMBDA { return rows.flags.row(r).at(c + first); };
    };
    if constexpr (kLoadsUnits<T, G>) {
        constexpr int kPacks = kUnitPacks<T>;
        unrolled<G / kPacks>([&](auto u) BNEXT_INLINE_LAMBDA {
            const Index first = u * kUnit<T>;
            const auto flags = flags_at(first);
            write_unit_by<kStreams, Formula, T>(
                [&](auto h)
                    BNEXT_INLINE_LAMBDA -> const Formula& { return formulas.pack[u * kPacks + h]; },
                [&](auto i, auto h) BNEXT_INLINE_LAMBDA {
                    return load_input_of_unit<Formula, i, h>(from(i, first), flags);
                },
                [&](auto w) BNEXT_INLINE_LAMBDA { return to(w, first); }, flags);
        });
    } else {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            const Index first = g * kLanes;
            write_pack_by<kStreams, Formula, T>(
                formulas.pack[g], columns,
                [&](auto i) BNEXT_INLINE_LAMBDA { return from(i, first); },
                [&](auto w) BNEXT_INLINE_LAMBDA { return to(w, first); }, flags_at(first));
        });
    }
}

// `count` rows, columns [begin, end), through the cache: four rows at a time, unit by unit. Data
// that a cache has want neither prefetches nor far strides.
template <class Formula, class T>
BNEXT_NO_INLINE void write_rows_cached(const Rows<Formula, T>& given, Index count, Index begin,
                                       Index end, const CoefficientsIn<Compute<T>>& all) {
    const Rows<Formula, T> rows = given;
    constexpr int kPacks = kColumnsByUnits ? kUnitPacks<T> : 1;
    const auto some_rows = [&](auto at_once, Index r) BNEXT_INLINE_LAMBDA {
        for_each_column_group<kPacks>(
            end - begin, [&](auto packs, Index k, int columns) BNEXT_INLINE_LAMBDA {
                const Index c = begin + k;
                const FormulaGroup<Formula, T, packs> formulas(all, c, columns);
                unrolled<at_once>([&](auto q) BNEXT_INLINE_LAMBDA {
                    write_group<false>(rows, formulas, r + q, c, columns);
                });
            });
    };
    Index r = 0;
    if constexpr (kNativeBytes > 16) {  // else a pack alone takes four registers or more
        for (; r + 4 <= count; r += 4) some_rows(Number<4>{}, r);
    }
    for (; r < count; ++r) some_rows(Number<1>{}, r);
}

// Around the caches: groups of columns, and prefetches, as in a reduction. `begin` is where lines
// begin.
template <class Formula, class T>
BNEXT_NO_INLINE void stream_rows(const Rows<Formula, T>& given, Index count, Index begin, Index end,
                                 const CoefficientsIn<Compute<T>>& all) {
    const Rows<Formula, T> rows = given;
    for_each_column_group<kGroupPacks>(
        end - begin, [&](auto packs, Index k, int) BNEXT_INLINE_LAMBDA {
            const Index c = begin + k;
            const FormulaGroup<Formula, T, packs> formulas(all, c, 0);
            for (Index r = 0; r < count; ++r) {
                unrolled<Formula::kReads>([&](auto i) BNEXT_INLINE_LAMBDA {
                    const auto& in = rows.in[i];
                    prefetch_next_block<packs>(in.first, in.pitch, in.dense, count, r, c);
                });
                write_group<true>(rows, formulas, r, c, 0);
            }
        });
}

inline constexpr Index kWrittenRows = 16;  // of a block

// Rows of a tile, the columns [0, width) from column `first` on.
//
// Lines can be streamed where all rows begin alike. Where rows are dense, the line that one ends in
// and the next begins in is streamed as well: `begin` columns are left to the row before, for which
// coefficients go on behind the last column as they began (coefficients.hpp).
template <class Formula, class T>
BNEXT_FORCE_INLINE void write_rows(const View<const T>* in, const View<T>* out, const Tile& tile,
                                   Index first, Index width, bool dense, Stores stores,
                                   const CoefficientsIn<Compute<T>>& all) {
    const bool outer_only = is_outer_only(tile);
    bool in_lines = stores == Stores::streaming && width >= 2 * kLanes;
    for (int w = 0; w < Formula::kWrites; ++w) {
        in_lines = in_lines && row_pitch(out[w], tile) * static_cast<Index>(sizeof(T)) % 64 == 0;
    }
    for_each_row_block(tile, kWrittenRows, [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
        Rows<Formula, T> rows;
        T* begins[Formula::kWrites];
        unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
            const Index pitch = row_pitch(in[r], tile);
            rows.in[r] = {at(in[r], o, 0, i) + first, pitch, pitch == width};
        });
        unrolled<Formula::kWrites>([&](auto w) BNEXT_INLINE_LAMBDA {
            begins[w] = at(out[w], o, 0, i) + first;
            rows.out[w] = {begins[w], row_pitch(out[w], tile)};
        });
        rows.flags = FlagPlaceOf<Formula>(all.activated, o, 0, i, outer_only).at(first);
        if (!in_lines || !begin_alike(begins)) {
            return write_rows_cached(rows, count, 0, width, all);
        }
        const bool wraps = dense && outer_only;
        const Index head = values_to_boundary(begins[0], width);
        // The last row of the tile has no next one to go on in.
        const Index whole = wraps ? (o + count < tile.outer_end ? count : count - 1) : 0;
        if (!wraps || o == tile.outer_begin) {
            write_rows_cached(rows, wraps ? 1 : count, 0, head, all);
        }
        stream_rows(rows, whole, head, head + width, all);
        if (whole == count) return;
        const Index end = head + (width - head) / kLanes * kLanes;
        const Rows<Formula, T> rest = rows.from(whole);
        stream_rows(rest, count - whole, head, end, all);
        write_rows_cached(rest, count - whole, end, width, all);
    });
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
    BNEXT_FORCE_INLINE static bool pays(Index width, bool streams) {
        if (by_table(width)) return !streams || Formula::kReads == 1;
        return width * static_cast<Index>(sizeof(T)) % 64 != 0 && width <= kMostChannels;
    }
};

// Writes n values that follow each other, of channels 0, 1, ... width - 1, 0, 1, ... Coefficients
// go on behind the last channel as they began. Between the ends all is written by whole units, on
// boundaries of lines if they are streamed. Then inputs are prefetched well ahead: beside streamed
// stores hardware prefetchers fall behind, in some processes for as long as they live (twice as
// long a call with bfloat16 rows of 256, Zen 4). 2 KiB ahead were not enough.
template <bool kStreams, class Formula, class T>
BNEXT_NO_INLINE void write_in_order(const Runs<Formula, T>& given, Index n, Index width,
                                    const CoefficientsIn<Compute<T>>& all) {
    const Runs<Formula, T> runs = given;
    constexpr int kPacks = kUnitPacks<T>;
    constexpr Index kAhead = 8192 / static_cast<Index>(sizeof(T));
    Index j = 0;
    const auto some = [&](Index end) BNEXT_INLINE_LAMBDA {
        for (Index m = 0; j < end; j += m) {
            m = end - j < kLanes ? end - j : kLanes;
            write_pack_at(runs, j, static_cast<int>(m % kLanes),
                          formula_of_pack<Formula>(all, j % width, 0));
        }
    };
    const auto unit = [&](auto&& formula_of)
                          BNEXT_INLINE_LAMBDA { write_unit_at<kStreams>(runs, j, formula_of); };
    if (kStreams) some(values_to_boundary(runs.out[0], n));
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
                if constexpr (kStreams) {
                    unrolled<Formula::kReads>([&](auto i) BNEXT_INLINE_LAMBDA {
                        prefetch_packs<kPacks>(runs.in[i] + j + kAhead);
                    });
                }
                unit([&](auto h)
                         BNEXT_INLINE_LAMBDA -> const Formula& { return table[u * kPacks + h]; });
            }
        }
        return some(n);
    }
    const Index step = kUnit<T> % width;
    for (Index k = j % width; j + kUnit<T> <= n; j += kUnit<T>) {
        if constexpr (kColumnsByUnits) {
            unit([&](auto h)
                     BNEXT_INLINE_LAMBDA { return formula_of_unit<Formula, T, h>(all, k); });
        } else {
            unrolled<kPacks>([&](auto h) BNEXT_INLINE_LAMBDA {
                const Index first = j + h * kLanes;
                write_pack_by<kStreams, Formula, T>(
                    formula_of_pack<Formula>(all, k + h * kLanes, 0), 0,
                    [&](auto i) BNEXT_INLINE_LAMBDA { return runs.in[i] + first; },
                    [&](auto w) BNEXT_INLINE_LAMBDA { return runs.out[w] + first; },
                    [&]() BNEXT_INLINE_LAMBDA { return runs.flags.at(first); });
            });
        }
        k += step;
        if (k >= width) k -= width;
    }
    some(n);
}

// The second phase over an interleaved region, tiles from the last to the first.
template <class Formula, class T>
void write_interleaved(const View<const T>* in, const View<T>* out, const Region& region,
                       const CoefficientsIn<Compute<T>>& all, const Access& access) {
    const Index columns = region.tiling->columns();
    const Index width = region.channels.size() * columns;
    bool dense = access.wraps;
    for (int w = 0; w < Formula::kWrites; ++w) dense = dense && out[w].stride.outer == width;
    for (int i = 0; i < Formula::kReads; ++i) dense = dense && in[i].stride.outer == width;
    const bool in_order =
        dense && InOrder<Formula, T>::pays(width, access.stores == Stores::streaming);
    const auto write = [&](Index o, Index n) BNEXT_INLINE_LAMBDA {
        const Index c = region.channels.begin;
        Runs<Formula, T> runs;
        unrolled<Formula::kReads>([&](auto i)
                                      BNEXT_INLINE_LAMBDA { runs.in[i] = at(in[i], o, c, 0); });
        unrolled<Formula::kWrites>([&](auto w)
                                       BNEXT_INLINE_LAMBDA { runs.out[w] = at(out[w], o, c, 0); });
        runs.flags = FlagPlaceOf<Formula>(all.activated, o, c, 0).of_run(n);
        access.stores == Stores::streaming&& begin_alike(runs.out)
            ? write_in_order<true>(runs, n, width, all)
            : write_in_order<false>(runs, n, width, all);
    };
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = rows_of_tile(*region.tiling, t);
        if (in_order && is_outer_only(tile)) {
            write(tile.outer_begin, (tile.outer_end - tile.outer_begin) * width);
            continue;
        }
        write_rows<Formula>(in, out, tile, region.channels.begin * columns, width, dense,
                            access.stores, all);
    }
    if (access.stores == Stores::streaming) fence();
}
