// Flags between registers and words of bits (cpu/flag_bits.hpp).

// A bit for every lane: whether it is not 0.
template <class C>
BNEXT_FORCE_INLINE unsigned bits_of(const Pack<C>& flags) {
    unsigned bits = 0;
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        unsigned some = 0;
#if defined(__AVX512F__)
        if constexpr (sizeof(C) == 4) {
            some = _mm512_cmp_ps_mask(flags.part[i], Floats{}, _CMP_NEQ_UQ);
        } else {
            some = _mm512_cmp_pd_mask(flags.part[i], Doubles{}, _CMP_NEQ_UQ);
        }
#elif defined(__AVX__)
        const auto on = flags.part[i] != Native<C>{};
        if constexpr (sizeof(C) == 4) {
            some = static_cast<unsigned>(_mm256_movemask_ps((__m256)on));
        } else {
            some = static_cast<unsigned>(_mm256_movemask_pd((__m256d)on));
        }
#elif defined(__SSE2__)
        const auto on = flags.part[i] != Native<C>{};
        if constexpr (sizeof(C) == 4) {
            some = static_cast<unsigned>(_mm_movemask_ps((__m128)on));
        } else {
            some = static_cast<unsigned>(_mm_movemask_pd((__m128d)on));
        }
#else
        const auto on = flags.part[i] != Native<C>{};
        unrolled<Pack<C>::kPartLanes>([&](auto k) BNEXT_INLINE_LAMBDA {
            some |= (static_cast<unsigned>(on[int{k}]) & 1U) << k;
        });
#endif
        bits |= some << (i * Pack<C>::kPartLanes);
    });
    return bits;
}

template <class Lane>
alignas(64) inline constexpr Lane kLaneBits[kLanes] = {
    1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
    1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};

// Lanes of `on` where bits are set, else of `off`.
template <class C>
BNEXT_FORCE_INLINE Pack<C> where_set(unsigned bits, const Pack<C>& on, const Pack<C>& off) {
#if defined(__AVX512F__)
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        if constexpr (sizeof(C) == 4) {
            return blend_masked(static_cast<__mmask16>(bits), on.part[i], off.part[i]);
        } else {
            return blend_masked(static_cast<__mmask8>(bits >> (8 * i)), on.part[i], off.part[i]);
        }
    });
#else
    using Lane = std::conditional_t<sizeof(C) == 4, std::int32_t, std::int64_t>;
    const Native<Lane> all = static_cast<Lane>(bits) - Native<Lane>{};
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        Native<Lane> lane;
        __builtin_memcpy(&lane, kLaneBits<Lane> + i * Pack<C>::kPartLanes, sizeof lane);
        return (all & lane) != 0 ? on.part[i] : off.part[i];
    });
#endif
}
