// Packs of 16 lanes, whatever the registers' width: one AVX-512 register of floats, two of AVX2,
// four of SSE or NEON; twice as many for doubles. A lane does the same arithmetic everywhere, so
// every instruction set with fused multiply-add gives the same bits.
//
// Included inside bnext::cpu::<instruction set>, by table.inl.hpp alone. Arithmetic uses the
// compilers' vector extensions; intrinsics only where those have no word: fused multiply-add,
// masked tails, non-temporal stores. A plain 64-byte extension vector would do without `part`, but
// GCC keeps vectors wider than a register in memory.

#if defined(__AVX512F__)
inline constexpr int kNativeBytes = 64;
#elif defined(__AVX__)
inline constexpr int kNativeBytes = 32;
#else
inline constexpr int kNativeBytes = 16;
#endif

inline constexpr int kLanes = 16;
static_assert(kLanes == bnext::kLanes);  // the tiling counts in them

template <class C>
struct NativeOf;
template <>
struct NativeOf<float> {
    typedef float type __attribute__((vector_size(kNativeBytes)));
    typedef float half __attribute__((vector_size(kNativeBytes / 2)));
};
template <>
struct NativeOf<double> {
    typedef double type __attribute__((vector_size(kNativeBytes)));
};
template <>
struct NativeOf<std::uint32_t> {
    typedef std::uint32_t type __attribute__((vector_size(kNativeBytes)));
};

template <class C>
using Native = typename NativeOf<C>::type;

template <class C>
struct Pack {
    static constexpr int kParts = kLanes * static_cast<int>(sizeof(C)) / kNativeBytes;
    static constexpr int kPartLanes = kNativeBytes / static_cast<int>(sizeof(C));
    Native<C> part[kParts];
};

using Wide = Pack<double>;  // what sums are kept in

// Calls f(0), f(1), ... f(N-1) with compile-time numbers, so that arrays of registers stay such.
template <int... I, class F>
BNEXT_FORCE_INLINE void unrolled_over(Numbers<I...>, F&& f) {
    (f(Number<I>{}), ...);
}
template <int N, class F>
BNEXT_FORCE_INLINE void unrolled(F&& f) {
    unrolled_over(typename NumbersUpTo<N>::type{}, f);
}

// --- arithmetic ---------------------------------------------------------------------------------

template <class C>
BNEXT_FORCE_INLINE Pack<C> broadcast(C value) {
    Pack<C> r;
    unrolled<Pack<C>::kParts>(
        [&](auto i) BNEXT_INLINE_LAMBDA { r.part[i] = value - Native<C>{}; });  // keeps -0
    return r;
}

#define BNEXT_PACK_OPERATOR(op)                                                       \
    template <class C>                                                                \
    BNEXT_FORCE_INLINE Pack<C> operator op(const Pack<C>& a, const Pack<C>& b) {      \
        Pack<C> r;                                                                    \
        unrolled<Pack<C>::kParts>(                                                    \
            [&](auto i) BNEXT_INLINE_LAMBDA { r.part[i] = a.part[i] op b.part[i]; }); \
        return r;                                                                     \
    }
BNEXT_PACK_OPERATOR(+)
BNEXT_PACK_OPERATOR(-)
BNEXT_PACK_OPERATOR(*)
BNEXT_PACK_OPERATOR(/)
#undef BNEXT_PACK_OPERATOR

// Negative values become 0; NaN stays NaN.
BNEXT_FORCE_INLINE Wide not_negative(const Wide& a) {
    Wide r;
    unrolled<Wide::kParts>(
        [&](auto i) { r.part[i] = a.part[i] < 0.0 ? Native<double>{} : a.part[i]; });
    return r;
}

// a * b + c, rounded once where the machine can.
template <class C>
BNEXT_FORCE_INLINE Pack<C> fma(const Pack<C>& a, const Pack<C>& b, const Pack<C>& c) {
    Pack<C> r;
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
#if defined(__AVX512F__)
        if constexpr (sizeof(C) == 4) {
            r.part[i] =
                (Native<C>)_mm512_fmadd_ps((__m512)a.part[i], (__m512)b.part[i], (__m512)c.part[i]);
        } else {
            r.part[i] = (Native<C>)_mm512_fmadd_pd((__m512d)a.part[i], (__m512d)b.part[i],
                                                   (__m512d)c.part[i]);
        }
#elif defined(__FMA__)
        if constexpr (sizeof(C) == 4) {
            r.part[i] =
                (Native<C>)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]);
        } else {
            r.part[i] = (Native<C>)_mm256_fmadd_pd((__m256d)a.part[i], (__m256d)b.part[i],
                                                   (__m256d)c.part[i]);
        }
