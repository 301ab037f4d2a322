// Packs of 16-bit data. In registers everything is float32; loads widen, stores round to nearest
// even. Where there are no instructions for it, words go by the conversions of core/dtype.hpp.

using Words = Pack<std::uint32_t>;
using WordsPart = Native<std::uint32_t>;

BNEXT_FORCE_INLINE Words words_of(const Pack<float>& a) {
    return pack_of<std::uint32_t>([&](auto i) BNEXT_INLINE_LAMBDA { return (WordsPart)a.part[i]; });
}
BNEXT_FORCE_INLINE Pack<float> floats_of(const Words& a) {
    return pack_of<float>([&](auto i) BNEXT_INLINE_LAMBDA { return (Floats)a.part[i]; });
}

// Applies f(part of a) to every part.
template <class F>
BNEXT_FORCE_INLINE Words map_words(const Words& a, F&& f) {
    return pack_of<std::uint32_t>([&](auto i) BNEXT_INLINE_LAMBDA { return f(a.part[i]); });
}

#if defined(__AVX512F__)
BNEXT_FORCE_INLINE __m256i load_half(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
#elif defined(__AVX2__)
BNEXT_FORCE_INLINE __m128i load_half(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
#endif

BNEXT_FORCE_INLINE Words widen_shorts(const std::uint16_t* p) {
    return pack_of<std::uint32_t>([&](auto i) BNEXT_INLINE_LAMBDA {
        const std::uint16_t* const of_part = p + i * Words::kPartLanes;
#if defined(__AVX512F__)
        return (WordsPart)_mm512_cvtepu16_epi32(load_half(of_part));
#elif defined(__AVX2__)
        return (WordsPart)_mm256_cvtepu16_epi32(load_half(of_part));
#else
        typedef std::uint16_t Half __attribute__((vector_size(8)));
        Half half;
        __builtin_memcpy(&half, of_part, sizeof half);
        return __builtin_convertvector(half, WordsPart);
#endif
    });
}

BNEXT_FORCE_INLINE Pack<float> load(const bfloat16* p) {
    return floats_of(map_words(widen_shorts(&p->bits),
                               [](auto word) BNEXT_INLINE_LAMBDA { return word << 16; }));
}

BNEXT_LONG Pack<float> load(const float16* p) {
#if defined(__AVX512F__)
    return {_mm512_cvtph_ps(load_half(p))};
#elif defined(__F16C__)
    return pack_of<float>(
        [&](auto i) BNEXT_INLINE_LAMBDA { return _mm256_cvtph_ps(load_half(p + 8 * i)); });
#else
    return floats_of(map_words(widen_shorts(&p->bits), [](auto half) BNEXT_INLINE_LAMBDA {
        return float_word_of_half<Floats>(half);
    }));
#endif
}

// The upper half of each word is the value rounded to nearest even. A NaN stays one, since those of
// arithmetic are quiet and have no bits set at the far end: those of data are 16 bits long, and
// coefficients carry no payload (store_coefficients, coefficients.inl.hpp).
BNEXT_FORCE_INLINE Words rounded_words(const Pack<float>& a) {
    return map_words(words_of(a), [](auto word) BNEXT_INLINE_LAMBDA {
        return word + 0x7fffU + ((word >> 16) & 1U);
    });
}

template <class T>
inline constexpr bool kIs16Bit = sizeof(T) == 2;

#if defined(__AVX512F__)
BNEXT_FORCE_INLINE __m256i encoded(const Pack<float>& a, const float16*) {
    return _mm512_cvtps_ph(a.part[0], _MM_FROUND_TO_NEAREST_INT);
}
BNEXT_FORCE_INLINE __m256i encoded(const Pack<float>& a, const bfloat16*) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)rounded_words(a).part[0], 16));
}
template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE void store(T* p, const Pack<float>& a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), encoded(a, p));
}
#else
// Of words below 2^16.
BNEXT_FORCE_INLINE void narrow_to_shorts(const Words& a, std::uint16_t* p) {
#if defined(__AVX2__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_permute4x64_epi64(
                            _mm256_packus_epi32((__m256i)a.part[0], (__m256i)a.part[1]), 0xd8));
