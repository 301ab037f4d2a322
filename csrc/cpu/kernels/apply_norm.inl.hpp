// apply_norm: y = (x - center) * scale + shift, per channel.
//
// With mean = center + low (center is the mean rounded to the compute type),
//     (x - mean) * rstd * weight + bias = (x - center) * scale + (bias - low * scale)
// so the low part is folded into the shift, and centring comes before scaling: x * a + b would
// cancel when mean/std is large. Channels at the ends of float32's range go by cpu/extremes.hpp.
//
// Traffic: x once, y once (written without being read first where stores are streaming).
// Order:   as write_*.inl.hpp go; elementwise, so no bit depends on it.
// Error:   three roundings: of x - center, of scale, of the fused multiply-add.

template <class T>
struct NormFormula {
    using C = Compute<T>;
    using Coefficients = NormCoefficients<T>;
    Pack<C> center, scale, shift;

    template <class Get>
    BNEXT_FORCE_INLINE static NormFormula from(const Coefficients& all, Get&& get) {
        return {get(all.center), get(all.scale), get(all.shift)};
    }
    BNEXT_FORCE_INLINE static NormFormula across(int n, const NormFormula& a,
                                                 const NormFormula& b) {
        return {blend(n, a.center, b.center), blend(n, a.scale, b.scale),
                blend(n, a.shift, b.shift)};
    }
    BNEXT_FORCE_INLINE Pack<C> operator()(const Pack<C>& x) const {
        return fma(x - center, scale, shift);
    }
};

template <class T>
void planar_apply_norm(const View<const T>& x, const View<T>& y, const Region& region,
                       const NormCoefficients<T>& coefficients, const Access& access) {
    write_planar<NormFormula<T>>(y, region, coefficients, access, x);
}

template <class T>
void interleaved_apply_norm(const View<const T>& x, const View<T>& y, const Region& region,
                            const NormCoefficients<T>& coefficients, const Access& access) {
    write_interleaved<NormFormula<T>>(y, region, coefficients, access, x);
}
