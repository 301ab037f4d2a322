// Activated formulas (core/formulas.hpp), and their flags: a byte for every value, 1 or 0; in
// registers packs of the compute type. Such formulas go by packs of values in a row, and by no
// units whose packs are others (cpu/units.inl.hpp).

BNEXT_FORCE_INLINE Words flag_words(const Pack<float>& flags) {  // 1.0 is 0x3f800000
    return map_words(words_of(flags), [](auto word) BNEXT_INLINE_LAMBDA { return word >> 29; });
}
BNEXT_FORCE_INLINE Words flag_words(const Wide& flags) {
    return flag_words(round_to<float>(flags));
}

template <class C>
BNEXT_FORCE_INLINE Pack<C> flags_of_words(const Words& words) {
    const Pack<float> flags = pack_of<float>([&](auto i) BNEXT_INLINE_LAMBDA {
        return __builtin_convertvector((Native<std::int32_t>)words.part[i], Floats);
    });
    if constexpr (sizeof(C) == 4) {
        return flags;
    } else {
        return widen(flags);
    }
}

#if defined(__AVX512F__)
BNEXT_FORCE_INLINE void store_bytes(std::uint8_t* p, int columns, __m128i bytes) {
    if (columns == 0) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    } else {
        _mm_mask_storeu_epi8(p, mask_of<float>(columns, 0), bytes);
    }
}
BNEXT_FORCE_INLINE __m128i load_bytes(const std::uint8_t* p, int columns) {
    if (columns == 0) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm_maskz_loadu_epi8(mask_of<float>(columns, 0), p);
}
#endif

// The first `columns` of a pack's flags (0: all).
template <class C>
BNEXT_FORCE_INLINE void store_flags(std::uint8_t* p, int columns, const Pack<C>& flags) {
    const Words words = flag_words(flags);
#if defined(__AVX512F__)
    store_bytes(p, columns, _mm512_cvtepi32_epi8((__m512i)words.part[0]));
#else
    std::uint16_t shorts[kLanes];
    narrow_to_shorts(words, shorts);
    const int n = columns == 0 ? kLanes : columns;
    for (int i = 0; i < n; ++i) p[i] = static_cast<std::uint8_t>(shorts[i]);
#endif
}

template <class C>
BNEXT_FORCE_INLINE Pack<C> load_flags(const std::uint8_t* p, int columns) {
#if defined(__AVX512F__)
    return flags_of_words<C>({(WordsPart)_mm512_cvtepu8_epi32(load_bytes(p, columns))});
#else
    const int n = columns == 0 ? kLanes : columns;
    std::uint16_t shorts[kLanes] = {};
    for (int i = 0; i < n; ++i) shorts[i] = p[i];
    return flags_of_words<C>(widen_shorts(shorts));
#endif
}

// Flags of ReLU: 1 unless z <= 0; and the gradient by them.
template <class C>
BNEXT_FORCE_INLINE void store_relu_flags(std::uint8_t* p, int columns, const Pack<C>& z) {
#if defined(__AVX512F__)
    if constexpr (sizeof(C) == 4) {
        const __mmask16 above =
            _mm512_cmp_ps_mask((__m512)z.part[0], _mm512_setzero_ps(), _CMP_NLE_UQ);
        return store_bytes(p, columns, _mm_maskz_set1_epi8(above, 1));
    }
#endif
    const Pack<C> zero = broadcast(C{0});
    store_flags(p, columns, unless_at_most(z, zero, broadcast(C{1}), zero));
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> relu_gradient_by_flags(const std::uint8_t* p, int columns,
                                                  const Pack<C>& dy) {
#if defined(__AVX512F__)
    if constexpr (sizeof(C) == 4) {
        const __m128i bytes = load_bytes(p, columns);
        return {_mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), (__m512)dy.part[0])};
    }
#endif
    return relu_gradient(load_flags<C>(p, columns), dy);
}

template <class Formula>
inline constexpr bool kIsActivated = Formula::kFlags != Flags::none;

// Writes a pack by an activated formula, out of line: from from[i] to to[w], with its flags (null:
// none), of which the first `columns` values exist (0: all).
template <class Formula, class T>
BNEXT_NO_INLINE void write_out_of_line(const Formula& formula,
                                       const T* const (&from)[Formula::kReads],
                                       T* const (&to)[Formula::kWrites], std::uint8_t* flags,
                                       int columns, bool streams) {
    Pack<Compute<T>> in[Formula::kReads], out[Formula::kWrites];
    for (int i = 0; i < Formula::kReads; ++i) in[i] = load_columns(from[i], columns);
    if (flags == nullptr) {
        formula(in, out);
    } else if constexpr (Formula::kFlags == Flags::read) {
        formula(in, out, load_flags<Compute<T>>(flags, columns));
    } else {
        Pack<Compute<T>> flag = in[0];
        formula(in, out, flag);
        store_flags(flags, columns, flag);
    }
    // The last output, the residual's gradient, may not be wanted.
    const int wanted = Formula::kWrites == 1 || formula.fused.residual ? Formula::kWrites : 1;
    for (int w = 0; w < wanted; ++w) {
        streams ? stream(to[w], out[w]) : store_columns(to[w], columns, out[w]);
    }
}

// Which formulas have ReLU inline besides: of float32, where registers are wide.
template <class Formula, class T>
inline constexpr bool kInlinesRelu = kIsActivated<Formula> && sizeof(T) == 4 && kNativeBytes > 16;

// The same, with ReLU inline: from from(i), to to(w).
template <bool kStreams, class T, class Formula, class From, class To>
BNEXT_FORCE_INLINE void write_activated(const Formula& formula, std::uint8_t* flags, int columns,
                                        From&& from, To&& to) {
    if constexpr (kInlinesRelu<Formula, T>) {
        const auto load_from = [&](auto i)
                                   BNEXT_INLINE_LAMBDA { return load_columns(from(i), columns); };
        const auto store_to = [&](auto w, const auto& pack) BNEXT_INLINE_LAMBDA {
            kStreams ? stream(to(w), pack) : store_columns(to(w), columns, pack);
        };
        if (formula.fused.activation == Activation::relu) {
            const Pack<float> x = load_from(Number<0>{});
            if constexpr (Formula::kFlags == Flags::written) {
                const Pack<float> z =
                    formula.z(x, formula.fused.residual ? load_from(Number<1>{}) : x);
                store_to(Number<0>{}, relu(z));
                if (flags != nullptr) store_relu_flags(flags, columns, z);
            } else {
                const Pack<float> dy = load_from(Number<1>{});
                const Pack<float> g = flags != nullptr ? relu_gradient_by_flags(flags, columns, dy)
                                                       : formula.relu(x, dy);
                store_to(Number<0>{}, formula.from_gradient(x, g));
                if (formula.fused.residual) store_to(Number<1>{}, g);
            }
            return;
        }
    }
    const T* in[Formula::kReads];
    T* out[Formula::kWrites];
    unrolled<Formula::kReads>([&](auto i) BNEXT_INLINE_LAMBDA { in[i] = from(i); });
    unrolled<Formula::kWrites>([&](auto w) BNEXT_INLINE_LAMBDA { out[w] = to(w); });
    write_out_of_line<Formula, T>(formula, in, out, flags, columns, kStreams);
}
