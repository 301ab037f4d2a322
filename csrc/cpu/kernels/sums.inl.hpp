// The first phase of a pass: two sums per channel. Of values x, with d = x - center,
//     forward (one array read):       sum d,  sum d * d      center: a pilot
//     backward (two: x and dy):       sum dy, sum dy * d     center: the mean
// Here: how planes and rows are walked. Centers, and the use of the sums, are in
// collect_stats.inl.hpp and backward_reduce.inl.hpp.

// --- planes -------------------------------------------------------------------------------------

inline constexpr Index kGroup = 16 * kLanes;  // values: 8 per lane and accumulator

// The weight of a run's rest in a group. Its last pack adds to a lane however few values it has:
// runs of two or three values add to one lane no more often in a row than longer runs.
BNEXT_FORCE_INLINE Index in_group(Index rest) {
    return rest > 0 && rest < kLanes ? Index{kLanes} : rest;
}

// x - center, by a subtraction.
template <class C>
struct Difference {
    Pack<C> center;

    BNEXT_FORCE_INLINE Pack<C> operator()(const Pack<C>& x) const { return x - center; }
};

// The two sums of a run of packs. Every other pack has accumulators of its own, which are added to
// sums in double after a group; but products of float32 and float64 data, which are summed in
// double, have one accumulator.
template <class T, int kReads, template <class> class From>
class RunSums {
    using C = Sum<T>;

public:
    BNEXT_FORCE_INLINE explicit RunSums(C center)
        : from_center_{broadcast(center)},
          first_(broadcast(0.0)),
          second_(broadcast(0.0)),
          center_(center) {
        clear();
    }
    BNEXT_FORCE_INLINE void add_pair(const T* const (&run)[kReads], Index j) {
        unrolled<2>([&](auto h) BNEXT_INLINE_LAMBDA {
            add(h, load_sum_of_pair<h>(run[kOf] + j),
                [&]() BNEXT_INLINE_LAMBDA { return load_sum_of_pair<h>(run[0] + j); });
        });
    }
    BNEXT_FORCE_INLINE void add(const T* const (&run)[kReads], Index j) {
        add(Number<0>{}, load_sum(run[kOf] + j),
            [&]() BNEXT_INLINE_LAMBDA { return load_sum(run[0] + j); });
    }
    BNEXT_FORCE_INLINE void add_first(const T* const (&run)[kReads], Index j, int n) {
        add(Number<1>{}, load_some(run[kOf] + j, n),
            [&]() BNEXT_INLINE_LAMBDA { return load_some(run[0] + j, n); });
    }
    // All of a run of less than a group.
    BNEXT_FORCE_INLINE void add_run(const T* const (&run)[kReads], Index n) {
        Index j = 0;
        for (; j + 2 * kLanes <= n; j += 2 * kLanes) add_pair(run, j);
        if (j + kLanes <= n) {
            add(run, j);
            j += kLanes;
        }
        if (j < n) add_first(run, j, static_cast<int>(n - j));
    }
    // Of two arrays: pack h of a pair, in registers.
    template <int H>
    BNEXT_FORCE_INLINE void add_packs(const Pack<C>& value, const Pack<C>& x) {
        add(Number<H>{}, value, [&]() BNEXT_INLINE_LAMBDA { return x; });
    }
    // Of n values, the first of them at (o, i).
    BNEXT_FORCE_INLINE void begin_run(const T* const (&)[kReads], Index, Index, Index) {}
    BNEXT_FORCE_INLINE void end_of_group() {
        if constexpr (kInGroups) {
            first_ = first_ + widen(group_first_[0] + group_first_[1]);
            second_ = second_ + widen(group_second_[0] + group_second_[1]);
            clear();
        }
    }
    BNEXT_FORCE_INLINE const Wide& lanes_of_first() const { return first_; }
    BNEXT_FORCE_INLINE const Wide& lanes_of_second() const { return second_; }
    BNEXT_FORCE_INLINE double first() const { return sum_lanes(first_); }
    BNEXT_FORCE_INLINE double second() const { return sum_lanes(second_); }

private:
    static constexpr bool kInGroups = kReads == 1 || kIs16Bit<T>;

    static constexpr int kOf = kReads - 1;  // the array that is summed

    // `x` is not asked for where it is what is summed.
    template <int H, class X>
    BNEXT_FORCE_INLINE void add(Number<H>, const Pack<C>& value, X&& x) {
        if constexpr (kReads == 1) {
            const Pack<C> d = from_center_(value);
            group_first_[H] = group_first_[H] + d;
            group_second_[H] = fma(d, d, group_second_[H]);
        } else if constexpr (kInGroups) {
            group_first_[H] = group_first_[H] + value;
            group_second_[H] = fma(value, from_center_(x()), group_second_[H]);
        } else {
            first_ = first_ + value;
            second_ = fma(value, from_center_(x()), second_);
        }
    }
    BNEXT_FORCE_INLINE Pack<C> load_some(const T* p, int n) const {
        return load_first_sum(p, n, kReads == 1 ? center_ : C{0});
    }
    BNEXT_FORCE_INLINE void clear() {
        unrolled<2>([&](auto h) BNEXT_INLINE_LAMBDA {
            group_first_[h] = broadcast(C{0});
            group_second_[h] = broadcast(C{0});
        });
    }

