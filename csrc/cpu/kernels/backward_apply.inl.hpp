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
        constexpr Compute<T> zero = 0;
        write_run(
            at(dx, o, c, 0) + i, n, access.stores,
            [&](Index j) {
                return fma(load(x_run + j) - center, slope, load(dy_run + j) - offset) * scale;
            },
            [&](Index j, int m) {
                return fma(load_first(x_run + j, m, zero) - center, slope,
                           load_first(dy_run + j, m, zero) - offset) *
                       scale;
            },
            [&](Index j) {
                prefetch_packs<2>(next_dy + j);
                prefetch_packs<2>(next_x + j);
            });
    });
    if (access.stores == Stores::streaming) fence();
}

// The coefficients of G packs of columns from c on (of a last one, the first `columns`), and where
// the values of these columns are.
template <int G, class T>
class BackwardGroup {
public:
    BNEXT_FORCE_INLINE BackwardGroup(const View<const T>& dy, const View<const T>& x,
                                     const Tile& tile, Index first,
                                     const BackwardCoefficients<T>& all, Index c, int columns)
        : dy_(dy),
          x_(x),
          dy_pitch_(row_pitch(dy, tile)),
          x_pitch_(row_pitch(x, tile)),
          column_(first + c),
          columns_(columns) {
        unrolled<G>([&](auto g) BNEXT_INLINE_LAMBDA {
            center_[g] = load_columns(all.center + c + g * kLanes, columns);
            slope_[g] = load_columns(all.slope + c + g * kLanes, columns);
            offset_[g] = load_columns(all.offset + c + g * kLanes, columns);
            scale_[g] = load_columns(all.scale + c + g * kLanes, columns);
        });
    }
    BNEXT_FORCE_INLINE void row(Index o, Index i) {
        dy_row_ = at(dy_, o, 0, i) + column_;
        x_row_ = at(x_, o, 0, i) + column_;
    }
    BNEXT_FORCE_INLINE void ahead(Index r) const {
        prefetch_packs<G>(dy_row_ + r * dy_pitch_);
        prefetch_packs<G>(x_row_ + r * x_pitch_);
    }
    BNEXT_FORCE_INLINE Pack<Compute<T>> pack(Index r, int g) const {
        const auto centred =
            load_columns(x_row_ + r * x_pitch_ + g * kLanes, columns_) - center_[g];
        const auto grad = load_columns(dy_row_ + r * dy_pitch_ + g * kLanes, columns_) - offset_[g];
        return fma(centred, slope_[g], grad) * scale_[g];
    }

private:
    const View<const T>& dy_;
    const View<const T>& x_;
    Index dy_pitch_, x_pitch_, column_;
    int columns_;
    const T* dy_row_ = nullptr;
    const T* x_row_ = nullptr;
    Pack<Compute<T>> center_[G], slope_[G], offset_[G], scale_[G];
};

template <class T>
void interleaved_backward_apply(const View<const T>& dy, const View<const T>& x, const View<T>& dx,
                                const Region& region, const BackwardCoefficients<T>& coefficients,
                                const Access& access) {
    const Index first = region.channels.begin;
    const bool dense = access.wraps && is_dense(dy, dx, region) && is_dense(x, dx, region);
    for (Index t = region.tiles.end; t-- > region.tiles.begin;) {
        const Tile tile = region.tiling->tile(t);
        write_rows(dx, tile, first, region.channels.size(), dense, access.stores,
                   [&](auto packs, Index c, int columns) BNEXT_INLINE_LAMBDA {
                       return BackwardGroup<packs, T>(dy, x, tile, first, coefficients, c, columns);
                   });
    }
    if (access.stores == Stores::streaming) fence();
}
