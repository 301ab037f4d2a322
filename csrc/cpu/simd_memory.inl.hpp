// Packs and memory: loads and stores, whole, of some lanes, and past the caches. A part of
// simd.inl.hpp, which includes it.

template <class C>
    requires(sizeof(C) >= 4)
BNEXT_FORCE_INLINE Pack<C> load(const C* p) {
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        Native<C> part;  // of its own: GCC copies larger structures through memory
        __builtin_memcpy(&part, p + i * Pack<C>::kPartLanes, sizeof part);
        return part;
    });
}

#if defined(__AVX512F__)
template <class R>
BNEXT_FORCE_INLINE void hold_in_register(R& part) {
    asm("" : "+v"(part));
}
#endif

// The pack as it is, which has been loaded. GCC makes one instruction of a load and the choice of
// some of its lanes, which begins to load when the choice is known: what it is made from would be
// waited for first, and the memory behind it then once more.
template <class C>
BNEXT_FORCE_INLINE Pack<C> loaded(Pack<C> a) {
#if defined(__AVX512F__)
    // (In a function: Clang 14 refuses what a generic lambda refers to as an operand.)
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA { hold_in_register(a.part[i]); });
#endif
    return a;
}

template <class C>
    requires(sizeof(C) >= 4)
BNEXT_FORCE_INLINE void store(C* p, const Pack<C>& a) {
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        const Native<C> part = a.part[i];
        __builtin_memcpy(p + i * Pack<C>::kPartLanes, &part, sizeof part);
    });
}

// Non-temporal; p is 64-byte aligned. fence() before anybody else reads.
template <class C>
    requires(sizeof(C) >= 4)
BNEXT_FORCE_INLINE void stream(C* p, const Pack<C>& a) {
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        C* q = p + i * Pack<C>::kPartLanes;
#if defined(__AVX512F__)
        _mm512_stream_ps(reinterpret_cast<float*>(q), (__m512)a.part[i]);
#elif defined(__AVX__)
        _mm256_stream_ps(reinterpret_cast<float*>(q), (__m256)a.part[i]);
#elif defined(__SSE2__)
        _mm_stream_ps(reinterpret_cast<float*>(q), (__m128)a.part[i]);
#else
        __builtin_memcpy(q, &a.part[i], sizeof a.part[i]);
#endif
    });
}

BNEXT_FORCE_INLINE void fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#if defined(__AVX512F__)
// The part's share of a mask whose first n lanes are on.
template <class C>
BNEXT_FORCE_INLINE auto mask_of(int n, int part) {
    const unsigned mask = ((1U << n) - 1U) >> (part * Pack<C>::kPartLanes);
    if constexpr (sizeof(C) == 4) {
        return static_cast<__mmask16>(mask);
    } else {
        return static_cast<__mmask8>(mask);
    }
}
BNEXT_FORCE_INLINE Floats load_masked(const float* p, __mmask16 mask, Floats others) {
    return _mm512_mask_loadu_ps(others, mask, p);
}
BNEXT_FORCE_INLINE Doubles load_masked(const double* p, __mmask8 mask, Doubles others) {
    return _mm512_mask_loadu_pd(others, mask, p);
}
BNEXT_FORCE_INLINE Floats blend_masked(__mmask16 mask, Floats on, Floats others) {
    return _mm512_mask_blend_ps(mask, others, on);
}
BNEXT_FORCE_INLINE Doubles blend_masked(__mmask8 mask, Doubles on, Doubles others) {
    return _mm512_mask_blend_pd(mask, others, on);
}
BNEXT_FORCE_INLINE void store_masked(float* p, __mmask16 mask, Floats part) {
    _mm512_mask_storeu_ps(p, mask, part);
}
BNEXT_FORCE_INLINE void store_masked(double* p, __mmask8 mask, Doubles part) {
    _mm512_mask_storeu_pd(p, mask, part);
}
#elif defined(__AVX2__)
// Loading 16 entries from kMaskWindow + 16 - n gives n lanes that are on.
alignas(64) inline constexpr int kMaskWindow[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                    -1, -1, -1, -1, -1, -1, -1, -1};
template <class C>
BNEXT_FORCE_INLINE __m256i mask_of(int n, int part) {
    const int* const lanes = kMaskWindow + 16 - n + part * Pack<C>::kPartLanes;
    if constexpr (sizeof(C) == 4) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    } else {
        return _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes)));
    }
}
// Of 16 lanes of 16 bits: the pairs that lie in the first n, and one lane.
BNEXT_FORCE_INLINE __m256i mask_of_pairs(int n) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMaskWindow + 16 - n / 2));
}
BNEXT_FORCE_INLINE __m256i mask_of_lane(int lane) {
    const __m256i lanes = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm256_cmpeq_epi16(lanes, _mm256_set1_epi16(static_cast<short>(lane)));
}
BNEXT_FORCE_INLINE Floats load_masked(const float* p, __m256i mask, Floats others) {
    return _mm256_blendv_ps(others, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}
BNEXT_FORCE_INLINE Doubles load_masked(const double* p, __m256i mask, Doubles others) {
    return _mm256_blendv_pd(others, _mm256_maskload_pd(p, mask), _mm256_castsi256_pd(mask));
}
BNEXT_FORCE_INLINE void store_masked(float* p, __m256i mask, Floats part) {
    _mm256_maskstore_ps(p, mask, part);
}
BNEXT_FORCE_INLINE void store_masked(double* p, __m256i mask, Doubles part) {
    _mm256_maskstore_pd(p, mask, part);
}
#endif

// The first n (0 < n < 16) lanes from p, the others from `fill`; nothing past p[n-1] is touched.
template <class C>
    requires(sizeof(C) >= 4)
BNEXT_LONG Pack<C> load_first(const C* p, int n, C fill) {
#if defined(__AVX2__)
    const Pack<C> others = broadcast(fill);
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return load_masked(p + i * Pack<C>::kPartLanes, mask_of<C>(n, i), others.part[i]);
    });
#else
    C lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : fill;
    return load(lanes);
#endif
}

template <class C>
    requires(sizeof(C) >= 4)
BNEXT_LONG void store_first(C* p, int n, const Pack<C>& a) {
#if defined(__AVX2__)
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        store_masked(p + i * Pack<C>::kPartLanes, mask_of<C>(n, i), a.part[i]);
    });
#else
    C lanes[kLanes];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}
