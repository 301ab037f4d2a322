// backward_apply: dx = ((x - center) * slope + (dy - offset)) * scale, per channel.
//
// From the sums of backward_reduce, with mean = center + low,
//     slope = -rstd^2 * s2 / n,  offset = s1 / n + low * slope,  scale = weight * rstd
// which is dx = weight * rstd * (dy - s1/n - xhat * rstd * s2/n). Multiplying by scale last keeps
// every intermediate in range down to std = 1e-38; beyond, cpu/extremes.hpp.
//
// Traffic: x and dy once each, dx once.
// Order:   as write_*.inl.hpp go; elementwise.
// Error:   of x - center, slope, the fused multiply-add, dy - offset, scale, the product.

template <class T>
struct BackwardFormula {
    using C = Compute<T>;
    using Coefficients = BackwardCoefficients<T>;
    Pack<C> center, slope, offset, scale;

    template <class Get>
    BNEXT_FORCE_INLINE static BackwardFormula from(const Coefficients& all, Get&& get) {
        return {get(all.center), get(all.slope), get(all.offset), get(all.scale)};
    }
    BNEXT_FORCE_INLINE static BackwardFormula across(int n, const BackwardFormula& a,
                                                     const BackwardFormula& b) {
        return {blend(n, a.center, b.center), blend(n, a.slope, b.slope),
                blend(n, a.offset, b.offset), blend(n, a.scale, b.scale)};
    }
    BNEXT_FORCE_INLINE Pack<C> operator()(const Pack<C>& dy, const Pack<C>& x) const {
        return fma(x - center, slope, dy - offset) * scale;
    }
};

template <class T>
void planar_backward_apply(const View<const T>& dy, const View<const T>& x, const View<T>& dx,
                           const Region& region, const BackwardCoefficients<T>& coefficients,
                           const Access& access) {
    write_planar<BackwardFormula<T>>(dx, region, coefficients, access, dy, x);
}

template <class T>
void interleaved_backward_apply(const View<const T>& dy, const View<const T>& x, const View<T>& dx,
                                const Region& region, const BackwardCoefficients<T>& coefficients,
                                const Access& access) {
    write_interleaved<BackwardFormula<T>>(dx, region, coefficients, access, dy, x);
}
