// backward_apply: dx = ((x - center) * slope + (dy - offset)) * scale, per channel.
//
// From the sums of backward_reduce, with mean = center + low,
//     slope = -rstd^2 * s2 / n,  offset = s1 / n + low * slope,  scale = weight * rstd
// which is dx = weight * rstd * (dy - s1/n - xhat * rstd * s2/n). Multiplying by scale last keeps
// every intermediate in range down to std = 1e-38.
//
// Traffic: x and dy once each, dx once.
// Order:   tiles from the last to the first, as in apply_norm; elementwise.
// Error:   of x - center, slope, the fused multiply-add, dy - offset, scale, the product.

template <class T>
void planar_backward_apply(const View<const T>& dy, const View<const T>& x, const View<T>& dx,
                           const Region& region, const BackwardCoefficients<T>& coefficients,
                           const Access& access) {
    for_each_run_backwards(region, [&](Index o, Index c, Index i, Index n) {
        const Index k = c - region.channels.begin;
        const auto center = broadcast(coefficients.center[k]);
        const auto slope = broadcast(coefficients.slope[k]);
        const auto offset = broadcast(coefficients.offset[k]);
        const auto scale = broadcast(coefficients.scale[k]);
        const T* dy_run = at(dy, o, c, 0) + i;
        const T* x_run = at(x, o, c, 0) + i;
        const T* next_dy = run_ahead(dy, region, access, o, c, i);
        const T* next_x = run_ahead(x, region, access, o, c, i);
        write_run(
            at(dx, o, c, 0) + i, n, access.stores,
            [&](Index j) {
                prefetch(next_dy + j);
                prefetch(next_x + j);
                return fma(load(x_run + j) - center, slope, load(dy_run + j) - offset) * scale;
            },
            [&](Index j, int m) {
                return fma(load_first(x_run + j, m, T{0}) - center, slope,
                           load_first(dy_run + j, m, T{0}) - offset) *
                       scale;
            });
    });
    if (access.stores == Stores::streaming) fence();
}

template <class T>
void interleaved_backward_apply(const View<const T>& dy, const View<const T>& x, const View<T>& dx,
                                const Region& region, const BackwardCoefficients<T>& coefficients,
                                const Access& access) {
    const auto& [center, slope, offset, scale] = coefficients;
    const Index first = region.channels.begin;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        for_each_row(region.tiling->tile(t), [&](Index o, Index i) {
            const T* dy_run = at(dy, o, 0, i) + first;
            const T* x_run = at(x, o, 0, i) + first;
            write_run(
                at(dx, o, 0, i) + first, region.channels.size(), access.stores,
                [&](Index j) {
                    return fma(load(x_run + j) - load(center + j), load(slope + j),
                               load(dy_run + j) - load(offset + j)) *
                           load(scale + j);
                },
                [&](Index j, int n) {
                    constexpr Compute<T> none = 0;
                    return fma(load_first(x_run + j, n, T{0}) - load_first(center + j, n, none),
                               load_first(slope + j, n, none),
                               load_first(dy_run + j, n, T{0}) - load_first(offset + j, n, none)) *
                           load_first(scale + j, n, none);
                });
        });
    }
    if (access.stores == Stores::streaming) fence();
}
