// The second phase over positions of which not all count (cpu/weights.hpp): a formula where they
// do; where they do not, 0 or what the first input has there. Elementwise, so the order changes no
// bit.

// The formula by which positions of different weights are written.
template <class Formula>
struct WeightedOf {
    using type = Formula;
};
template <class V>
struct WeightedOf<Gradient<V>> {
    using type = WeightedGradient<V>;
};

// --- planar -------------------------------------------------------------------------------------

// n values of a plane, the first at the position of that number. `ahead` as in write_planes. Inline,
// so that pointers stay in registers: a copy of them in memory is read as a vector, which waits
// until the streamed stores of the plane before have left the processor.
template <bool kStreams, class Formula, class T>
BNEXT_FORCE_INLINE void write_counted_run(const Runs<Formula, T> runs,
                                          const T* const (&ahead)[Formula::kReads], Index n,
                                          Index number, const Weights<Compute<T>>& weights,
                                          Formula formula) {
    using C = Compute<T>;
    static_assert(Formula::kWrites == 1);
    const bool unchanged = weights.outside == Outside::unchanged;
    const FlagBits bits = weights.bits;
    const C* const each = weights.each;
    const auto some = [&](Index j, int columns, auto streams) BNEXT_INLINE_LAMBDA {
        const unsigned counted = counted_bits(bits, number + j, columns);
        Pack<C> made[1] = {broadcast(C{0})};
        if (counted != 0 || unchanged) {
            Pack<C> in[Formula::kReads];
            unrolled<Formula::kReads>(
                [&](auto i) BNEXT_INLINE_LAMBDA { in[i] = load_columns(runs.in[i] + j, columns); });
            const Pack<C> outside = unchanged ? in[0] : made[0];
            if constexpr (requires { formula.weight; }) {
                formula.weight = load_columns(each + number + j, columns);
            }
            formula(in, made);
            made[0] = where_set(counted, made[0], outside);
        }
        streams ? stream(runs.out[0] + j, made[0])
                : store_columns(runs.out[0] + j, columns, made[0]);
    };
    const auto whole = [&](Index j) BNEXT_INLINE_LAMBDA { some(j, 0, Number<kStreams>{}); };
    Index j = 0;
    if (kStreams) {
        const Index head = values_to_boundary(runs.out[0], n);
        for (; j + kLanes <= head; j += kLanes) some(j, 0, Number<0>{});
        if (j < head) some(j, static_cast<int>(head - j), Number<0>{});
        j = head;
    }
    for (; j + 2 * kLanes <= n; j += 2 * kLanes) {
        unrolled<Formula::kReads>([&](auto i)
                                      BNEXT_INLINE_LAMBDA { prefetch_packs<2>(ahead[i] + j); });
        whole(j);
        whole(j + kLanes);
    }
    if (j + kLanes <= n) {
        some(j, 0, Number<0>{});
        j += kLanes;
    }
    if (j < n) some(j, static_cast<int>(n - j), Number<0>{});
}

template <class Formula, class T>
void write_counted_planar(const View<const T>* in, const View<T>* out, const Region& region,
                          const CoefficientsIn<Compute<T>>& all, const Access& access) {
    constexpr Index kLongRun = 2048;  // bytes: too much of a shorter one would not be whole lines
    const Weights<Compute<T>>& weights = *all.weights;
    for_each_written_plane(
        region, false, [&](Index o, Index c, Index, Index i, Index n) BNEXT_INLINE_LAMBDA {
            Runs<Formula, T> runs;
            const T* ahead[Formula::kReads];
            unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
                runs.in[r] = at(in[r], o, c, 0) + i;
                ahead[r] = run_ahead(in[r], region, access, o, c, i);
            });
            runs.out[0] = at(out[0], o, c, 0) + i;
            const auto formula = formula_of_channel<Formula>(all, c - region.channels.begin);
            const Index bytes = n * static_cast<Index>(sizeof(T));
            const bool in_lines =
                bytes >= kLongRun || (bytes % 64 == 0 && values_to_boundary(runs.out[0], n) == 0);
            access.stores == Stores::streaming&& in_lines
                ? write_counted_run<true>(runs, ahead, n, weights.number(o, i), weights, formula)
                : write_counted_run<false>(runs, ahead, n, weights.number(o, i), weights, formula);
        });
    if (access.stores == Stores::streaming) fence();
}

// --- interleaved --------------------------------------------------------------------------------

// Calls f(r) for the rows whose bits are set.
template <class F>
BNEXT_FORCE_INLINE void for_each_set(unsigned bits, F&& f) {
    for (; bits != 0; bits &= bits - 1) f(static_cast<Index>(__builtin_ctz(bits)));
}

