// The first phase over positions that count (cpu/weights.hpp), with their weights w:
//     forward:   sum w d, sum w d * d      d = x - pilot
//     backward:  sum dy, sum dy * d        d = x - mean; of the positions that count, whatever w
// n is the sum of the weights, of every tile known before.
//
// Walks, the order of sums and the bounds of errors: see sums.inl.hpp and collect_stats.inl.hpp.
// What differs:
//   - planes: a pack of which no position counts is not read. Of others, lanes that do not count
//     are selected away before they are added: 0 is added in their place.
//   - rows: those that do not count are not read. The others follow each other as if they were all.
//   - a pilot is a usual one of the tile's values that count, the median of three; it is improved
//     as ever.

// `a`, and 0 in lanes whose bits are not set, whatever a has there.
template <class C>
BNEXT_FORCE_INLINE Pack<C> only_set(unsigned bits, const Pack<C>& a) {
    return where_set(bits, a, broadcast(C{0}));
}

// The bits of n positions (0: 16) from that number on.
BNEXT_FORCE_INLINE unsigned counted_bits(const FlagBits& bits, Index number, int n) {
    const unsigned all = flags_from(bits, number);
    return n == 0 ? all : all & ((1U << n) - 1U);
}

// n weights (0: 16), in the type of sums.
template <class T>
BNEXT_FORCE_INLINE Pack<Sum<T>> load_weights(const Compute<T>* p, int n) {
    if constexpr (kIs16Bit<T>) {
        return load_columns(p, n);
    } else {
        return n == 0 ? load_wide(p) : widen(load_first(p, n, Compute<T>{0}));
    }
}

// The usual value of a channel among places that count, as usual_value (cpu/view.hpp) has it.
template <class T>
BNEXT_FORCE_INLINE double usual_of(const View<const T>& x, const UsualPlaces& usual, Index c) {
    const auto value = [&](const Place& place) BNEXT_INLINE_LAMBDA {
        return static_cast<Compute<T>>(*at(x, place.outer, c, place.inner));
    };
    return median_of(value(usual.first), value(usual.middle), value(usual.last));
}

// --- planar -------------------------------------------------------------------------------------

// As RunSums. `weighted`: whether positions have weights but 1.
template <class T, int kReads, bool kWeighted>
class CountedSums {
    using C = Sum<T>;
    static constexpr bool kInGroups = kReads == 1 || kIs16Bit<T>;

public:
    BNEXT_FORCE_INLINE explicit CountedSums(C center)
        : from_center_{broadcast(center)}, first_(broadcast(0.0)), second_(broadcast(0.0)) {
        clear();
    }
    // n values (0: 16) of each run, into accumulator H.
    template <int H>
    BNEXT_FORCE_INLINE void add(Number<H>, unsigned bits, const T* const (&run)[kReads], Index j,
                                int n, const Compute<T>* weights) {
        if constexpr (kReads == 2) {
            return add_packs(Number<H>{}, bits, load_sum(run[1] + j, n, C{0}),
                             load_sum(run[0] + j, n, C{0}));
        }
        const Pack<C> d = only_set(bits, from_center_(load_sum(run[0] + j, n, C{0})));
        if constexpr (kWeighted) {
            add_products(Number<H>{}, d * load_weights<T>(weights + j, n), d);
        } else {
            add_products(Number<H>{}, d, d);
        }
    }
    // Of two arrays: a pack of each, in registers.
    template <int H>
    BNEXT_FORCE_INLINE void add_packs(Number<H>, unsigned bits, const Pack<C>& dy,
                                      const Pack<C>& x) {
        add_products(Number<H>{}, only_set(bits, dy), only_set(bits, from_center_(x)));
    }
    BNEXT_FORCE_INLINE void end_of_group() {
        if constexpr (kInGroups) {
            first_ = first_ + widen(group_first_[0] + group_first_[1]);
            second_ = second_ + widen(group_second_[0] + group_second_[1]);
            clear();
        }
    }
    BNEXT_FORCE_INLINE double first() const { return sum_lanes(first_); }
    BNEXT_FORCE_INLINE double second() const { return sum_lanes(second_); }

private:
    template <int H>
    BNEXT_FORCE_INLINE void add_products(Number<H>, const Pack<C>& value, const Pack<C>& d) {
        if constexpr (kInGroups) {
            group_first_[H] = group_first_[H] + value;
            group_second_[H] = fma(value, d, group_second_[H]);
        } else {
            first_ = first_ + value;
            second_ = fma(value, d, second_);
        }
    }
    BNEXT_FORCE_INLINE void clear() {
        unrolled<2>([&](auto h) BNEXT_INLINE_LAMBDA {
            group_first_[h] = broadcast(C{0});
            group_second_[h] = broadcast(C{0});
        });
    }

