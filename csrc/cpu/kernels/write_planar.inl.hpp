// How the second phase writes: every output value is a formula of the inputs' values at the same
// place and of its channel's coefficients. A formula is a class with
//     Coefficients                       rows of coefficients, one value per channel
//     from(coefficients, get)            a formula, its packs got by get(row)
//     across(n, a, b)                    a's first n lanes, and b's others
//     operator()(values...)              the output's values
// apply_norm and backward_apply only say what that is.
//
// Here: planar regions, contiguous planes of a block of channels as one piece of memory.

template <class Formula, class Coefficients>
BNEXT_FORCE_INLINE Formula formula_of_channel(const Coefficients& all, Index k) {
    return Formula::from(all,
                         [&](const auto* row) BNEXT_INLINE_LAMBDA { return broadcast(row[k]); });
}

// The run that the caller will read first when this one, among the last, is written: outer runs are
// read upwards and written downwards. Without anything ahead, the run itself, which costs nothing.
template <class T>
BNEXT_FORCE_INLINE const T* run_ahead(const View<const T>& view, const Region& region,
                                      const Access& access, Index o, Index c, Index i) {
    const Index outer = access.ahead == 0 ? o : region.tiling->outer() - 1 - o;
    return at(view, outer, c + access.ahead, 0) + i;
}

// An input, and what will be read first when this run is written.
template <class T>
struct RunInput {
    const T* values;
    const T* ahead;
};

// Writes `planes` planes of n values each, of channels k, k + 1, ... of the coefficients, that
// follow each other without a gap, in `out` as in the inputs. Where there are several, n is at
// least a unit. Between its ends all is written by whole units, on boundaries of lines: a unit in
// which one plane ends and the next begins has a formula blended of both.
template <bool kStreams, class Formula, class T, class... In>
BNEXT_FORCE_INLINE void write_planes(T* out, Index planes, Index n,
                                     const typename Formula::Coefficients& all, Index k,
                                     const In&... in) {
    using C = Compute<T>;
    constexpr Index kStep = 2 * kLanes;
    const Index total = planes * n;
    Formula formula = formula_of_channel<Formula>(all, k);
    const auto whole = [&](Index j) BNEXT_INLINE_LAMBDA {
        write_unit<kStreams>(out + j, [&](auto h) BNEXT_INLINE_LAMBDA {
            return formula(load_of_unit<h>(in.values + j)...);
        });
    };
    // Up to a unit of single values.
    const auto some = [&](Index j, Index end) BNEXT_INLINE_LAMBDA {
        if (j + kLanes <= end) {
            store(out + j, formula(load(in.values + j)...));
            j += kLanes;
        }
        if (j < end) {
            const int m = static_cast<int>(end - j);
            store_first(out + j, m, formula(load_first(in.values + j, m, C{0})...));
        }
    };
    Index j = 0;
    if (kStreams || planes > 1) {
        j = values_to_boundary(out, total);
        some(0, j);
    }
    for (Index end = n;; end += n) {
        for (; j + kStep <= end; j += kStep) {
            (prefetch_packs<2>(in.ahead + j), ...);
            unrolled<2 / kUnitPacks<T>>([&](auto u)
                                            BNEXT_INLINE_LAMBDA { whole(j + u * kUnit<T>); });
        }
        for (; j + kUnit<T> <= end; j += kUnit<T>) whole(j);
        if (end == total) break;
        const Formula next = formula_of_channel<Formula>(all, ++k);
        if (j < end) {
            const int m = static_cast<int>(end - j);
            write_unit<kStreams>(out + j, [&](auto h) BNEXT_INLINE_LAMBDA {
                const Formula both = Formula::across(lanes_of_first<T>(m, h), formula, next);
                return both(load_of_unit<h>(in.values + j)...);
            });
            j += kUnit<T>;
        }
        formula = next;
    }
    some(j, total);
}

// The second phase over a planar region: tiles from the last to the first, so that what the first
// phase read last, and the cache still holds, comes first. Elementwise, so the order changes no
// bit.
template <class Formula, class T, class... In>
BNEXT_FORCE_INLINE void write_planar(const View<T>& out, const Region& region,
                                     const typename Formula::Coefficients& all,
                                     const Access& access, const In&... in) {
    const Tiling& tiling = *region.tiling;
    const Index plane = tiling.inner();
    const bool joined = plane >= kUnit<T> && out.stride.channel == plane && out.stride.inner == 1 &&
                        ((in.stride.channel == plane) && ...);
    const auto write = [&](Index o, Index c, Index planes, Index i, Index n) BNEXT_INLINE_LAMBDA {
        T* const p = at(out, o, c, 0) + i;
        const Index k = c - region.channels.begin;
        const auto input = [&](const View<const T>& view) BNEXT_INLINE_LAMBDA {
            return RunInput<T>{at(view, o, c, 0) + i, run_ahead(view, region, access, o, c, i)};
        };
        access.stores == Stores::streaming
            ? write_planes<true, Formula>(p, planes, n, all, k, input(in)...)
            : write_planes<false, Formula>(p, planes, n, all, k, input(in)...);
    };
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = tiling.tile(t);
        Index i = tile.inner_begin;  // pieces of one plane are written as one
        while (i > 0 && t > region.tiles.begin) i = tiling.tile(--t).inner_begin;
        const Index n = tile.inner_end - i;
        for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
            if (joined && n == plane) {
                write(o, region.channels.begin, region.channels.size(), 0, n);
                continue;
            }
            for (Index c = region.channels.begin; c < region.channels.end; ++c) {
                write(o, c, 1, i, n);
            }
        }
    }
    if (access.stores == Stores::streaming) fence();
}