// A block of `count` rows, of which those with set bits count; columns [begin, end).
template <bool kStreams, class Formula, class T>
BNEXT_NO_INLINE void write_counted_rows(const Rows<Formula, T>& given, Index count, unsigned bits,
                                        const Compute<T>* each, bool unchanged, Index begin,
                                        Index end, const CoefficientsIn<Compute<T>>& all) {
    const Rows<Formula, T> rows = given;
    const unsigned others = ~bits & ((1U << count) - 1U);
    for_each_column_group<kGroupPacks>(
        end - begin, [&](auto packs, Index k, int columns) BNEXT_INLINE_LAMBDA {
            const Index c = begin + k;
            FormulaGroup<Formula, T, packs> formulas(all, c, columns);
            for_each_set(bits, [&](Index r) BNEXT_INLINE_LAMBDA {
                if constexpr (kStreams) {
                    unrolled<Formula::kReads>([&](auto i) BNEXT_INLINE_LAMBDA {
                        const auto& in = rows.in[i];
                        prefetch_next_block<packs>(in.first, in.pitch, false, count, r, c);
                    });
                }
                if constexpr (requires { formulas.pack[0].weight; }) {
                    const Pack<Compute<T>> weight = broadcast(each[r]);
                    unrolled<packs>([&](auto g)
                                        BNEXT_INLINE_LAMBDA { formulas.pack[g].weight = weight; });
                }
                write_group<kStreams>(rows, formulas, r, c, columns);
            });
            for_each_set(others, [&](Index r) BNEXT_INLINE_LAMBDA {
                const T* const from = rows.in[0].first + r * rows.in[0].pitch + c;
                T* const to = rows.out[0].first + r * rows.out[0].pitch + c;
                unrolled<packs>([&](auto g) BNEXT_INLINE_LAMBDA {
                    const auto pack = unchanged ? load_columns(from + g * kLanes, columns)
                                                : broadcast(Compute<T>{0});
                    kStreams ? stream(to + g * kLanes, pack)
                             : store_columns(to + g * kLanes, columns, pack);
                });
            });
        });
}

template <class Formula, class T>
void write_counted_interleaved(const View<const T>* in, const View<T>* out, const Region& region,
                               const CoefficientsIn<Compute<T>>& all, const Access& access) {
    const Weights<Compute<T>>& weights = *all.weights;
    const bool unchanged = weights.outside == Outside::unchanged;
    const Index width = region.channels.size(), first = region.channels.begin;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = region.tiling->tile(t);
        const bool in_lines = access.stores == Stores::streaming && width >= 2 * kLanes &&
                              row_pitch(out[0], tile) * static_cast<Index>(sizeof(T)) % 64 == 0;
        for_each_row_block(
            tile, kWrittenRows, [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
                Rows<Formula, T> rows;
                unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
                    rows.in[r] = {at(in[r], o, 0, i) + first, row_pitch(in[r], tile), false};
                });
                rows.out[0] = {at(out[0], o, 0, i) + first, row_pitch(out[0], tile)};
                const Index number = weights.number(o, i);
                const unsigned bits =
                    counted_bits(weights.bits, number, static_cast<int>(count % kLanes));
                const Compute<T>* const each =
                    weights.each != nullptr ? weights.each + number : nullptr;
                const auto write = [&](auto streams, Index begin, Index end) BNEXT_INLINE_LAMBDA {
                    write_counted_rows<streams != 0>(rows, count, bits, each, unchanged, begin, end,
                                                     all);
                };
                if (!in_lines) return write(Number<0>{}, 0, width);
                const Index head = values_to_boundary(rows.out[0].first, width);
                const Index tail = head + (width - head) / kLanes * kLanes;
                if (head > 0) write(Number<0>{}, 0, head);
                if (head < tail) write(Number<1>{}, head, tail);
                if (tail < width) write(Number<0>{}, tail, width);
            });
    }
    if (access.stores == Stores::streaming) fence();
}

// By the formula, or where positions have weights of their own, by the one that has them.
template <class Formula, class T, Layout L>
void write_weighted(const View<const T>* in, const View<T>* out, const Region& region,
                    const CoefficientsIn<Compute<T>>& all, const Access& access) {
    using Weighted = typename WeightedOf<Formula>::type;
    if (all.weights->each == nullptr) {
        return L == Layout::planar
                   ? write_counted_planar<Formula>(in, out, region, all, access)
                   : write_counted_interleaved<Formula>(in, out, region, all, access);
    }
    L == Layout::planar ? write_counted_planar<Weighted>(in, out, region, all, access)
                        : write_counted_interleaved<Weighted>(in, out, region, all, access);
}
