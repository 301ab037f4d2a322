// How the second phase writes: at every place, a formula (core/formulas.hpp) of the inputs' values
// there and of the channel's coefficients.
//
// Here: planar regions, contiguous planes of a block of channels as one piece of memory.

// A formula whose packs are got by get(row of coefficients).
template <class Formula, class C, class Get>
BNEXT_FORCE_INLINE Formula formula_from(const CoefficientsIn<C>& all, Get&& get) {
    Formula formula;
    unrolled<Formula::kRows>([&](auto r) BNEXT_INLINE_LAMBDA { formula.row[r] = get(all.row[r]); });
    return formula;
}

template <class Formula, class C>
BNEXT_FORCE_INLINE Formula formula_of_channel(const CoefficientsIn<C>& all, Index k) {
    return formula_from<Formula>(
        all, [&](const C* row) BNEXT_INLINE_LAMBDA { return broadcast(row[k]); });
}

// The first n lanes by formula a, the others by b.
template <class Formula>
BNEXT_FORCE_INLINE Formula across(int n, const Formula& a, const Formula& b) {
    Formula both;
    unrolled<Formula::kRows>(
        [&](auto r) BNEXT_INLINE_LAMBDA { both.row[r] = blend(n, a.row[r], b.row[r]); });
    return both;
}

// Loads a pack of each input by load(i), and stores a pack of each output by store(w, pack). What
// flags are made of, if the formula writes any, goes to `for_flags`.
template <class Formula, class Load, class Store, class V>
BNEXT_FORCE_INLINE void write_pack(const Formula& formula, Load&& load, Store&& store,
                                   V& for_flags) {
    V in[Formula::kReads], out[Formula::kWrites];
    unrolled<Formula::kReads>([&](auto i) BNEXT_INLINE_LAMBDA { in[i] = load(i); });
    if constexpr (Formula::kFlags == Flags::written) {
        formula(in, out, for_flags);
    } else {
        formula(in, out);
    }
    unrolled<Formula::kWrites>([&](auto w) BNEXT_INLINE_LAMBDA { store(w, out[w]); });
}

// The same of a unit: pack h by formula_of(h), its inputs by load(i, h), to to(w); its flags
// at flags().
template <bool kStreams, class Formula, class T, class FormulaOfPack, class Load, class To,
          class FlagsAt>
BNEXT_FORCE_INLINE void write_unit_by(FormulaOfPack&& formula_of, Load&& load, To&& to,
                                      FlagsAt&& flags) {
    Pack<Compute<T>> made[Formula::kWrites][kUnitPacks<T>], for_flags[kUnitPacks<T>];
    unrolled<kUnitPacks<T>>([&](auto h) BNEXT_INLINE_LAMBDA {
        write_pack(
            formula_of(h), [&](auto i) BNEXT_INLINE_LAMBDA { return load(i, h); },
            [&](auto w, const auto& pack) BNEXT_INLINE_LAMBDA { made[w][h] = pack; }, for_flags[h]);
    });
    if constexpr (Formula::kFlags == Flags::written) flags().put_unit(bits_of_unit(for_flags));
    unrolled<Formula::kWrites>([&](auto w) BNEXT_INLINE_LAMBDA {
        write_unit<kStreams>(static_cast<T*>(to(w)),
                             [&](auto h) BNEXT_INLINE_LAMBDA { return made[w][h]; });
    });
}

// Whether lines of all outputs begin at the same places.
template <int kWrites, class T>
BNEXT_FORCE_INLINE bool begin_alike(T* const (&out)[kWrites]) {
    for (int w = 1; w < kWrites; ++w) {
        if (values_to_boundary(out[w], 64) != values_to_boundary(out[0], 64)) return false;
    }
    return true;
}

// The run that the caller will read first when this one, among the last, is written: outer runs are
// read upwards and written downwards. Without anything ahead, the run itself, which costs nothing.
template <class T>
BNEXT_FORCE_INLINE const T* run_ahead(const View<const T>& view, const Region& region,
                                      const Access& access, Index o, Index c, Index i) {
    const Index outer = access.ahead == 0 ? o : region.tiling->outer() - 1 - o;
    return at(view, outer, c + access.ahead, 0) + i;
}

