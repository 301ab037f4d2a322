// Activated passes over positions of which not all count (cpu/weights.hpp), as
// activated_runs.inl.hpp has them: z of a piece of a run, a loop of the activation over it, then
// what is written of it. A run is a piece of a plane, with bits and weights of its own, or a row,
// whose values count all or not at all. Pieces of which nothing counts are not computed.
//
// Traffic: the activated passes' traffic, for positions that count; besides, the bits, and the
//          weights in the second phase of a backward pass.
// Order:   elementwise.
// Here: runs, and the second phase.

// The positions of a run. Of a row that counts all bits are set, and its one weight is every
// value's.
template <class C>
struct CountedRun {
    FlagBits bits{};  // without words: all count
    Index number = 0;
    const C* each = nullptr;
    bool one_weight = false;

    BNEXT_FORCE_INLINE CountedRun(const Weights<C>& weights, Index first, bool is_row)
        : bits(is_row ? FlagBits{} : weights.bits),
          number(first),
          each(weights.each != nullptr ? weights.each + first : nullptr),
          one_weight(is_row) {}

    // Of the pack at j, of which `columns` values exist (0: all).
    [[nodiscard]] BNEXT_FORCE_INLINE unsigned counted(Index j, int columns) const {
        if (!bits.are_kept()) return 0xffffU;
        return counted_bits(bits, number + j, columns);
    }
    [[nodiscard]] BNEXT_FORCE_INLINE bool any_counts(Index begin, Index end) const {
        unsigned any = 0;
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            any |= counted(j, columns);
        });
        return any != 0;
    }
    [[nodiscard]] BNEXT_FORCE_INLINE Pack<C> weight(Index j, int columns) const {
        return one_weight ? broadcast(*each) : load_columns(each + j, columns);
    }
};

// A row of coefficients of a run: one for all values, or one for each.
template <class C>
struct RowOfRun {
    const C* row;
    Index step;

    [[nodiscard]] BNEXT_FORCE_INLINE Pack<C> at(Index j, int columns) const {
        return load_columns(row + j * step, step == 0 ? 0 : columns);
    }
};

// Coefficients of the values of a run: of a plane, the channel's broadcast; of a row, its columns'.
template <class Formula, class C>
struct RowsOfRun {
    alignas(64) C broadcasts[Formula::kRows][kLanes];
    const C* row[Formula::kRows];
    Index step;

    BNEXT_FORCE_INLINE void set_channel(const CoefficientsIn<C>& all, Index k) {
        for (int r = 0; r < Formula::kRows; ++r) {
            store(broadcasts[r], broadcast(all.row[r][k]));
            row[r] = broadcasts[r];
        }
        step = 0;
    }
    BNEXT_FORCE_INLINE void set_columns(const CoefficientsIn<C>& all) {
        for (int r = 0; r < Formula::kRows; ++r) row[r] = all.row[r];
        step = 1;
    }
};

// Calls f(begin, end, streams) for the pieces of n values, of which those behind `head` are
// streamed.
template <class F>
BNEXT_FORCE_INLINE void for_each_piece(Index n, Index head, bool streams, F&& f) {
    for (Index begin = 0, end; begin < n; begin = end) {
        const Index last = begin < head ? head : n;
        end = last - begin < kPiece ? last : begin + kPiece;
        f(begin, end, streams && begin >= head);
    }
}

// Writes 0 at all places of a piece, or what `from` has there.
template <class T>
BNEXT_FORCE_INLINE void write_others(T* to, const T* from, Index begin, Index end, bool streams) {
    for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
        const auto pack =
            from != nullptr ? load_columns(from + j, columns) : broadcast(Compute<T>{0});
        write_pack_of_run(to + j, columns, streams, pack);
    });
}

