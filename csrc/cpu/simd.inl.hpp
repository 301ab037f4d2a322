// Packs of 16 lanes, whatever the registers' width: one AVX-512 register of floats, two of AVX2,
// four of SSE or NEON; twice as many for doubles. A lane does the same arithmetic everywhere, so
// every instruction set with fused multiply-add gives the same bits.
//
// Arithmetic uses the compilers' vector extensions; intrinsics only where those have no word: fused
// multiply-add, masked tails, non-temporal stores. A plain 64-byte extension vector would do
// without `part`, but GCC keeps vectors wider than a register in memory.

#if defined(__AVX512F__)
inline constexpr int kNativeBytes = 64;
#elif defined(__AVX__)
inline constexpr int kNativeBytes = 32;
#else
inline constexpr int kNativeBytes = 16;
#endif

// Long functions are in place, but calls where an instruction set is made small (CMakeLists.txt).
#if defined(BNEXT_SMALL)
#define BNEXT_LONG [[gnu::noinline]] inline
#else
#define BNEXT_LONG BNEXT_FORCE_INLINE
#endif

inline constexpr int kLanes = 16;
static_assert(kLanes == bnext::kLanes);  // the tiling counts in them

template <class C>
struct NativeOf {
    typedef C type __attribute__((vector_size(kNativeBytes)));
};
template <class C>
using Native = typename NativeOf<C>::type;
using Floats = Native<float>;
using Doubles = Native<double>;

template <class C>
struct Pack {
    static constexpr int kParts = kLanes * static_cast<int>(sizeof(C)) / kNativeBytes;
    static constexpr int kPartLanes = kNativeBytes / static_cast<int>(sizeof(C));
    Native<C> part[kParts];
};

using Wide = Pack<double>;  // what sums are kept in

template <class P>
struct LaneOfPack;
template <class C>
struct LaneOfPack<Pack<C>> {
    using type = C;
};
template <class P>
using LaneOf = typename LaneOfPack<P>::type;

