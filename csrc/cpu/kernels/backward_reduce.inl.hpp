// backward_reduce: per channel, s1 = sum dy and s2 = sum dy * (x - mean).
//
// With xhat = (x - mean) * rstd and n = outer * inner,
//   dbias = s1,  dweight = s2 * rstd,
//   dx = weight * rstd / n * (n * dy - s1 - xhat * rstd * s2)
// so both sums must be final, group-wide under sync, before any dx is written
// (Ioffe and Szegedy 2015, section 3).
//
// Traffic: x and dy once each.
// Order:   16 lanes over the region's values, then one lane tree (planar); blocks of 16 rows, then
//          the columns of a channel (interleaved, and small planes). Fixed by tile and lane, never
//          by thread arrival.
// Error:   everything in double, products of float32 values are exact: below float32's rounding.
//          For 16-bit data, groups of some 16 values are summed in float32, about the rounded
//          mean; what the rounding lost is put right afterwards. Sums that leave float32's range
//          are done again in double (cpu/range.hpp).

// The two sums of a run of packs: in double for float32 and float64 data; for 16-bit data, whose
// float32 products are nearly exact beside it, in float32 for a while.
template <class T>
struct GradientSums {
    using C = Compute<T>;
    Pack<double> s1, s2, center;

    BNEXT_FORCE_INLINE explicit GradientSums(double mean)
        : s1(broadcast(0.0)), s2(broadcast(0.0)), center(broadcast(mean)) {}
    BNEXT_FORCE_INLINE void add_pair(const T* dy, const T* x) {
        add(dy, x);
        add(dy + kLanes, x + kLanes);
    }
    BNEXT_FORCE_INLINE void add(const T* dy, const T* x) {
        const Wide grad = load_wide(dy);
        s1 = s1 + grad;
        s2 = fma(grad, load_wide(x) - center, s2);
    }
    BNEXT_FORCE_INLINE void add_first(const T* dy, const T* x, int n) {
        const Wide grad = widen(load_first(dy, n, C{0}));
        s1 = s1 + grad;
        s2 = fma(grad, widen(load_first(x, n, C{0})) - center, s2);
    }
    BNEXT_FORCE_INLINE void end_of_group() {}
    BNEXT_FORCE_INLINE double sum_dy() const { return sum_lanes(s1); }
    BNEXT_FORCE_INLINE double sum_dy_xmu() const { return sum_lanes(s2); }
};

template <class T>
    requires kIs16Bit<T>
struct GradientSums<T> {
    Pack<float> g1[2], g2[2], center;
    Pack<double> s1, s2;
    double low;  // what rounding the mean lost

    BNEXT_FORCE_INLINE explicit GradientSums(double mean)
        : center(broadcast(static_cast<float>(mean))),
          s1(broadcast(0.0)),
          s2(broadcast(0.0)),
          low(mean - static_cast<double>(static_cast<float>(mean))) {
        clear();
    }
    BNEXT_FORCE_INLINE void add_pair(const T* dy, const T* x) {
        add(Number<0>{}, load_of_unit<0>(dy), load_of_unit<0>(x));
        add(Number<1>{}, load_of_unit<1>(dy), load_of_unit<1>(x));
    }
    BNEXT_FORCE_INLINE void add(const T* dy, const T* x) { add(Number<0>{}, load(dy), load(x)); }
    BNEXT_FORCE_INLINE void add_first(const T* dy, const T* x, int n) {
        add(Number<1>{}, load_first(dy, n, 0.0F), load_first(x, n, 0.0F));
    }
    BNEXT_FORCE_INLINE void end_of_group() {
        s1 = s1 + widen(g1[0] + g1[1]);
        s2 = s2 + widen(g2[0] + g2[1]);
        clear();
    }
    BNEXT_FORCE_INLINE double sum_dy() const { return sum_lanes(s1); }
    BNEXT_FORCE_INLINE double sum_dy_xmu() const { return sum_lanes(s2) - low * sum_lanes(s1); }

private:
    template <int I>
    BNEXT_FORCE_INLINE void add(Number<I>, const Pack<float>& grad, const Pack<float>& value) {
        g1[I] = g1[I] + grad;
        g2[I] = fma(grad, value - center, g2[I]);
    }
    BNEXT_FORCE_INLINE void clear() {
        unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
            g1[i] = broadcast(0.0F);
            g2[i] = broadcast(0.0F);
        });
    }
};

template <class T>
void planar_backward_reduce(const View<const T>* in, const Region& region, const double* mean,
                            double* sum_dy, double* sum_dy_xmu) {
    const View<const T>& x = in[0];
    const View<const T>& dy = in[1];
    const Tiling& tiling = *region.tiling;
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        GradientSums<T> sums(mean[k]);
        Index pending = 0;
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = tiling.tile(t);
            const Index n = tile.inner_end - tile.inner_begin;
            for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
                const T* dy_run = at(dy, o, c, 0) + tile.inner_begin;
                const T* x_run = at(x, o, c, 0) + tile.inner_begin;
                const Lookahead<T> next_dy(dy, tiling, tile, o, c);
                const Lookahead<T> next_x(x, tiling, tile, o, c);
                Index j = 0;
                const auto pair = [&]() BNEXT_INLINE_LAMBDA {
                    next_dy.prefetch_pair(j);
                    next_x.prefetch_pair(j);
                    sums.add_pair(dy_run + j, x_run + j);
                    j += 2 * kLanes;
                };
                while (j + kGroup <= n) {
                    const Index end = j + kGroup;
                    while (j < end) pair();
                    sums.end_of_group();
                }
                const Index rest = n - j;
                while (j + 2 * kLanes <= n) pair();
                for (; j + kLanes <= n; j += kLanes) sums.add(dy_run + j, x_run + j);
                if (j < n) sums.add_first(dy_run + j, x_run + j, static_cast<int>(n - j));
                pending += in_group(rest);
                if (pending >= kGroup) {
                    sums.end_of_group();
                    pending = 0;
                }
            }
        }
        sums.end_of_group();
        sum_dy[k] = sums.sum_dy();
        sum_dy_xmu[k] = sums.sum_dy_xmu();
    }
}