    std::conditional_t<kReads == 1, Deviation<C>, Difference<C>> from_center_;
    Pack<C> group_first_[2], group_second_[2];
    Wide first_, second_;
};

// As add_tile.
template <int kReads, class T, class Sums>
BNEXT_FORCE_INLINE void add_counted_tile(const View<const T>* in, const Tiling& tiling,
                                         const Tile& tile, Index c,
                                         const Weights<Compute<T>>& weights, Sums& sums,
                                         Index& pending) {
    const Index n = tile.inner_end - tile.inner_begin;
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        const T* run[kReads];
        unrolled<kReads>(
            [&](auto i) BNEXT_INLINE_LAMBDA { run[i] = at(in[i], o, c, 0) + tile.inner_begin; });
        const Index number = weights.number(o, tile.inner_begin);
        const Compute<T>* const each = weights.each != nullptr ? weights.each + number : nullptr;
        const Lookahead<T, kReads> next(in, tiling, tile, o, c);
        Index j = 0;
        const auto some = [&](auto h, int values) BNEXT_INLINE_LAMBDA {
            const unsigned bits = counted_bits(weights.bits, number + j, values);
            if (bits != 0) sums.add(h, bits, run, j, values, each);
            j += kLanes;
        };
        const auto pair = [&]() BNEXT_INLINE_LAMBDA {
            next.prefetch_pair(j);
            some(Number<0>{}, 0);
            some(Number<1>{}, 0);
        };
        while (j + kGroup <= n) {
            const Index end = j + kGroup;
            while (j < end) pair();
            sums.end_of_group();
        }
        const Index rest = n - j;
        while (j + 2 * kLanes <= n) pair();
        if (j + kLanes <= n) some(Number<0>{}, 0);
        if (j < n) some(Number<1>{}, static_cast<int>(n - j));
        pending += in_group(rest);
        if (pending >= kGroup) {
            sums.end_of_group();
            pending = 0;
        }
    }
}

template <class T, bool kWeighted>
double planar_counted_stats(const View<const T>& x, const Region& region,
                            const Weights<Compute<T>>& weights, double* mean, double* m2) {
    const Tiling& tiling = *region.tiling;
    double values = 0;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const double origin = usual_of(x, weights.usual, c);
        Moments sum;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const TileOfWeights& of_tile = weights.tiles[t];
            const double n = of_tile.weight;
            if (n == 0.0) continue;
            const Tile tile = tiling.tile(t);
            const auto sums_about = [&](Sum<T> pilot) BNEXT_INLINE_LAMBDA {
                CountedSums<T, 1, kWeighted> sums(pilot);
                Index pending = 0;
                add_counted_tile<1>(&x, tiling, tile, c, weights, sums, pending);
                sums.end_of_group();
                return TileSums{sums.first(), sums.second()};
            };
            auto pilot = static_cast<Sum<T>>(usual_of(x, of_tile.usual, c));
            TileSums s{};
            for (bool again = false;; again = true) {  // a loop, so that it is compiled once
                s = sums_about(pilot);
                if (kAnyPilotWillDo<T> || again) break;
                if (!kLooksTwice<T> && !is_far(s.d, s.d2, 1.0 / n)) break;
                pilot = pilot_near<T>(static_cast<double>(pilot) + s.d / n);
            }
            const double share = s.d / n;
            const double tile_m2 = s.d2 - s.d * share;
            const double tile_mean = (static_cast<double>(pilot) - origin) + share;
            merge(sum, {n, tile_mean, tile_m2 < 0.0 ? 0.0 : tile_m2});
        }
        mean[c - region.channels.begin] = sum.mean;
        m2[c - region.channels.begin] = sum.m2;
        values = sum.count;
    }
    return values;
}

template <class T>
double planar_weighted_stats(const View<const T>* in, const Region& region, const double*,
                             const CoefficientsIn<Compute<T>>* by, double* mean, double* m2) {
    const Weights<Compute<T>>& weights = *by->weights;
    return weights.each != nullptr
               ? planar_counted_stats<T, true>(in[0], region, weights, mean, m2)
               : planar_counted_stats<T, false>(in[0], region, weights, mean, m2);
}