// Calls f(0), f(1), ... f(N-1) with compile-time numbers, so that arrays of registers stay such.
template <int N, class F>
BNEXT_FORCE_INLINE void unrolled(F&& f) {
    [&]<int... I>(std::integer_sequence<int, I...>)
        BNEXT_INLINE_LAMBDA { (f(Number<I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

// The pack whose parts are f(0), f(1), ...
template <class C, class F>
BNEXT_FORCE_INLINE Pack<C> pack_of(F&& f) {
    Pack<C> r;
    unrolled<Pack<C>::kParts>([&](auto i) BNEXT_INLINE_LAMBDA { r.part[i] = f(i); });
    return r;
}

// a * b + c
#if defined(__AVX512F__)
BNEXT_FORCE_INLINE Floats fma_parts(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
}
BNEXT_FORCE_INLINE Doubles fma_parts(Doubles a, Doubles b, Doubles c) {
    return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__FMA__)
BNEXT_FORCE_INLINE Floats fma_parts(Floats a, Floats b, Floats c) {
    return _mm256_fmadd_ps(a, b, c);
}
BNEXT_FORCE_INLINE Doubles fma_parts(Doubles a, Doubles b, Doubles c) {
    return _mm256_fmadd_pd(a, b, c);
}
#elif defined(__aarch64__)
BNEXT_FORCE_INLINE Floats fma_parts(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
BNEXT_FORCE_INLINE Doubles fma_parts(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
#else
template <class Part>
BNEXT_FORCE_INLINE Part fma_parts(const Part& a, const Part& b, const Part& c) {
    return a * b + c;
}
#endif

// --- arithmetic ---------------------------------------------------------------------------------

template <class C>
BNEXT_FORCE_INLINE Pack<C> broadcast(C value) {
    return pack_of<C>([&](auto) BNEXT_INLINE_LAMBDA { return value - Native<C>{}; });  // keeps -0
}

#define BNEXT_PACK_OPERATOR(op)                                                                \
    template <class C>                                                                         \
    BNEXT_FORCE_INLINE Pack<C> operator op(const Pack<C>& a, const Pack<C>& b) {               \
        return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA { return a.part[i] op b.part[i]; }); \
    }
BNEXT_PACK_OPERATOR(+)
BNEXT_PACK_OPERATOR(-)
BNEXT_PACK_OPERATOR(*)
BNEXT_PACK_OPERATOR(/)
#undef BNEXT_PACK_OPERATOR

template <class C>
BNEXT_FORCE_INLINE Pack<C> operator-(const Pack<C>& a) {
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA { return -a.part[i]; });
}

// Negative values become 0; NaN stays NaN.
BNEXT_FORCE_INLINE Wide not_negative(const Wide& a) {
    return pack_of<double>(
        [&](auto i) BNEXT_INLINE_LAMBDA { return a.part[i] < 0.0 ? Native<double>{} : a.part[i]; });
}

// a * b + c, rounded once where the machine can.
template <class C>
BNEXT_FORCE_INLINE Pack<C> fma(const Pack<C>& a, const Pack<C>& b, const Pack<C>& c) {
    return pack_of<C>(
        [&](auto i) BNEXT_INLINE_LAMBDA { return fma_parts(a.part[i], b.part[i], c.part[i]); });
}

// As core/values.hpp has them.
template <class C>
BNEXT_FORCE_INLINE Pack<C> like(const Pack<C>&, double number) {
    return broadcast(static_cast<C>(number));
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> where_less(const Pack<C>& a, const Pack<C>& b, const Pack<C>& then,
                                      const Pack<C>& otherwise) {
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return a.part[i] < b.part[i] ? then.part[i] : otherwise.part[i];
    });
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> unless_at_most(const Pack<C>& a, const Pack<C>& b, const Pack<C>& then,
                                          const Pack<C>& otherwise) {
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return a.part[i] <= b.part[i] ? otherwise.part[i] : then.part[i];
    });
}

// The instructions' second operand is the result where one is NaN.
#if defined(__AVX512F__)
BNEXT_FORCE_INLINE Floats larger_part(Floats b, Floats a) { return _mm512_max_ps(b, a); }
BNEXT_FORCE_INLINE Doubles larger_part(Doubles b, Doubles a) { return _mm512_max_pd(b, a); }
BNEXT_FORCE_INLINE Floats smaller_part(Floats b, Floats a) { return _mm512_min_ps(b, a); }
BNEXT_FORCE_INLINE Doubles smaller_part(Doubles b, Doubles a) { return _mm512_min_pd(b, a); }
#elif defined(__AVX__)
BNEXT_FORCE_INLINE Floats larger_part(Floats b, Floats a) { return _mm256_max_ps(b, a); }
BNEXT_FORCE_INLINE Doubles larger_part(Doubles b, Doubles a) { return _mm256_max_pd(b, a); }
BNEXT_FORCE_INLINE Floats smaller_part(Floats b, Floats a) { return _mm256_min_ps(b, a); }
BNEXT_FORCE_INLINE Doubles smaller_part(Doubles b, Doubles a) { return _mm256_min_pd(b, a); }
#else
template <class Part>
BNEXT_FORCE_INLINE Part larger_part(const Part& b, const Part& a) {
    return a < b ? b : a;
}
template <class Part>
BNEXT_FORCE_INLINE Part smaller_part(const Part& b, const Part& a) {
    return b < a ? b : a;
}
#endif
template <class C>
BNEXT_FORCE_INLINE Pack<C> at_least(const Pack<C>& a, const Pack<C>& b) {
    return pack_of<C>([&](auto i)
                          BNEXT_INLINE_LAMBDA { return larger_part(b.part[i], a.part[i]); });
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> at_most(const Pack<C>& a, const Pack<C>& b) {
    return pack_of<C>([&](auto i)
                          BNEXT_INLINE_LAMBDA { return smaller_part(b.part[i], a.part[i]); });
}

template <class C>
C lane_of(const Pack<C>&);
template <class C>
BNEXT_LONG Pack<C> cancelling_fma(const Pack<C>& a, const Pack<C>& b, const Pack<C>& c) {
#if defined(__AVX512F__) || defined(__FMA__) || defined(__aarch64__)
    return fma(a, b, c);
#else
    // Dekker's: the products of halves are exact, and so is the sum of `product` and c.
    const Pack<C> splitter = broadcast(static_cast<C>(sizeof(C) == 4 ? 0x1p12 + 1 : 0x1p27 + 1));
    const auto upper_half = [&](const Pack<C>& x) BNEXT_INLINE_LAMBDA {
        const Pack<C> multiple = x * splitter;
        return multiple - (multiple - x);
    };
    const Pack<C> a_upper = upper_half(a), a_lower = a - a_upper;
    const Pack<C> b_upper = upper_half(b), b_lower = b - b_upper;
    const Pack<C> product = a * b;
    const Pack<C> crossed = a_upper * b_lower + (a_upper * b_upper - product);
    return (product + c) + (a_lower * b_lower + (a_lower * b_upper + crossed));
#endif
}

template <class C>
using WordOf = std::conditional_t<sizeof(C) == 4, std::uint32_t, std::uint64_t>;
template <class C>
BNEXT_FORCE_INLINE Pack<C> with_sign_of(const Pack<C>& a, const Pack<C>& b) {
    using Bits = Native<WordOf<C>>;
    constexpr WordOf<C> kSign = WordOf<C>{1} << (8 * sizeof(C) - 1);
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return (Native<C>)(((Bits)a.part[i] & ~kSign) | ((Bits)b.part[i] & kSign));
    });
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> minus_magnitude(const Pack<C>& a) {
    constexpr WordOf<C> kSign = WordOf<C>{1} << (8 * sizeof(C) - 1);
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return (Native<C>)((Native<WordOf<C>>)a.part[i] | kSign);
    });
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> magnitude(const Pack<C>& a) {
    constexpr WordOf<C> kSign = WordOf<C>{1} << (8 * sizeof(C) - 1);
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return (Native<C>)((Native<WordOf<C>>)a.part[i] & ~kSign);
    });
}
template <class C>
inline constexpr int kMantissaBits = sizeof(C) == 4 ? 23 : 52;
template <class C>
BNEXT_FORCE_INLINE Pack<C> power_of_two(const Pack<C>& rounded) {
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return (Native<C>)((Native<WordOf<C>>)rounded.part[i] << kMantissaBits<C>);
    });
}
template <class C>
BNEXT_FORCE_INLINE Pack<C> times_power_of_two(const Pack<C>& a, const Pack<C>& rounded) {
    using Bits = Native<WordOf<C>>;
    return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
        return (Native<C>)((Bits)a.part[i] + ((Bits)rounded.part[i] << kMantissaBits<C>));
    });
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