#else
    typedef std::uint16_t Half __attribute__((vector_size(8)));
    unrolled<Words::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        const Half half = __builtin_convertvector(a.part[i], Half);
        __builtin_memcpy(p + 4 * i, &half, sizeof half);
    });
#endif
}

BNEXT_LONG void store(bfloat16* p, const Pack<float>& a) {
    narrow_to_shorts(
        map_words(rounded_words(a), [](auto word) BNEXT_INLINE_LAMBDA { return word >> 16; }),
        &p->bits);
}

BNEXT_LONG void store(float16* p, const Pack<float>& a) {
#if defined(__F16C__)
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i),
                         _mm256_cvtps_ph(a.part[i], _MM_FROUND_TO_NEAREST_INT));
    });
#else
    narrow_to_shorts(
        map_words(words_of(a),
                  [](auto word) BNEXT_INLINE_LAMBDA { return half_of_float_word<Floats>(word); }),
        &p->bits);
#endif
}
#endif

template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE void stream(T* p, const Pack<float>& a) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), encoded(a, p));
#elif defined(__AVX2__)
    T lanes[kLanes];
    store(lanes, a);
    __m256i all;
    __builtin_memcpy(&all, lanes, sizeof all);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), all);
#elif defined(__SSE2__)
    T lanes[kLanes];
    store(lanes, a);
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        __m128i half;
        __builtin_memcpy(&half, lanes + 8 * i, sizeof half);
        _mm_stream_si128(reinterpret_cast<__m128i*>(p + 8 * i), half);
    });
#else
    store(p, a);
#endif
}

// Two packs in a row, at p on a 64-byte boundary: a whole line at once where registers are as wide.
template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE void stream_pair(T* p, const Pack<float>& a, const Pack<float>& b) {
#if defined(__AVX512F__)
    _mm512_stream_si512(
        reinterpret_cast<__m512i*>(p),
        _mm512_inserti64x4(_mm512_castsi256_si512(encoded(a, p)), encoded(b, p), 1));
#else
    stream(p, a);
    stream(p + kLanes, b);
#endif
}
template <class T>
    requires kIs16Bit<T>
BNEXT_LONG Pack<float> load_first(const T* p, int n, float fill) {
    T lanes[kLanes];
#if defined(__AVX512F__)
    const __mmask16 mask = mask_of<float>(n, 0);
    const __m256i all = _mm256_maskz_loadu_epi16(mask, p);
    __builtin_memcpy(lanes, &all, sizeof all);
    return {blend_masked(mask, load(lanes).part[0], _mm512_set1_ps(fill))};
#elif defined(__AVX2__)
    // Masks are of 32 bits: the pairs, and lane n - 1 by itself, which is not in a pair where n is
    // odd.
    const __m256i pairs = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), mask_of_pairs(n));
    const __m256i last = _mm256_set1_epi16(static_cast<short>(bits_as<std::uint16_t>(p[n - 1])));
    const __m256i all = _mm256_blendv_epi8(pairs, last, mask_of_lane(n - 1));
    __builtin_memcpy(lanes, &all, sizeof all);
    const Pack<float> values = load(lanes);
    return pack_of<float>([&](auto i) BNEXT_INLINE_LAMBDA {
        return _mm256_blendv_ps(_mm256_set1_ps(fill), values.part[i],
                                _mm256_castsi256_ps(mask_of<float>(n, i)));
    });
#else
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : T{};
    float values[kLanes];
    store(values, load(lanes));
    for (int i = n; i < kLanes; ++i) values[i] = fill;
    return load(static_cast<const float*>(values));
#endif
}

template <class T>
    requires kIs16Bit<T>
BNEXT_LONG void store_first(T* p, int n, const Pack<float>& a) {
#if defined(__AVX512F__)
    _mm256_mask_storeu_epi16(p, mask_of<float>(n, 0), encoded(a, p));
#elif defined(__AVX2__)
    T lanes[kLanes];
    store(lanes, a);
    __m256i all;
    __builtin_memcpy(&all, lanes, sizeof all);
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), mask_of_pairs(n), all);
    p[n - 1] = lanes[n - 1];
#else
    T lanes[kLanes];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}
