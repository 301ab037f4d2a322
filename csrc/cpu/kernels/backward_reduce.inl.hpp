// backward_reduce: per channel, s1 = sum dy and s2 = sum dy * (x - mean).
//
// With xhat = (x - mean) * rstd and n = outer * inner,
//   dbias = s1,  dweight = s2 * rstd,
//   dx = weight * rstd / n * (n * dy - s1 - xhat * rstd * s2)
// so both sums must be final, group-wide under sync, before any dx is written
// (Ioffe and Szegedy 2015, section 3).
//
// Traffic: x and dy once each.
// Order:   16 lanes over the region's values, then one lane tree (planar); rows in turn
//          (interleaved). Fixed by tile and lane, never by thread arrival.
// Error:   everything in double, products of float32 values are exact: below float32's rounding.

template <class T>
void planar_backward_reduce(const View<const T>& dy, const View<const T>& x, const Region& region,
                            const double* mean, double* sum_dy, double* sum_dy_xmu) {
    for (Index c = region.channels.begin; c < region.channels.end; ++c) {
        const Index k = c - region.channels.begin;
        const Wide center = broadcast(mean[k]);
        Wide s1 = broadcast(0.0);
        Wide s2 = broadcast(0.0);
        const auto add = [&](const Wide& g, const Wide& value) {
            s1 = s1 + g;
            s2 = fma(g, value - center, s2);
        };
        for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
            const Tile tile = region.tiling->tile(t);
            const Index n = tile.inner_end - tile.inner_begin;
            for (Index o = tile.outer_begin; o < tile.outer_end; ++o) {
                const T* dy_run = at(dy, o, c, 0) + tile.inner_begin;
                const T* x_run = at(x, o, c, 0) + tile.inner_begin;
                Index j = 0;
                for (; j + kLanes <= n; j += kLanes) add(load_wide(dy_run + j), load_wide(x_run + j));
                if (j < n) {
                    const int rest = static_cast<int>(n - j);
                    add(widen(load_first(dy_run + j, rest, T{0})),
                        widen(load_first(x_run + j, rest, T{0})));
                }
            }
        }
        sum_dy[k] = sum_lanes(s1);
        sum_dy_xmu[k] = sum_lanes(s2);
    }
}

template <int G, class T>
BNEXT_FORCE_INLINE void interleaved_reduce_columns(const View<const T>& dy, const View<const T>& x,
                                                   const Tile& tile, int columns, bool first,
                                                   const double* mean, double* sum_dy,
                                                   double* sum_dy_xmu) {
    const auto row = [&](const View<const T>& view, Index o, Index i, int g) {
        const T* p = at(view, o, 0, i) + g * kLanes;
        return columns == 0 ? load_wide(p) : widen(load_first(p, columns, T{0}));
    };
    const auto get = [&](const double* p) {
        return columns == 0 ? load(p) : load_first(p, columns, 0.0);
    };
    const auto put = [&](double* p, const Wide& value) {
        columns == 0 ? store(p, value) : store_first(p, columns, value);
    };
    Wide center[G], s1[G], s2[G];
    unrolled<G>([&](auto g) {
        center[g] = get(mean + g * kLanes);
        s1[g] = first ? broadcast(0.0) : get(sum_dy + g * kLanes);
        s2[g] = first ? broadcast(0.0) : get(sum_dy_xmu + g * kLanes);
    });
    for_each_row(tile, [&](Index o, Index i) {
        unrolled<G>([&](auto g) {
            const Wide grad = row(dy, o, i, g);
            s1[g] = s1[g] + grad;
            s2[g] = fma(grad, row(x, o, i, g) - center[g], s2[g]);
        });
    });
    unrolled<G>([&](auto g) {
        put(sum_dy + g * kLanes, s1[g]);
        put(sum_dy_xmu + g * kLanes, s2[g]);
    });
}

template <class T>
void interleaved_backward_reduce(const View<const T>& dy, const View<const T>& x,
                                 const Region& region, const double* mean, double* sum_dy,
                                 double* sum_dy_xmu) {
    for (Index t = region.tiles.begin; t < region.tiles.end; ++t) {
        const Tile tile = region.tiling->tile(t);
        const Index width = region.channels.size();
        Index c = 0;
        const auto columns = [&](auto packs, int partial) {
            const Index channel = region.channels.begin + c;
            interleaved_reduce_columns<packs>(View<const T>{dy.data + channel, dy.stride},
                                              View<const T>{x.data + channel, x.stride}, tile,
                                              partial, t == region.tiles.begin, mean + c,
                                              sum_dy + c, sum_dy_xmu + c);
            c += packs * kLanes;
        };
        while (c + kColumnPacks * kLanes <= width) columns(Number<kColumnPacks>{}, 0);
        while (c + kLanes <= width) columns(Number<1>{}, 0);
        if (c < width) columns(Number<1>{}, static_cast<int>(width - c));
    }
}