// Runs of the inputs and outputs, and of the flags of formulas that have any.
template <class Formula, class T>
struct Runs {
    const T* in[Formula::kReads];
    T* out[Formula::kWrites];
    [[no_unique_address]] FlagPlaceOf<Formula> flags;
};

// Pack h of the unit of input i at p. Of formulas that read flags, the last input is what they
// choose of: the others are 0.
template <class Formula, int i, int h, class T, class FlagsAt>
BNEXT_FORCE_INLINE Pack<Compute<T>> load_input_of_unit(const T* p, FlagsAt&& flags) {
    if constexpr (Formula::kFlags == Flags::read && i + 1 == Formula::kReads) {
        return load_of_unit_where<h>(p, flags());
    } else {
        return load_of_unit<h>(p);
    }
}
template <class Formula, int i, class T, class FlagsAt>
BNEXT_FORCE_INLINE Pack<Compute<T>> load_input(const T* p, int columns, FlagsAt&& flags) {
    const auto values = load_columns(p, columns);
    if constexpr (Formula::kFlags == Flags::read && i + 1 == Formula::kReads) {
        return where_set(flags().pack(), values, broadcast(Compute<T>{0}));
    } else {
        return values;
    }
}

// The unit at j of runs, pack h by formula_of(h).
template <bool kStreams, class Formula, class T, class FormulaOfPack>
BNEXT_FORCE_INLINE void write_unit_at(const Runs<Formula, T>& runs, Index j,
                                      FormulaOfPack&& formula_of) {
    const auto flags = [&]() BNEXT_INLINE_LAMBDA { return runs.flags.at(j); };
    write_unit_by<kStreams, Formula, T>(
        formula_of,
        [&](auto i, auto h) BNEXT_INLINE_LAMBDA {
            return load_input_of_unit<Formula, i, h>(runs.in[i] + j, flags);
        },
        [&](auto w) BNEXT_INLINE_LAMBDA { return runs.out[w] + j; }, flags);
}
// A pack of which the first `columns` values exist (0: all): the inputs at from(i), to to(w).
template <bool kStreams, class Formula, class T, class From, class To, class FlagsAt>
BNEXT_FORCE_INLINE void write_pack_by(const Formula& formula, int columns, From&& from, To&& to,
                                      FlagsAt&& flags) {
    Pack<Compute<T>> for_flags;
    write_pack(
        formula,
        [&](auto i) BNEXT_INLINE_LAMBDA {
            return load_input<Formula, i>(static_cast<const T*>(from(i)), columns, flags);
        },
        [&](auto w, const auto& pack) BNEXT_INLINE_LAMBDA {
            T* const p = to(w);
            kStreams ? stream(p, pack) : store_columns(p, columns, pack);
        },
        for_flags);
    if constexpr (Formula::kFlags == Flags::written) {
        flags().put(bits_above_zero(for_flags), lanes_in(columns));
    }
}
// The pack at j, or the first `columns` values of it (0: all).
template <class Formula, class T>
BNEXT_FORCE_INLINE void write_pack_at(const Runs<Formula, T>& runs, Index j, int columns,
                                      const Formula& formula) {
    write_pack_by<false, Formula, T>(
        formula, columns, [&](auto i) BNEXT_INLINE_LAMBDA { return runs.in[i] + j; },
        [&](auto w) BNEXT_INLINE_LAMBDA { return runs.out[w] + j; },
        [&]() BNEXT_INLINE_LAMBDA { return runs.flags.at(j); });
}