#include "cpu/simd_memory.inl.hpp"

// --- to double, and across lanes ----------------------------------------------------------------

// As many floats as a part has doubles. (GCC 12 splits __builtin_convertvector in halves.)
BNEXT_FORCE_INLINE Native<double> part_to_double(const float* p) {
#if defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX__)
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    typedef float Half __attribute__((vector_size(kNativeBytes / 2)));
    Half half;
    __builtin_memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, Native<double>);
#endif
}

// Straight from memory: the conversion reads half a register, nothing needs to be split.
BNEXT_FORCE_INLINE Wide load_wide(const double* p) { return load(p); }
BNEXT_FORCE_INLINE Wide load_wide(const float* p) {
    return pack_of<double>(
        [&](auto i) BNEXT_INLINE_LAMBDA { return part_to_double(p + i * Wide::kPartLanes); });
}

// From registers, for sums of floats that are carried on in double.
BNEXT_FORCE_INLINE Wide widen(const Wide& a) { return a; }
BNEXT_FORCE_INLINE Wide widen(const Pack<float>& a) {
#if defined(__AVX512F__)
    const Floats all = a.part[0];
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(all)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1))};
#elif defined(__AVX__)
    return pack_of<double>([&](auto i) BNEXT_INLINE_LAMBDA {
        return _mm256_cvtps_pd(_mm256_extractf128_ps(a.part[i / 2], i % 2));
    });
#else
    float lanes[kLanes];
    store(lanes, a);
    return load_wide(lanes);
#endif
}

// The other way, rounded to nearest even.
template <class C>
BNEXT_FORCE_INLINE Pack<C> round_to(const Wide& a) {
    if constexpr (sizeof(C) == 8) {
        return a;
    } else {
#if defined(__AVX512F__)
        const __m256 low = _mm512_cvtpd_ps(a.part[0]), high = _mm512_cvtpd_ps(a.part[1]);
        return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
#elif defined(__AVX__)
        return pack_of<C>([&](auto i) BNEXT_INLINE_LAMBDA {
            return _mm256_set_m128(_mm256_cvtpd_ps(a.part[2 * i + 1]),
                                   _mm256_cvtpd_ps(a.part[2 * i]));
        });
#else
        double lanes[kLanes];
        C rounded[kLanes];
        store(lanes, a);
        for (int i = 0; i < kLanes; ++i) rounded[i] = static_cast<C>(lanes[i]);
        return load(static_cast<const C*>(rounded));
#endif
    }
}

BNEXT_FORCE_INLINE Wide square_root(const Wide& a) {
    return pack_of<double>([&](auto i) BNEXT_INLINE_LAMBDA {
        Doubles part = a.part[i];
#if defined(__AVX512F__)
        part = _mm512_sqrt_pd(part);
#elif defined(__AVX__)
        part = _mm256_sqrt_pd(part);
#elif defined(__SSE2__)
        part = _mm_sqrt_pd(part);
#elif defined(__aarch64__)
        part = vsqrtq_f64(part);
#else
        for (int k = 0; k < Wide::kPartLanes; ++k) part[k] = __builtin_sqrt(part[k]);
#endif
        return part;
    });
}

// Where `test` is 0, `otherwise`.
BNEXT_FORCE_INLINE Wide where_not_zero(const Wide& test, const Wide& a, const Wide& otherwise) {
    return pack_of<double>([&](auto i) BNEXT_INLINE_LAMBDA {
        return test.part[i] == 0.0 ? otherwise.part[i] : a.part[i];
    });
}

// The middle one of three, lane by lane; where one is NaN, any of them.
BNEXT_FORCE_INLINE Wide median(const Wide& a, const Wide& b, const Wide& c) {
    return pack_of<double>([&](auto i) BNEXT_INLINE_LAMBDA {
        const Doubles x = a.part[i], y = b.part[i], z = c.part[i];
        const Doubles low = x < y ? x : y, high = x < y ? y : x;
        const Doubles top = high < z ? high : z;
        return low < top ? top : low;
    });
}

// One tree, the same everywhere: halves are added until one lane is left.
BNEXT_FORCE_INLINE double sum_lanes(const Wide& a) {
    double lane[kLanes];
    store(lane, a);
    unrolled<8>([&](auto i) BNEXT_INLINE_LAMBDA { lane[i] += lane[i + 8]; });
    unrolled<4>([&](auto i) BNEXT_INLINE_LAMBDA { lane[i] += lane[i + 4]; });
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}
