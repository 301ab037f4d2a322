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

// The pack of weights where a plane ends after m values and the same positions begin again.
template <class C>
BNEXT_FORCE_INLINE Pack<C> weights_across(const C* end, const C* begin, int m) {
    alignas(64) C values[2 * kLanes];
    store(values, load_first(end, m, C{0}));
    store(values + m, load_first(begin, kLanes - m, C{0}));
    return load(values);
}

// Writes `planes` planes of n values each, as write_planes does, the first value of each at the
// position of that number. Between its ends all is written by whole packs, streamed ones by whole
// lines: where each plane began and ended with a part of a line, this took twice as long (planes of
// 2 KiB, Zen 4), since a line that is not in a cache keeps the streamed ones behind it waiting.
// Whether packs are streamed is a number and no parameter of the template, and whole packs, ends
// and the packs between two planes are written once each: as seven pieces of code for either kind
// of store, this function was an eighth of the module.
template <class Formula, class T>
BNEXT_FORCE_INLINE void write_counted_planes(const Runs<Formula, T> runs,
                                             const T* const (&ahead)[Formula::kReads], Index planes,
                                             Index n, Index number, bool streams,
                                             const CoefficientsIn<Compute<T>>& all, Index k) {
    using C = Compute<T>;
    static_assert(Formula::kWrites == 1);
    const Weights<C>& weights = *all.weights;
    const bool unchanged = weights.outside == Outside::unchanged;
    const FlagBits bits = weights.bits;
    const C* const each = weights.each != nullptr ? weights.each + number : nullptr;
    // The pack at j, or the first `columns` values of it (0: all), of which these count.
    const auto write = [&](Index j, int columns, bool in_line, unsigned counted,
                           const auto& formula) BNEXT_INLINE_LAMBDA {
        Pack<C> made[1] = {broadcast(C{0})};
        if (counted != 0 || unchanged) {
            Pack<C> in[Formula::kReads];
            unrolled<Formula::kReads>(
                [&](auto i) BNEXT_INLINE_LAMBDA { in[i] = load_columns(runs.in[i] + j, columns); });
            const Pack<C> outside = unchanged ? in[0] : made[0];
            formula(in, made);
            made[0] = where_set(counted, made[0], outside);
        }
        in_line ? stream(runs.out[0] + j, made[0])
                : store_columns(runs.out[0] + j, columns, made[0]);
    };
    const Index total = planes * n;
    const Index head = streams ? values_to_boundary(runs.out[0], total) : 0;
    Formula formula = formula_of_channel<Formula>(all, k);
    Index begin = 0;  // of the plane
    const auto some = [&](Index j, int columns, bool in_line) BNEXT_INLINE_LAMBDA {
        if constexpr (requires { formula.weight; }) {
            formula.weight = load_columns(each + (j - begin), columns);
        }
        write(j, columns, in_line, counted_bits(bits, number + (j - begin), columns), formula);
    };
    Index j = 0;
    for (;;) {
        const Index end = begin + n;
        while (j < end) {
            const bool in_line = streams && j >= head;
            const Index stop = j < head ? head : end;
            for (; j + kLanes <= stop; j += kLanes) {
                unrolled<Formula::kReads>(
                    [&](auto i) BNEXT_INLINE_LAMBDA { prefetch_packs<1>(ahead[i] + j); });
                some(j, 0, in_line);
            }
            if (stop == end && end != total) break;
            if (j < stop) some(j, static_cast<int>(stop - j), false);
            j = stop;
        }
        if (end == total) return;
        const Formula next = formula_of_channel<Formula>(all, ++k);
        if (j < end) {
            const int m = static_cast<int>(end - j);
            Formula both = across(m, formula, next);
            if constexpr (requires { both.weight; }) {
                both.weight = weights_across(each + (j - begin), each, m);
            }
            const unsigned counted = counted_bits(bits, number + (j - begin), m) |
                                     counted_bits(bits, number, kLanes - m) << m;
            write(j, 0, streams, counted, both);
            j += kLanes;
        }
        formula = next;
        begin = end;
    }
}

template <class Formula, class T>
void write_counted_planar(const View<const T>* in, const View<T>* out, const Region& region,
                          const CoefficientsIn<Compute<T>>& all, const Access& access) {
    constexpr Index kLongRun = 2048;  // bytes: too much of a shorter one would not be whole lines
    const Weights<Compute<T>>& weights = *all.weights;
    const bool streaming = access.stores == Stores::streaming;
    const Index plane = region.tiling->inner();
    bool joined = streaming && plane >= kUnit<T> && out[0].stride.inner == 1 &&
                  out[0].stride.channel == plane;
    for (int i = 0; i < Formula::kReads; ++i) joined = joined && in[i].stride.channel == plane;
    for_each_written_plane(
        region, joined, [&](Index o, Index c, Index planes, Index i, Index n) BNEXT_INLINE_LAMBDA {
            Runs<Formula, T> runs;
            const T* ahead[Formula::kReads];
            unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
                runs.in[r] = at(in[r], o, c, 0) + i;
                ahead[r] = run_ahead(in[r], region, access, o, c, i);
            });
            runs.out[0] = at(out[0], o, c, 0) + i;
            const Index number = weights.number(o, i), k = c - region.channels.begin;
            const Index bytes = n * static_cast<Index>(sizeof(T));
            const bool in_lines = joined || bytes >= kLongRun ||
                                  (bytes % 64 == 0 && values_to_boundary(runs.out[0], n) == 0);
            write_counted_planes(runs, ahead, planes, n, number, streaming && in_lines, all, k);
        });
    if (streaming) fence();
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
