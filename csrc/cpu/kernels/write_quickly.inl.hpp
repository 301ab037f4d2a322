// The second phase of activated passes by formulas of their own, in place of runs and loops
// (activated_runs.inl.hpp): of bfloat16 data, whose arithmetic by units costs less than by packs,
// and is most of what such a call costs. ReLU alone, and ReLU with an addition and flags.

template <class V>
struct NormalizeRelu : Normalize<V> {
    BNEXT_FORCE_INLINE void operator()(const V (&in)[1], V (&out)[1]) const {
        Normalize<V>::operator()(in, out);
        out[0] = relu(out[0]);
    }
};

// Flags are made of z.
template <class V>
struct AddRelu : Normalize<V> {
    static constexpr int kReads = 2;
    static constexpr Flags kFlags = Flags::written;
    BNEXT_FORCE_INLINE void operator()(const V (&in)[2], V (&out)[1], V& z) const {
        const V of_x[] = {in[0]};
        Normalize<V>::operator()(of_x, out);
        z = out[0] + in[1];
        out[0] = relu(z);
    }
};

template <class V>
struct GradientRelu {
    using Of = GradientActivated<V>;
    static constexpr int kReads = 2, kWrites = 1, kSummed = 2, kRows = Of::kRows;
    static constexpr Flags kFlags = Flags::none;
    V row[kRows];

    BNEXT_FORCE_INLINE void operator()(const V (&in)[2], V (&out)[1]) const {
        Of of;
        unrolled<kRows>([&](auto r) BNEXT_INLINE_LAMBDA { of.row[r] = row[r]; });
        out[0] = of.from_gradient(in[0], relu_gradient(of.z(in[0]), in[1]));
    }
};

// dx and dresidual, of dy where the flags are set.
template <class V>
struct GradientAddRelu : Gradient<V> {
    static constexpr int kWrites = 2;
    static constexpr Flags kFlags = Flags::read;
    BNEXT_FORCE_INLINE void operator()(const V (&in)[2], V (&out)[2]) const {
        V dx[1];
        Gradient<V>::operator()(in, dx);
        out[0] = dx[0];
        out[1] = in[1];
    }
};
using ActivatedRow = GradientActivated<double>::Row;
static_assert(int{Gradient<double>::kCenter} == ActivatedRow::kCenter &&
              int{Gradient<double>::kSlope} == ActivatedRow::kSlope &&
              int{Gradient<double>::kOffset} == ActivatedRow::kOffset &&
              int{Gradient<double>::kScale} == ActivatedRow::kScale);

// With wide registers, as processors have that are used with bfloat16: with others it would be as
// much code again.
template <class T>
inline constexpr bool kWritesQuickly = kNativeBytes == 64 && DTypeOf<T>::value == DType::bfloat16;

// Whether flags are put at once by units of rows: where these begin with a word.
template <class T>
BNEXT_FORCE_INLINE bool rows_fill_words(const FlagBits& flags, const View<T>& out,
                                        const Region& region) {
    const Tiling& tiling = *region.tiling;
    const Tile first = tiling.tile(region.tiles.begin);
    const Index o = first.outer_begin, c = region.channels.begin, i = first.inner_begin;
    const auto fill = [](Index stride, Index extent)
                          BNEXT_INLINE_LAMBDA { return extent <= 1 || stride % 16 == 0; };
    return flags.at(o, c, i) % 16 == 0 && values_to_boundary(at(out, o, c, i), 64) % 16 == 0 &&
           fill(flags.stride.outer, tiling.outer()) && fill(flags.stride.inner, tiling.inner());
}

// Calls write(formula) with a formula of packs V for what is applied, if there is one. Returns
// whether there is. `fill_words`: whether units fill words of flags.
template <class Formula, class T, class Write>
BNEXT_FORCE_INLINE bool write_quickly(const Activated& by, const View<T>* out, const Access& access,
                                      bool fill_words, Write&& write) {
    using V = Pack<Compute<T>>;
    const Fused& fused = by.fused;
    if (fused.activation != Activation::relu || fused.in_place) return false;
    if constexpr (Formula::kFlags == Flags::written) {
        if (!fused.residual) return write(NormalizeRelu<V>{}), true;
        return by.flags.are_kept() && fill_words && (write(AddRelu<V>{}), true);
    } else {
        if (!fused.residual) return write(GradientRelu<V>{}), true;
        if (!by.flags.are_kept()) return false;
        T* const begins[] = {out[0].data, out[1].data};
        if (access.stores == Stores::streaming && !begin_alike(begins)) return false;
        return write(GradientAddRelu<V>{}), true;
    }
}
