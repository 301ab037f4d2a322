// apply_norm: y = (x - center) * scale + shift, per channel.
//
// With mean = center + low (center is the mean rounded to the compute type),
//     (x - mean) * rstd * weight + bias = (x - center) * scale + (bias - low * scale)
// so the low part is folded into the shift, and centring comes before scaling: x * a + b would
// cancel when mean/std is large.
//
// Traffic: x once, y once (written without being read first where stores are streaming).
// Order:   tiles from the last to the first, so that what collect_stats read last, and the cache
//          still holds, comes first. Elementwise, so the order changes no bit.
// Error:   three roundings: of x - center, of scale, of the fused multiply-add.

template <class T>
void planar_apply_norm(const View<const T>& x, const View<T>& y, const Region& region,
                       const NormCoefficients<T>& coefficients, const Access& access) {
    for_each_run_backwards(region, [&](Index o, Index c, Index i, Index n) {
        const Index k = c - region.channels.begin;
        const auto center = broadcast(coefficients.center[k]);
        const auto scale = broadcast(coefficients.scale[k]);
        const auto shift = broadcast(coefficients.shift[k]);
        const T* run = at(x, o, c, 0) + i;
        const T* next = run_ahead(x, region, access, o, c, i);
        write_run(
            at(y, o, c, 0) + i, n, access.stores,
            [&](Index j) {
                prefetch(next + j);
                return fma(load(run + j) - center, scale, shift);
            },
            [&](Index j, int m) {
                return fma(load_first(run + j, m, T{0}) - center, scale, shift);
            });
    });
    if (access.stores == Stores::streaming) fence();
}

template <class T>
void interleaved_apply_norm(const View<const T>& x, const View<T>& y, const Region& region,
                            const NormCoefficients<T>& coefficients, const Access& access) {
    const auto& [center, scale, shift] = coefficients;
    const Index first = region.channels.begin;
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        for_each_row(region.tiling->tile(t), [&](Index o, Index i) {
            const T* run = at(x, o, 0, i) + first;
            write_run(
                at(y, o, 0, i) + first, region.channels.size(), access.stores,
                [&](Index j) {
                    return fma(load(run + j) - load(center + j), load(scale + j), load(shift + j));
                },
                [&](Index j, int n) {
                    constexpr Compute<T> zero = 0;
                    return fma(load_first(run + j, n, T{0}) - load_first(center + j, n, zero),
                               load_first(scale + j, n, zero), load_first(shift + j, n, zero));
                });
        });
    }
    if (access.stores == Stores::streaming) fence();
}
