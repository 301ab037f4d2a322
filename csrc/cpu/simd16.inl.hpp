// Packs of 16-bit data. In registers everything is float32; loads widen, stores round to nearest
// even. Where there are no instructions for it, words do what core/dtype.hpp does to single values.
//
// Included inside bnext::cpu::<instruction set>, by table.inl.hpp alone, behind simd.inl.hpp.

using Words = Pack<std::uint32_t>;

BNEXT_FORCE_INLINE Words words_of(const Pack<float>& a) {
    Words r;
    unrolled<Words::kParts>(
        [&](auto i) BNEXT_INLINE_LAMBDA { r.part[i] = (Native<std::uint32_t>)a.part[i]; });
    return r;
}
BNEXT_FORCE_INLINE Pack<float> floats_of(const Words& a) {
    Pack<float> r;
    unrolled<Words::kParts>([&](auto i)
                                BNEXT_INLINE_LAMBDA { r.part[i] = (Native<float>)a.part[i]; });
    return r;
}

// Applies f(part of a) to every part.
template <class F>
BNEXT_FORCE_INLINE Words map_words(const Words& a, F&& f) {
    Words r;
    unrolled<Words::kParts>([&](auto i) BNEXT_INLINE_LAMBDA { r.part[i] = f(a.part[i]); });
    return r;
}

BNEXT_FORCE_INLINE Words widen_shorts(const std::uint16_t* p) {
    Words r;
#if defined(__AVX512F__)
    r.part[0] = (Native<std::uint32_t>)_mm512_cvtepu16_epi32(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        r.part[i] = (Native<std::uint32_t>)_mm256_cvtepu16_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i)));
    });
#else
    typedef std::uint16_t Half __attribute__((vector_size(8)));
    unrolled<Words::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        Half half;
        __builtin_memcpy(&half, p + 4 * i, sizeof half);
        r.part[i] = __builtin_convertvector(half, Native<std::uint32_t>);
    });
#endif
    return r;
}

// Of words below 2^16.
BNEXT_FORCE_INLINE void narrow_to_shorts(const Words& a, std::uint16_t* p) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)a.part[0]));
#elif defined(__AVX2__)
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

BNEXT_FORCE_INLINE Pack<float> decode(const bfloat16* p) {
    return floats_of(map_words(widen_shorts(&p->bits), [](auto word) { return word << 16; }));
}

BNEXT_FORCE_INLINE Pack<float> decode(const float16* p) {
#if defined(__AVX512F__)
    Pack<float> r;
    r.part[0] =
        (Native<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return r;
#elif defined(__F16C__)
    Pack<float> r;
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        r.part[i] = (Native<float>)_mm256_cvtph_ps(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i)));
    });
    return r;
#else
    return floats_of(map_words(widen_shorts(&p->bits), [](auto half) {
        using Part = Native<std::uint32_t>;
        const Part magnitude = half & 0x7fffU;
        const Part normal = (magnitude << 13) + (112U << 23);
        const auto tiny = (Native<float>)(normal + (1U << 23)) - 0x1p-14F;  // below 2^-14
        Part word = magnitude >= 0x7c00U ? normal + (112U << 23) : normal;
        word = magnitude < 0x400U ? (Part)tiny : word;
        return word | ((half & 0x8000U) << 16);
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

BNEXT_FORCE_INLINE void encode(const Pack<float>& a, bfloat16* p) {
    narrow_to_shorts(
        map_words(rounded_words(a), [](auto word) BNEXT_INLINE_LAMBDA { return word >> 16; }),
        &p->bits);
}

BNEXT_FORCE_INLINE void encode(const Pack<float>& a, float16* p) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph((__m512)a.part[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i),
                         _mm256_cvtps_ph((__m256)a.part[i], _MM_FROUND_TO_NEAREST_INT));
    });
#else
    narrow_to_shorts(
        map_words(words_of(a),
                  [](auto word) {
                      using Part = Native<std::uint32_t>;
                      const Part magnitude = word & 0x7fffffffU;
                      const Part normal =
                          (magnitude - (112U << 23) + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
                      const Part tiny = (Part)((Native<float>)magnitude + 0.5F) - 0x3f000000U;
                      Part half = magnitude < 0x38800000U ? tiny : normal;
                      half = magnitude >= 0x47800000U ? 0x7c00U - Part{} : half;
                      half =
                          magnitude > 0x7f800000U ? 0x7e00U | ((magnitude >> 13) & 0x3ffU) : half;
                      return half | ((word >> 16) & 0x8000U);
                  }),
        &p->bits);
#endif
}

template <class T>
inline constexpr bool kIs16Bit = sizeof(T) == 2;

template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE Pack<float> load(const T* p) {
    return decode(p);
}

#if defined(__AVX512F__)
BNEXT_FORCE_INLINE __m256i encoded(const Pack<float>& a, const float16*) {
    return _mm512_cvtps_ph((__m512)a.part[0], _MM_FROUND_TO_NEAREST_INT);
}
BNEXT_FORCE_INLINE __m256i encoded(const Pack<float>& a, const bfloat16*) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)rounded_words(a).part[0], 16));
}
#endif

template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE void stream(T* p, const Pack<float>& a) {
#if defined(__AVX512F__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), encoded(a, p));
#elif defined(__AVX2__)
    T lanes[kLanes];
    encode(a, lanes);
    __m256i all;
    __builtin_memcpy(&all, lanes, sizeof all);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), all);
#elif defined(__SSE2__)
    T lanes[kLanes];
    encode(a, lanes);
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        __m128i half;
        __builtin_memcpy(&half, lanes + 8 * i, sizeof half);
        _mm_stream_si128(reinterpret_cast<__m128i*>(p + 8 * i), half);
    });
#else
    encode(a, p);
#endif
}

template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE void store(T* p, const Pack<float>& a) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), encoded(a, p));
#else
    encode(a, p);
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
BNEXT_FORCE_INLINE Pack<float> load_first(const T* p, int n, float fill) {
    T lanes[kLanes];
#if defined(__AVX512F__)
    const auto mask = static_cast<__mmask16>((1U << n) - 1U);
    const __m256i all = _mm256_maskz_loadu_epi16(mask, p);
    __builtin_memcpy(lanes, &all, sizeof all);
    Pack<float> r = decode(lanes);
    r.part[0] = (Native<float>)_mm512_mask_blend_ps(mask, _mm512_set1_ps(fill), (__m512)r.part[0]);
    return r;
#else
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : T{};
    float values[kLanes];
    store(values, decode(lanes));
    for (int i = n; i < kLanes; ++i) values[i] = fill;
    return load(static_cast<const float*>(values));
#endif
}

template <class T>
    requires kIs16Bit<T>
BNEXT_FORCE_INLINE void store_first(T* p, int n, const Pack<float>& a) {
    T lanes[kLanes];
    encode(a, lanes);
#if defined(__AVX512F__)
    __m256i all;
    __builtin_memcpy(&all, lanes, sizeof all);
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1U << n) - 1U), all);
#else
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}