// The weights of a region together.
template <class C>
BNEXT_FORCE_INLINE double weight_of(const Region& region, const Weights<C>& weights) {
    double sum = 0;
    for (Index t = region.tiles.begin; t < region.tiles.end; ++t) sum += weights.tiles[t].weight;
    return sum;
}

template <class T>
double planar_weighted_reduce(const View<const T>* in, const Region& region, const double* mean,
                              const CoefficientsIn<Compute<T>>* by, double* sum_dy,
                              double* sum_dy_xmu) {
    const Weights<Compute<T>>& weights = *by->weights;
    const Tiling& tiling = *region.tiling;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        const auto center = static_cast<Sum<T>>(mean[k]);
        CountedSums<T, 2, false> sums(center);
        Index pending = 0;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            if (weights.tiles[t].weight == 0.0) continue;
            add_counted_tile<2>(in, tiling, tiling.tile(t), c, weights, sums, pending);
        }
        sums.end_of_group();
        sum_dy[k] = sums.first();
        sum_dy_xmu[k] = sums.second();
        if constexpr (kIs16Bit<T>) {
            sum_dy_xmu[k] -= (mean[k] - static_cast<double>(center)) * sum_dy[k];
        }
    }
    return weight_of(region, weights);
}

// --- interleaved --------------------------------------------------------------------------------

inline constexpr Index kCountedRows = 4 * kSummedRows;  // of a block

// Rows that count, one behind the other, from one column on; and their weights.
template <class T, int kReads>
struct CountedRows {
    const T* first[kCountedRows][kReads];
    Sum<T> weight[kCountedRows];
    Index count = 0;

    BNEXT_FORCE_INLINE void find(const View<const T>* in, const Weights<Compute<T>>& weights,
                                 Index begin, Index end, Index column) {
        count = end - begin < kCountedRows ? end - begin : kCountedRows;
        for (Index r = 0; r < count; ++r) {
            const Index number = weights.counted[begin + r];
            const Index o = weights.inner == 1 ? number : number / weights.inner;
            const Index i = weights.inner == 1 ? 0 : number % weights.inner;
            for (int k = 0; k < kReads; ++k) first[r][k] = at(in[k], o, 0, i) + column;
            weight[r] = weights.each != nullptr ? static_cast<Sum<T>>(weights.each[number]) : 1;
        }
    }
};

// As add_rows; what comes next is prefetched.
template <int G, bool kWeighted, class T, int kReads, class S>
BNEXT_FORCE_INLINE void add_counted_rows(const CountedRows<T, kReads>& rows,
                                         const CountedRows<T, kReads>& next, Index c, int columns,
                                         bool first_block, S& sums) {
    using C = Sum<T>;
    Pack<C> center[G];
    load_per_column<T>(sums.center + c, center);
    for (Index begin = 0; begin < rows.count; begin += kSummedRows) {
        const Index end = begin + kSummedRows < rows.count ? begin + kSummedRows : rows.count;
        Pack<C> first[G], second[G];
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            first[g] = broadcast(C{0});
            second[g] = broadcast(C{0});
        });
        for (Index r = begin; r < end; ++r) {
            Pack<C> value[kReads][G];
            unrolled<kReads>([&](auto i) BNEXT_INLINE_LAMBDA {
                if (r < next.count) prefetch_packs<G>(next.first[r][i] + c);
                load_row<T>(rows.first[r][i] + c, columns, value[i]);
            });
            const Pack<C> weight = broadcast(rows.weight[r]);
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                const Pack<C> d = value[0][g] - center[g];
                const Pack<C> of =
                    kReads == 2 ? value[kReads - 1][g] : (kWeighted ? d * weight : d);
                first[g] = first[g] + of;
                second[g] = fma(of, d, second[g]);
            });
        }
        order_per_column<T>(first);
        order_per_column<T>(second);
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            double* const s1 = sums.first + c + g * kLanes;
            double* const s2 = sums.second + c + g * kLanes;
            const bool fresh = first_block && begin == 0;
            const Wide zero = broadcast(0.0);
            store(s1, (fresh ? zero : load(s1)) + widen(first[g]));
            store(s2, (fresh ? zero : load(s2)) + widen(second[g]));
        });
    }
}