// y of n values of a run.
template <class T, class Rows>
BNEXT_NO_INLINE void write_counted_run_activated(const ActivatedRun<T>& run, const Rows& rows,
                                                 const CountedRun<Compute<T>>& counts, Index n,
                                                 bool streams, bool unchanged, const Activated& by,
                                                 FlagWriter& flags) {
    using C = Compute<T>;
    using Z = Normalize<C>;
    const T *const x = run.in[0], *const residual = by.fused.residual ? run.in[1] : nullptr;
    T* const y = run.out[0];
    const ZOfRun<T> z{rows.row[Z::kCenter], rows.row[Z::kScale], rows.row[Z::kShift], rows.step};
    const auto activate = table.loops<C>(by.fused.activation).activate;
    FlagWriter* const kept = flags.are_kept() ? &flags : nullptr;
    if (kept != nullptr) kept->begin_at(run.flag);
    alignas(64) C values[kPiece];
    const auto write = [&](Index begin, Index end, bool streamed) BNEXT_INLINE_LAMBDA {
        if (!counts.any_counts(begin, end)) {
            write_others(y, unchanged ? x : nullptr, begin, end, streamed);
            for (Index j = begin; j < end && kept != nullptr; j += kLanes) {
                kept->put(0, static_cast<int>(end - j < kLanes ? end - j : kLanes));
            }
            return;
        }
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            prefetch_packs<1>(ahead_of(run, 0) + j);
            Pack<C> at = z(j, columns, load_columns(x + j, columns));
            if (residual != nullptr) at = at + load_columns(residual + j, columns);
            store(values + (j - begin), at);
        });
        activate(by.fused.negative_slope, values, static_cast<int>(end - begin), kept);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            const Pack<C> outside = unchanged ? load_columns(x + j, columns) : broadcast(C{0});
            write_pack_of_run(
                y + j, columns, streamed,
                where_set(counts.counted(j, columns), load(values + (j - begin)), outside));
        });
    };
    for_each_piece(n, streams ? values_to_boundary(y, n) : 0, streams, write);
}

// g = dy * act'(z) of the values [begin, end) of a run, at most a piece, whether they count or not.
template <class T>
BNEXT_NO_INLINE void gradient_of_counted(const ActivatedRun<T>& run, const ZOfRun<T>& z,
                                         Index begin, Index end, const Activated& by,
                                         Compute<T>* g) {
    using C = Compute<T>;
    const T *const x = run.in[0], *const dy = run.in[1];
    const T* const residual = by.fused.reads_residual() ? run.in[2] : nullptr;
    const GradientByFlags<C> by_flags(by, run.flag);
    const bool has_flags = by.flags.are_kept();
    alignas(64) C of_dy[kPiece];
    for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
        prefetch_packs<1>(ahead_of(run, 0) + j);
        prefetch_packs<1>(ahead_of(run, 1) + j);
        const Pack<C> dy_here = load_columns(dy + j, columns);
        if (has_flags) return store(g + (j - begin), by_flags(j, dy_here));
        Pack<C> at = z(j, columns, load_columns(x + j, columns));
        if (residual != nullptr) at = at + load_columns(residual + j, columns);
        store(g + (j - begin), at);
        store(of_dy + (j - begin), dy_here);
    });
    if (has_flags) return;
    table.loops<C>(by.fused.activation)
        .derive(by.fused.negative_slope, g, of_dy, static_cast<int>(end - begin));
}

// dx and dresidual of n values of a run; 0 where positions do not count.
template <class T, class Rows>
BNEXT_NO_INLINE void write_counted_run_gradients(const ActivatedRun<T>& run, const Rows& rows,
                                                 const CountedRun<Compute<T>>& counts, Index n,
                                                 bool streams, const Activated& by) {
    using C = Compute<T>;
    using F = GradientActivated<C>;
    const T* const x = run.in[0];
    T *const dx = run.out[0], *const dresidual = by.fused.residual ? run.out[1] : nullptr;
    const ZOfRun<T> z{rows.row[F::kCenter], rows.row[F::kScaleOfZ], rows.row[F::kShiftOfZ],
                      rows.step};
    const RowOfRun<C> center{rows.row[F::kCenter], rows.step},
        slope{rows.row[F::kSlope], rows.step}, offset{rows.row[F::kOffset], rows.step},
        scale{rows.row[F::kScale], rows.step};
    alignas(64) C g[kPiece];
    const auto write = [&](Index begin, Index end, bool streamed) BNEXT_INLINE_LAMBDA {
        if (!counts.any_counts(begin, end)) {
            write_others<T>(dx, nullptr, begin, end, streamed);
            if (dresidual != nullptr) write_others<T>(dresidual, nullptr, begin, end, streamed);
            return;
        }
        gradient_of_counted(run, z, begin, end, by, g);
        for_each_pack_of(begin, end, [&](Index j, int columns) BNEXT_INLINE_LAMBDA {
            const unsigned counted = counts.counted(j, columns);
            const Pack<C> of_g = load(g + (j - begin));
            const Pack<C> in[2] = {load_columns(x + j, columns), of_g};
            Pack<C> made[1];
            const auto by_formula = [&](auto formula) BNEXT_INLINE_LAMBDA {
                using Of = decltype(formula);
                formula.row[Of::kCenter] = center.at(j, columns);
                formula.row[Of::kSlope] = slope.at(j, columns);
                formula.row[Of::kOffset] = offset.at(j, columns);
                formula.row[Of::kScale] = scale.at(j, columns);
                if constexpr (requires { formula.weight; }) {
                    formula.weight = counts.weight(j, columns);
                }
                formula(in, made);
            };
            counts.each != nullptr ? by_formula(WeightedGradient<Pack<C>>{})
                                   : by_formula(Gradient<Pack<C>>{});
            write_pack_of_run(dx + j, columns, streamed, only_set(counted, made[0]));
            if (dresidual != nullptr) {
                write_pack_of_run(dresidual + j, columns, streamed, only_set(counted, of_g));
            }
        });
    };
    for_each_piece(n, streams ? values_to_boundary(dx, n) : 0, streams, write);
}