    From<C> from_center_;
    Pack<C> group_first_[2], group_second_[2];
    Wide first_, second_;
    C center_;
};

// Adds the runs of channel c in a tile to its sums. `pending`: values of rests since the last group
// ended.
template <int kReads, class T, class Sums>
BNEXT_FORCE_INLINE void add_tile(const View<const T>* in, const Tiling& tiling, const Tile& tile,
                                 Index c, Sums& sums, Index& pending) {
    const Index n = tile.inner_end - tile.inner_begin;
    for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
        const T* run[kReads];
        unrolled<kReads>(
            [&](auto i) BNEXT_INLINE_LAMBDA { run[i] = at(in[i], o, c, 0) + tile.inner_begin; });
        sums.begin_run(run, o, tile.inner_begin, n);
        const Lookahead<T, kReads> next(in, tiling, tile, o, c);
        Index j = 0;
        const auto pair = [&]() BNEXT_INLINE_LAMBDA {
            next.prefetch_pair(j);
            sums.add_pair(run, j);
            j += 2 * kLanes;
        };
        while (j + kGroup <= n) {
            const Index end = j + kGroup;
            while (j < end) pair();
            sums.end_of_group();
        }
        const Index rest = n - j;
        while (j + 2 * kLanes <= n) pair();
        if (j + kLanes <= n) {
            sums.add(run, j);
            j += kLanes;
        }
        if (j < n) sums.add_first(run, j, static_cast<int>(n - j));
        pending += in_group(rest);
        if (pending >= kGroup) {
            sums.end_of_group();
            pending = 0;
        }
    }
}

// --- rows, also of small planes -----------------------------------------------------------------

// Sums of columns that are walked together. The arrays are no power of two apart, so that places do
// not collide in a cache.
template <class C, Index kColumns>
struct Strip {
    static constexpr Index kMost = kColumns;
    C center[kColumns + 16];
    double first[kColumns + 16];
    double second[kColumns + 16];
    C shared[kColumns / 2];  // centers of channels that have several columns

    // The centers, one a channel.
    BNEXT_FORCE_INLINE C* centers(Index columns) { return columns == 1 ? center : shared; }
};

// Adds a block of rows of G packs of columns from c on to their sums, or to 0 if `first_block`.
template <int G, class T, int kReads, class S>
BNEXT_FORCE_INLINE void add_rows(const RowsIn<T> (&in)[kReads], Index width, Index rows, Index c,
                                 int columns, bool first_block, S& sums) {
    using C = Sum<T>;
    Pack<C> center[G];
    load_per_column<T>(sums.center + c, center);
    for (Index begin = 0; begin < rows; begin += kSummedRows) {
        const Index end = begin + kSummedRows < rows ? begin + kSummedRows : rows;
        Pack<C> first[G], second[G];
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            first[g] = broadcast(C{0});
            second[g] = broadcast(C{0});
        });
        for (Index r = begin; r < end; ++r) {
            Pack<C> value[kReads][G];
            unrolled<kReads>([&](auto i) BNEXT_INLINE_LAMBDA {
                prefetch_next_block<G>(in[i].first, in[i].pitch, in[i].pitch == width, rows, r, c);
            });
            unrolled<kReads>([&](auto i) BNEXT_INLINE_LAMBDA {
                load_row<T>(in[i].first + r * in[i].pitch + c, columns, value[i]);
            });
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                const Pack<C> d = value[0][g] - center[g];
                const Pack<C>& of = kReads == 1 ? d : value[kReads - 1][g];
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

// Sums of a tile's channels about the centers, one a channel.
template <int kReads, class T, class S>
BNEXT_FORCE_INLINE void sum_channels(const View<const T>* in, const Tile& rows, Index first,
                                     Index channels, Index columns, S& sums) {
    const Index width = channels * columns;
    if (columns > 1) spread(sums.shared, sums.center, channels, columns);
    bool first_block = true;
    for_each_row_block(
        rows, rows_of_block<T>(width, row_pitch(in[0], rows)),
        [&](Index o, Index i, Index count) BNEXT_INLINE_LAMBDA {
            RowsIn<T> block[kReads];
            unrolled<kReads>([&](auto k) BNEXT_INLINE_LAMBDA {
                block[k] = {at(in[k], o, 0, i) + first * columns, row_pitch(in[k], rows)};
            });
            for_each_column_group<kGroupPacks>(
                width, [&](auto packs, Index c, int some) BNEXT_INLINE_LAMBDA {
                    add_rows<packs, T>(block, width, count, c, some, first_block, sums);
                });
            first_block = false;
        });
    sum_columns(sums.first, channels, columns);
    sum_columns(sums.second, channels, columns);
}
