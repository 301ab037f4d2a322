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
            [&](Index j) { return fma(load(run + j) - center, scale, shift); },
            [&](Index j, int m) {
                return fma(load_first(run + j, m, Compute<T>{0}) - center, scale, shift);
            },
            [&](Index j) { prefetch_packs<2>(next + j); });
    });
    if (access.stores == Stores::streaming) fence();
}

// The coefficients of G packs of columns from c on (of a last one, the first `columns`), and where
// the values of these columns are.
template <int G, class T>
class NormGroup {
public:
    BNEXT_FORCE_INLINE NormGroup(const View<const T>& x, const Tile& tile, Index first,
                                 const NormCoefficients<T>& all, Index c, int columns)
        : x_(x), pitch_(row_pitch(x, tile)), column_(first + c), columns_(columns) {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            center_[g] = load_columns(all.center + c + g * kLanes, columns);
            scale_[g] = load_columns(all.scale + c + g * kLanes, columns);
            shift_[g] = load_columns(all.shift + c + g * kLanes, columns);
        });
    }
    BNEXT_FORCE_INLINE void row(Index o, Index i) { row_ = at(x_, o, 0, i) + column_; }
    BNEXT_FORCE_INLINE void ahead(Index r) const { prefetch_packs<G>(row_ + r * pitch_); }
    BNEXT_FORCE_INLINE Pack<Compute<T>> pack(Index r, int g) const {
        const auto values = load_columns(row_ + r * pitch_ + g * kLanes, columns_);
        return fma(values - center_[g], scale_[g], shift_[g]);
    }

private:
    const View<const T>& x_;
    Index pitch_, column_;
    int columns_;
    const T* row_ = nullptr;
    Pack<Compute<T>> center_[G], scale_[G], shift_[G];
};

template <class T>
void interleaved_apply_norm(const View<const T>& x, const View<T>& y, const Region& region,
                            const NormCoefficients<T>& coefficients, const Access& access) {
    const Index first = region.channels.begin;
    const bool dense = access.wraps && is_dense(x, y, region);
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = region.tiling->tile(t);
        write_rows(y, tile, first, region.channels.size(), dense, access.stores,
                   [&](auto packs, Index c, int columns) BNEXT_INLINE_LAMBDA {
                       return NormGroup<packs, T>(x, tile, first, coefficients, c, columns);
                   });
    }
    if (access.stores == Stores::streaming) fence();
}