#elif defined(__aarch64__)
        if constexpr (sizeof(C) == 4) {
            r.part[i] = (Native<C>)vfmaq_f32((float32x4_t)c.part[i], (float32x4_t)a.part[i],
                                             (float32x4_t)b.part[i]);
        } else {
            r.part[i] = (Native<C>)vfmaq_f64((float64x2_t)c.part[i], (float64x2_t)a.part[i],
                                             (float64x2_t)b.part[i]);
        }
#else
        r.part[i] = a.part[i] * b.part[i] + c.part[i];
#endif
    });
    return r;
}

// x - center, by the multiplier: Zen cores add with two of their four pipes and multiply with the
// other two, and sums keep the adding ones busy.
template <class C>
class Deviation {
public:
    BNEXT_FORCE_INLINE explicit Deviation(const Pack<C>& center)
        : one_(broadcast(C{1})), minus_center_(broadcast(C{0}) - center) {}
    BNEXT_FORCE_INLINE Pack<C> operator()(const Pack<C>& x) const {
        return fma(x, one_, minus_center_);
    }

private:
    Pack<C> one_, minus_center_;
};

// --- memory -------------------------------------------------------------------------------------

template <class C>
    requires(sizeof(C) >= 4)
BNEXT_FORCE_INLINE Pack<C> load(const C* p) {
    Pack<C> r;
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        Native<C> part;  // of its own: GCC copies larger structures through memory
        __builtin_memcpy(&part, p + i * Pack<C>::kPartLanes, sizeof part);
        r.part[i] = part;
    });
    return r;
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

#if defined(__AVX2__) && !defined(__AVX512F__)
// Loading 16 entries from kMaskWindow + 16 - n gives n lanes that are on.
alignas(64) inline constexpr int kMaskWindow[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                    -1, -1, -1, -1, -1, -1, -1, -1};
template <class C>
BNEXT_FORCE_INLINE __m256i mask_of(int n, int part) {
    if constexpr (sizeof(C) == 4) {
        return _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(kMaskWindow + 16 - n + part * 8));
    } else {
        return _mm256_cvtepi32_epi64(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(kMaskWindow + 16 - n + part * 4)));
    }
}
#endif

// The first n (0 < n < 16) lanes from p, the others from `fill`; nothing past p[n-1] is touched.
template <class C>
    requires(sizeof(C) >= 4)
BNEXT_FORCE_INLINE Pack<C> load_first(const C* p, int n, C fill) {
#if defined(__AVX512F__)
    Pack<C> r = broadcast(fill);
    const unsigned mask = (1U << n) - 1U;
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        if constexpr (sizeof(C) == 4) {
            r.part[i] =
                (Native<C>)_mm512_mask_loadu_ps((__m512)r.part[i], static_cast<__mmask16>(mask), p);
        } else {
            r.part[i] = (Native<C>)_mm512_mask_loadu_pd(
                (__m512d)r.part[i], static_cast<__mmask8>(mask >> (8 * i)), p + 8 * i);
        }
    });
    return r;
#elif defined(__AVX2__)
    Pack<C> r = broadcast(fill);
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        const __m256i mask = mask_of<C>(n, i);
        if constexpr (sizeof(C) == 4) {
            r.part[i] = (Native<C>)_mm256_blendv_ps(
                (__m256)r.part[i], _mm256_maskload_ps(p + 8 * i, mask), _mm256_castsi256_ps(mask));
        } else {
            r.part[i] = (Native<C>)_mm256_blendv_pd(
                (__m256d)r.part[i], _mm256_maskload_pd(p + 4 * i, mask), _mm256_castsi256_pd(mask));
        }
    });
    return r;
#else
    C lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = i < n ? p[i] : fill;
    return load(lanes);
#endif
}

template <class C>
    requires(sizeof(C) >= 4)
BNEXT_FORCE_INLINE void store_first(C* p, int n, const Pack<C>& a) {
#if defined(__AVX512F__)
    const unsigned mask = (1U << n) - 1U;
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        if constexpr (sizeof(C) == 4) {
            _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask), (__m512)a.part[i]);
        } else {
            _mm512_mask_storeu_pd(p + 8 * i, static_cast<__mmask8>(mask >> (8 * i)),
                                  (__m512d)a.part[i]);
        }
    });
#elif defined(__AVX2__)
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        if constexpr (sizeof(C) == 4) {
            _mm256_maskstore_ps(p + 8 * i, mask_of<C>(n, i), (__m256)a.part[i]);
        } else {
            _mm256_maskstore_pd(p + 4 * i, mask_of<C>(n, i), (__m256d)a.part[i]);
        }
    });
#else
    C lanes[kLanes];
    store(lanes, a);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

// --- to double, and across lanes ----------------------------------------------------------------

// As many floats as a part has doubles. (GCC 12 splits __builtin_convertvector in halves.)
BNEXT_FORCE_INLINE Native<double> part_to_double(const float* p) {
#if defined(__AVX512F__)
    return (Native<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX__)
    return (Native<double>)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    NativeOf<float>::half half;
    __builtin_memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, Native<double>);