// Sums of channels over the rows [begin, end) of those that count, of which there is one.
template <int kReads, bool kWeighted, class T, class S>
BNEXT_NO_INLINE void sum_counted_channels(const View<const T>* in,
                                          const Weights<Compute<T>>& weights, Index begin,
                                          Index end, Index first, Index channels, S& sums) {
    CountedRows<T, kReads> blocks[2];
    blocks[0].find(in, weights, begin, end, first);
    int now = 0;
    for (Index r = begin; r < end; r += kCountedRows, now = 1 - now) {
        const CountedRows<T, kReads>& rows = blocks[now];
        blocks[1 - now].find(in, weights, r + rows.count, end, first);
        for_each_column_group<kGroupPacks>(channels, [&](auto packs, Index c,
                                                         int some) BNEXT_INLINE_LAMBDA {
            add_counted_rows<packs, kWeighted, T>(rows, blocks[1 - now], c, some, r == begin, sums);
        });
    }
}

// A chunk is one tile.
template <class T>
double interleaved_weighted_stats(const View<const T>* in, const Region& region, const double*,
                                  const CoefficientsIn<Compute<T>>* by, double* mean, double* m2) {
    const View<const T>& x = in[0];
    const Weights<Compute<T>>& weights = *by->weights;
    const TileOfWeights& tile = weights.tiles[region.tiles.begin];
    const Index begin = tile.begin, end = weights.tiles[region.tiles.begin + 1].begin;
    const double n = tile.weight;
    if (n == 0.0) {
        for (Index c = 0; c < region.channels.size(); ++c) mean[c] = m2[c] = 0.0;
        return 0.0;
    }
    const double share_of_one = 1.0 / n;
    PilotStrip<T> sums;
    const auto values = [&](const Place& place, Index c, int some) BNEXT_INLINE_LAMBDA {
        return widen(load_columns(at(x, place.outer, c, place.inner), some));
    };
    const auto usual = [&](const UsualPlaces& of, Index c, int some) BNEXT_INLINE_LAMBDA {
        return median(values(of.first, c, some), values(of.middle, c, some),
                      values(of.last, c, some));
    };
    for (Index from = region.channels.begin; from < region.channels.end; from += sums.kMost) {
        const Index left = region.channels.end - from;
        const Index channels = left < sums.kMost ? left : sums.kMost;
        for_each_pack(channels, [&](Index c, int some) BNEXT_INLINE_LAMBDA {
            store(sums.center + c, round_to<Sum<T>>(usual(tile.usual, from + c, some)));
        });
        for (bool again = false;; again = true) {
            weights.each != nullptr
                ? sum_counted_channels<1, true>(in, weights, begin, end, from, channels, sums)
                : sum_counted_channels<1, false>(in, weights, begin, end, from, channels, sums);
            if (kAnyPilotWillDo<T> || again) break;
            if (!improve_pilots<T>(channels, share_of_one, sums, sums.center)) break;
        }
        const Wide one = broadcast(share_of_one);
        for_each_pack(channels, [&](Index c, int some) BNEXT_INLINE_LAMBDA {
            const Wide sum = load(sums.first + c);
            const Wide share = sum * one;
            const Wide pilot = widen(load(sums.center + c));
            const Wide origin = usual(weights.usual, from + c, some);
            store_columns(mean + c, some, (pilot - origin) + share);
            store_columns(m2 + c, some, not_negative(load(sums.second + c) - sum * share));
        });
        mean += channels;
        m2 += channels;
    }
    return n;
}

template <class T>
double interleaved_weighted_reduce(const View<const T>* in, const Region& region,
                                   const double* mean, const CoefficientsIn<Compute<T>>* by,
                                   double* sum_dy, double* sum_dy_xmu) {
    const Weights<Compute<T>>& weights = *by->weights;
    const TileOfWeights& tile = weights.tiles[region.tiles.begin];
    const Index begin = tile.begin, end = weights.tiles[region.tiles.begin + 1].begin;
    Strip<Sum<T>, 256> sums;
    for (Index from = 0; from < region.channels.size(); from += sums.kMost) {
        const Index left = region.channels.size() - from;
        const Index channels = left < sums.kMost ? left : sums.kMost;
        for (Index c = 0; c < channels; ++c) {
            sums.center[c] = static_cast<Sum<T>>(mean[from + c]);
            sums.first[c] = sums.second[c] = 0.0;
        }
        sum_counted_channels<2, false>(in, weights, begin, end, region.channels.begin + from,
                                       channels, sums);
        for (Index c = 0; c < channels; ++c) {
            const double low = mean[from + c] - static_cast<double>(sums.center[c]);
            sum_dy[from + c] = sums.first[c];
            sum_dy_xmu[from + c] = sums.second[c] - low * sums.first[c];
        }
    }
    return tile.weight;
}