// Writes `planes` planes of n values each, of channels k, k + 1, ... of the coefficients, that
// follow each other without a gap, in the outputs as in the inputs. Where there are several, n is
// at least a unit. Between its ends all is written by whole units, on boundaries of lines: a unit
// in which one plane ends and the next begins has a formula blended of both.
template <bool kStreams, class Formula, class T>
BNEXT_FORCE_INLINE void write_planes(const Runs<Formula, T> runs,
                                     const T* const (&ahead)[Formula::kReads], Index planes,
                                     Index n, const CoefficientsIn<Compute<T>>& all, Index k) {
    constexpr Index kStep = 2 * kLanes;
    const Index total = planes * n;
    Formula formula = formula_of_channel<Formula>(all, k);
    const auto whole = [&](Index j) BNEXT_INLINE_LAMBDA {
        write_unit_at<kStreams>(
            runs, j, [&](auto) BNEXT_INLINE_LAMBDA -> const Formula& { return formula; });
    };
    // Up to a unit of single values.
    const auto some = [&](Index j, Index end) BNEXT_INLINE_LAMBDA {
        if (j + kLanes <= end) {
            write_pack_at(runs, j, 0, formula);
            j += kLanes;
        }
        if (j < end) write_pack_at(runs, j, static_cast<int>(end - j), formula);
    };
    Index j = 0;
    if (kStreams || planes > 1) {
        j = values_to_boundary(runs.out[0], total);
        some(0, j);
    }
    for (Index end = n;; end += n) {
        for (; j + kStep <= end; j += kStep) {
            unrolled<Formula::kReads>([&](auto i)
                                          BNEXT_INLINE_LAMBDA { prefetch_packs<2>(ahead[i] + j); });
            unrolled<2 / kUnitPacks<T>>([&](auto u)
                                            BNEXT_INLINE_LAMBDA { whole(j + u * kUnit<T>); });
        }
        for (; j + kUnit<T> <= end; j += kUnit<T>) whole(j);
        if (end == total) break;
        const Formula next = formula_of_channel<Formula>(all, ++k);
        if (j < end) {
            const int m = static_cast<int>(end - j);
            write_unit_at<kStreams>(runs, j, [&](auto h) BNEXT_INLINE_LAMBDA {
                return across(lanes_of_first<T>(m, h), formula, next);
            });
            j += kUnit<T>;
        }
        formula = next;
    }
    some(j, total);
}

// Calls write(o, c, planes, i, n) for all of a region: n values from i on of so many planes from
// (o, c) on, of several where planes are `joined`. Tiles go from the last to the first, so that
// what the first phase read last, and the cache still holds, comes first.
template <class F>
BNEXT_FORCE_INLINE void for_each_written_plane(const Region& region, bool joined, F&& write) {
    const Tiling& tiling = *region.tiling;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = tiling.tile(t);
        Index i = tile.inner_begin;  // pieces of one plane are written as one
        while (i > 0 && t > region.tiles.begin) i = tiling.tile(--t).inner_begin;
        const Index n = tile.inner_end - i;
        for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
            if (joined && n == tiling.inner()) {
                write(o, region.channels.begin, region.channels.size(), Index{0}, n);
                continue;
            }
            for (Index c = region.channels.begin; c < region.channels.end; ++c) {
                write(o, c, Index{1}, i, n);
            }
        }
    }
}

// The second phase over a planar region. Elementwise, so the order changes no bit.
template <class Formula, class T>
void write_planar(const View<const T>* in, const View<T>* out, const Region& region,
                  const CoefficientsIn<Compute<T>>& all, const Access& access) {
    const Index plane = region.tiling->inner();
    bool joined = plane >= kUnit<T> && out[0].stride.inner == 1;
    for (int i = 0; i < Formula::kReads; ++i) joined = joined && in[i].stride.channel == plane;
    for (int w = 0; w < Formula::kWrites; ++w) joined = joined && out[w].stride.channel == plane;
    const auto write = [&](Index o, Index c, Index planes, Index i, Index n) BNEXT_INLINE_LAMBDA {
        const Index k = c - region.channels.begin;
        Runs<Formula, T> runs;
        const T* ahead[Formula::kReads];
        unrolled<Formula::kReads>([&](auto r) BNEXT_INLINE_LAMBDA {
            runs.in[r] = at(in[r], o, c, 0) + i;
            // Of what the second phase alone reads, the next run that it writes.
            ahead[r] = r < Formula::kSummed ? run_ahead(in[r], region, access, o, c, i)
                                            : at(in[r], o > 0 ? o - 1 : o, c, 0) + i;
        });
        runs.flags = FlagPlaceOf<Formula>(all.activated, o, c, i).of_run(planes * n);
        unrolled<Formula::kWrites>(
            [&](auto w) BNEXT_INLINE_LAMBDA { runs.out[w] = at(out[w], o, c, 0) + i; });
        const bool streams = access.stores == Stores::streaming && begin_alike(runs.out);
        streams ? write_planes<true>(runs, ahead, planes, n, all, k)
                : write_planes<false>(runs, ahead, planes, n, all, k);
    };
    for_each_written_plane(region, joined, write);
    if (access.stores == Stores::streaming) fence();
}
