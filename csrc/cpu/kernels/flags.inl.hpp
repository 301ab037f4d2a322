// Flags of activated formulas (core/activation.hpp): a byte for every value, 1 or 0; in registers
// packs of the compute type. A unit's are in the order of its packs (cpu/units.inl.hpp).

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

// The first `columns` of a pack's flags (0: all).
template <class C>
BNEXT_FORCE_INLINE void store_flags(std::uint8_t* p, int columns, const Pack<C>& flags) {
    const Words words = flag_words(flags);
#if defined(__AVX512F__)
    const __mmask16 mask = columns == 0 ? __mmask16{0xffff} : mask_of<float>(columns, 0);
    _mm512_mask_cvtepi32_storeu_epi8(p, mask, (__m512i)words.part[0]);
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
    const __mmask16 mask = columns == 0 ? __mmask16{0xffff} : mask_of<float>(columns, 0);
    return flags_of_words<C>({(WordsPart)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p))});
#else
    const int n = columns == 0 ? kLanes : columns;
    std::uint16_t shorts[kLanes] = {};
    for (int i = 0; i < n; ++i) shorts[i] = p[i];
    return flags_of_words<C>(widen_shorts(shorts));
#endif
}

// A unit's flags, of which pack h is flags(Number<h>).
template <class T, class F>
BNEXT_FORCE_INLINE void store_flags_of_unit(std::uint8_t* p, F&& flags) {
    if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        const Words even = flag_words(flags(Number<0>{})), odd = flag_words(flags(Number<1>{}));
        const Words both = pack_of<std::uint32_t>(
            [&](auto i) BNEXT_INLINE_LAMBDA { return even.part[i] | odd.part[i] << 8; });
#if defined(__AVX512F__)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                            _mm512_cvtepi32_epi16((__m512i)both.part[0]));
#else
        std::uint16_t shorts[kLanes];
        narrow_to_shorts(both, shorts);
        __builtin_memcpy(p, shorts, sizeof shorts);
#endif
    } else {
        unrolled<kUnitPacks<T>>(
            [&](auto h) BNEXT_INLINE_LAMBDA { store_flags(p + h * kLanes, 0, flags(h)); });
    }
}

template <class T, int h>
BNEXT_FORCE_INLINE Pack<Compute<T>> load_flags_of_unit(const std::uint8_t* p) {
    if constexpr (DTypeOf<T>::value == DType::bfloat16) {
        std::uint16_t shorts[kLanes];
        __builtin_memcpy(shorts, p, sizeof shorts);
        return flags_of_words<Compute<T>>(
            map_words(widen_shorts(shorts), [](auto word) BNEXT_INLINE_LAMBDA {
                return h == 0 ? word & 0xffU : word >> 8;
            }));
    } else {
        return load_flags<Compute<T>>(p + h * kLanes, 0);
    }
}

// Calls the formula on packs that were loaded, with its flag where there are flags (not null): of
// the pack at `flags`, loaded by load(), or put by put(pack).
template <class Formula, class Pack, int kReads, int kWrites, class Load, class Put>
BNEXT_FORCE_INLINE void call_formula(const Formula& formula, const Pack (&in)[kReads],
                                     Pack (&out)[kWrites], const std::uint8_t* flags, Load&& load,
                                     Put&& put) {
    if constexpr (Formula::kFlags == Flags::none) {
        formula(in, out);
    } else if (flags == nullptr) {
        formula(in, out);
    } else if constexpr (Formula::kFlags == Flags::read) {
        formula(in, out, load());
    } else {
        Pack flag = in[0];
        formula(in, out, flag);
        put(flag);
    }
}

// Whether the formula's output w is wanted: of activated ones, the residual's gradient may not be.
template <class Formula>
BNEXT_FORCE_INLINE bool writes_output(const Formula& formula, int w) {
    if constexpr (Formula::kFlags == Flags::read) return w == 0 || formula.fused.residual;
    return true;
}