inline constexpr Index kGradientStrip = 256;

template <class S>
struct GradientStrip {
    S center[kGradientStrip + 16];  // no powers of two apart, as in collect_stats
    double sum_dy[kGradientStrip + 16];
    double sum_dy_xmu[kGradientStrip + 16];
    S shared[kGradientStrip / 2];  // centers of channels that have several columns
};

// Adds a block of rows of G packs of columns from c on to their sums.
template <int G, class T>
BNEXT_FORCE_INLINE void add_gradient_rows(const T* dy, Index dy_pitch, const T* x, Index x_pitch,
                                          Index width, Index rows, Index c, int columns,
                                          GradientStrip<Sum<T>>& sums) {
    using S = Sum<T>;
    Pack<S> center[G];
    load_per_column<T>(sums.center + c, center);
    for (Index begin = 0; begin < rows; begin += kSummedRows) {
        const Index end = begin + kSummedRows < rows ? begin + kSummedRows : rows;
        Pack<S> s1[G], s2[G];
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            s1[g] = broadcast(S{0});
            s2[g] = broadcast(S{0});
        });
        for (Index r = begin; r < end; ++r) {
            prefetch_next_block<G>(dy, dy_pitch, dy_pitch == width, rows, r, c);
            prefetch_next_block<G>(x, x_pitch, x_pitch == width, rows, r, c);
            Pack<S> grad[G], value[G];
            load_row<T>(dy + r * dy_pitch + c, columns, grad);
            load_row<T>(x + r * x_pitch + c, columns, value);
            unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
                s1[g] = s1[g] + grad[g];
                s2[g] = fma(grad[g], value[g] - center[g], s2[g]);
            });
        }
        order_per_column<T>(s1);
        order_per_column<T>(s2);
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            double* const sum_dy = sums.sum_dy + c + g * kLanes;
            double* const sum_dy_xmu = sums.sum_dy_xmu + c + g * kLanes;
            store(sum_dy, load(sum_dy) + widen(s1[g]));
            store(sum_dy_xmu, load(sum_dy_xmu) + widen(s2[g]));
        });
    }
}

template <class T>
void interleaved_backward_reduce(const View<const T>* in, const Region& region, const double* mean,
                                 double* sum_dy, double* sum_dy_xmu) {
    const View<const T>& x = in[0];
    const View<const T>& dy = in[1];
    using S = Sum<T>;
    const Index columns = region.tiling->columns();
    const Index strip = channels_of_strip(kGradientStrip, columns);
    GradientStrip<S> sums;
    for (Index begin = 0; begin < region.channels.size(); begin += strip) {
        const Index left = region.channels.size() - begin;
        const Index channels = left < strip ? left : strip;
        const Index width = channels * columns;
        const Index first = (region.channels.begin + begin) * columns;
        S* const centers = columns == 1 ? sums.center : sums.shared;
        for (Index c = 0; c < channels; ++c) centers[c] = static_cast<S>(mean[begin + c]);
        if (columns > 1) spread(centers, sums.center, channels, columns);
        for (Index c = 0; c < (width + kLanes - 1) / kLanes * kLanes; ++c) {
            sums.sum_dy[c] = sums.sum_dy_xmu[c] = 0.0;
        }
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = rows_of_tile(*region.tiling, t);
            const Index dy_pitch = row_pitch(dy, tile);
            const Index x_pitch = row_pitch(x, tile);
            for_each_row_block(
                tile, rows_of_block<T>(width, x_pitch),
                [&](Index o, Index i, Index rows) BNEXT_INLINE_LAMBDA {
                    const T* const dy_row = at(dy, o, 0, i) + first;
                    const T* const x_row = at(x, o, 0, i) + first;
                    for_each_column_group<kGroupPacks>(
                        width, [&](auto packs, Index c, int some) BNEXT_INLINE_LAMBDA {
                            add_gradient_rows<packs>(dy_row, dy_pitch, x_row, x_pitch, width, rows,
                                                     c, some, sums);
                        });
                });
        }
        sum_columns(sums.sum_dy, channels, columns);
        sum_columns(sums.sum_dy_xmu, channels, columns);
        for (Index c = 0; c < channels; ++c) {
            const double low = mean[begin + c] - static_cast<double>(centers[c]);
            sum_dy[begin + c] = sums.sum_dy[c];
            sum_dy_xmu[begin + c] = sums.sum_dy_xmu[c] - low * sums.sum_dy[c];
        }
    }
}