// One of both, by the pass.
template <class Formula, class T, class Rows>
BNEXT_FORCE_INLINE void write_counted_values(const ActivatedRun<T>& run, const Rows& rows,
                                             const CountedRun<Compute<T>>& counts, Index n,
                                             bool streams, const CoefficientsIn<Compute<T>>& all,
                                             FlagWriter& flags) {
    if constexpr (Formula::kFlags == Flags::written) {
        write_counted_run_activated(run, rows, counts, n, streams,
                                    all.weights->outside == Outside::unchanged, *all.activated,
                                    flags);
    } else {
        write_counted_run_gradients(run, rows, counts, n, streams, *all.activated);
    }
}

template <class Formula, class T>
void write_counted_activated_planar(const View<const T>* in, const View<T>* out,
                                    const Region& region, const CoefficientsIn<Compute<T>>& all,
                                    const Access& access) {
    const Weights<Compute<T>>& weights = *all.weights;
    FlagWriter flags(all.activated->flags);
    RowsOfRun<Formula, Compute<T>> rows;
    const auto write = [&](Index o, Index c, Index, Index i, Index n) BNEXT_INLINE_LAMBDA {
        ActivatedRun<T> run{};
        T* begins[Formula::kWrites];
        unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
            run.in[r] = at(in[r], o, c, 0) + i;
            if (access.ahead != 0) run.ahead[r] = run_ahead(in[r], region, access, o, c, i);
        });
        unrolled<Formula::kWrites>(
            [&](auto w) BNEXT_INLINE_LAMBDA { run.out[w] = begins[w] = at(out[w], o, c, 0) + i; });
        run.flag = all.activated->flags.at(o, c, i);
        rows.set_channel(all, c - region.channels.begin);
        const bool streams =
            access.stores == Stores::streaming && n >= 2 * kPiece && begin_alike(begins);
        write_counted_values<Formula>(run, rows, {weights, weights.number(o, i), false}, n, streams,
                                      all, flags);
    };
    for_each_written_plane(region, false, write);
    flags.finish();
    if (access.stores == Stores::streaming) fence();
}

template <class Formula, class T>
void write_counted_activated_interleaved(const View<const T>* in, const View<T>* out,
                                         const Region& region,
                                         const CoefficientsIn<Compute<T>>& all,
                                         const Access& access) {
    const Weights<Compute<T>>& weights = *all.weights;
    const bool unchanged =
        Formula::kFlags == Flags::written && weights.outside == Outside::unchanged;
    const Index width = region.channels.size(), first = region.channels.begin;
    FlagWriter flags(all.activated->flags);
    RowsOfRun<Formula, Compute<T>> rows;
    rows.set_columns(all);
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = region.tiling->tile(t);
        for_each_row_block(tile, 1, [&](Index o, Index i, Index) BNEXT_INLINE_LAMBDA {
            ActivatedRun<T> run{};
            T* begins[Formula::kWrites];
            unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
                run.in[r] = at(in[r], o, 0, i) + first;
                run.ahead[r] = run.in[r] + 4 * row_pitch(in[r], tile);
            });
            unrolled<Formula::kWrites>([&](auto w) BNEXT_INLINE_LAMBDA {
                run.out[w] = begins[w] = at(out[w], o, 0, i) + first;
            });
            const bool streams =
                access.stores == Stores::streaming && width >= kPiece && begin_alike(begins);
            if (weights.counts(o, i)) {
                run.flag = all.activated->flags.at(o, 0, i) + first;
                write_counted_values<Formula>(run, rows, {weights, weights.number(o, i), true},
                                              width, streams, all, flags);
                return;
            }
            const Index head = streams ? values_to_boundary(begins[0], width) : 0;
            for_each_piece(width, head, streams,
                           [&](Index begin, Index end, bool streamed) BNEXT_INLINE_LAMBDA {
                               const int outputs =
                                   all.activated->fused.residual ? Formula::kWrites : 1;
                               for (int w = 0; w < outputs; ++w) {
                                   write_others(run.out[w], unchanged ? run.in[0] : nullptr, begin,
                                                end, streamed);
                               }
                           });
        });
    }
    flags.finish();
    if (access.stores == Stores::streaming) fence();
}