#endif
}

// Straight from memory: the conversion reads half a register, nothing needs to be split.
BNEXT_FORCE_INLINE Wide load_wide(const double* p) { return load(p); }
BNEXT_FORCE_INLINE Wide load_wide(const float* p) {
    Wide r;
    unrolled<Wide::kParts>(
        [&](auto i) BNEXT_INLINE_LAMBDA { r.part[i] = part_to_double(p + i * Wide::kPartLanes); });
    return r;
}

// From registers, for sums of floats that are carried on in double.
BNEXT_FORCE_INLINE Wide widen(const Wide& a) { return a; }
BNEXT_FORCE_INLINE Wide widen(const Pack<float>& a) {
    Wide r;
#if defined(__AVX512F__)
    const auto all = (__m512)a.part[0];
    r.part[0] = (Native<double>)_mm512_cvtps_pd(_mm512_castps512_ps256(all));
    r.part[1] = (Native<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1));
#elif defined(__AVX__)
    unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
        const auto all = (__m256)a.part[i];
        r.part[2 * i] = (Native<double>)_mm256_cvtps_pd(_mm256_castps256_ps128(all));
        r.part[2 * i + 1] = (Native<double>)_mm256_cvtps_pd(_mm256_extractf128_ps(all, 1));
    });
#else
    float lanes[kLanes];
    store(lanes, a);
    r = load_wide(lanes);
#endif
    return r;
}

// The other way, rounded to nearest even.
template <class C>
BNEXT_FORCE_INLINE Pack<C> round_to(const Wide& a) {
    if constexpr (sizeof(C) == 8) {
        return a;
    } else {
        Pack<C> r;
#if defined(__AVX512F__)
        const __m256 low = _mm512_cvtpd_ps((__m512d)a.part[0]);
        const __m256 high = _mm512_cvtpd_ps((__m512d)a.part[1]);
        r.part[0] = (Native<C>)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#elif defined(__AVX__)
        unrolled<2>([&](auto i) BNEXT_INLINE_LAMBDA {
            r.part[i] = (Native<C>)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)a.part[2 * i + 1]),
                                                   _mm256_cvtpd_ps((__m256d)a.part[2 * i]));
        });
#else
        double lanes[kLanes];
        C rounded[kLanes];
        store(lanes, a);
        for (int i = 0; i < kLanes; ++i) rounded[i] = static_cast<C>(lanes[i]);
        r = load(static_cast<const C*>(rounded));
#endif
        return r;
    }
}

BNEXT_FORCE_INLINE Wide square_root(const Wide& a) {
    Wide r;
    unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
#if defined(__AVX512F__)
        r.part[i] = (Native<double>)_mm512_sqrt_pd((__m512d)a.part[i]);
#elif defined(__AVX__)
        r.part[i] = (Native<double>)_mm256_sqrt_pd((__m256d)a.part[i]);
#elif defined(__SSE2__)
        r.part[i] = (Native<double>)_mm_sqrt_pd((__m128d)a.part[i]);
#elif defined(__aarch64__)
        r.part[i] = (Native<double>)vsqrtq_f64((float64x2_t)a.part[i]);
#else
        for (int k = 0; k < Wide::kPartLanes; ++k) r.part[i][k] = __builtin_sqrt(a.part[i][k]);
#endif
    });
    return r;
}

// Where `test` is 0, `otherwise`.
BNEXT_FORCE_INLINE Wide where_not_zero(const Wide& test, const Wide& a, const Wide& otherwise) {
    Wide r;
    unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        r.part[i] = test.part[i] == 0.0 ? otherwise.part[i] : a.part[i];
    });
    return r;
}

// The middle one of three, lane by lane; where one is NaN, any of them.
BNEXT_FORCE_INLINE Wide median(const Wide& a, const Wide& b, const Wide& c) {
    Wide r;
    unrolled<Wide::kParts>([&](auto i) BNEXT_INLINE_LAMBDA {
        const Native<double> x = a.part[i], y = b.part[i], z = c.part[i];
        const Native<double> low = x < y ? x : y;
        const Native<double> high = x < y ? y : x;
        const Native<double> top = high < z ? high : z;
        r.part[i] = low < top ? top : low;
    });
    return r;
}

// One tree, the same everywhere: halves are added until one lane is left.
BNEXT_FORCE_INLINE double sum_lanes(const Wide& a) {
    double lane[kLanes];
    store(lane, a);
    unrolled<8>([&](auto i) BNEXT_INLINE_LAMBDA { lane[i] += lane[i + 8]; });
    unrolled<4>([&](auto i) BNEXT_INLINE_LAMBDA { lane[i] += lane[i + 4]; });
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}
