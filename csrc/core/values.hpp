// What formulas (formulas.hpp) do with single values. Packs have the same functions
// (cpu/simd.inl.hpp).
#pragma once

#include <cstdint>

#include "core/inline.hpp"

#if defined(__CUDACC__)
#define BNEXT_FORMULA __host__ __device__ __forceinline__
#define BNEXT_OUTLINE __host__ __device__ __noinline__
#else
#define BNEXT_FORMULA BNEXT_FORCE_INLINE
#define BNEXT_OUTLINE BNEXT_NO_INLINE
#endif

namespace bnext {

// Of a word or a float, or of vectors of them: the same bits as the other type.
template <class To, class From>
BNEXT_FORMULA To bits_as(const From& from) {
    To to;
    static_assert(sizeof to == sizeof from);
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// What a V consists of: for its type, never called.
float lane_of(float);
double lane_of(double);

// a * b + c, rounded once.
#if defined(__CUDACC__)
BNEXT_FORMULA float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
BNEXT_FORMULA double fma(double a, double b, double c) { return ::fma(a, b, c); }
#else
BNEXT_FORMULA float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
BNEXT_FORMULA double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

// The number, of the first argument's type.
BNEXT_FORMULA float like(float, double number) { return static_cast<float>(number); }
BNEXT_FORMULA double like(double, double number) { return number; }

// Where a < b, else: NaN is not less.
BNEXT_FORMULA float where_less(float a, float b, float then, float otherwise) {
    return a < b ? then : otherwise;
}
BNEXT_FORMULA double where_less(double a, double b, double then, double otherwise) {
    return a < b ? then : otherwise;
}
// Where not a <= b, else: NaN is not at most.
BNEXT_FORMULA float unless_at_most(float a, float b, float then, float otherwise) {
    return !(a <= b) ? then : otherwise;
}
BNEXT_FORMULA double unless_at_most(double a, double b, double then, double otherwise) {
    return !(a <= b) ? then : otherwise;
}

// The larger and the smaller of two; of NaN and b, NaN.
BNEXT_FORMULA float at_least(float a, float b) { return a < b ? b : a; }
BNEXT_FORMULA double at_least(double a, double b) { return a < b ? b : a; }
BNEXT_FORMULA float at_most(float a, float b) { return b < a ? b : a; }
BNEXT_FORMULA double at_most(double a, double b) { return b < a ? b : a; }

// a * b + c, c about -a * b: also where the machine has no fused multiply-add, the product is not
// rounded.
BNEXT_FORMULA float cancelling_fma(float a, float b, float c) { return fma(a, b, c); }
BNEXT_FORMULA double cancelling_fma(double a, double b, double c) { return fma(a, b, c); }

// The magnitude of a with the sign of b, also of zeros.
BNEXT_FORMULA float with_sign_of(float a, float b) {
    constexpr std::uint32_t kSign = std::uint32_t{1} << 31;
    return bits_as<float>((bits_as<std::uint32_t>(a) & ~kSign) |
                          (bits_as<std::uint32_t>(b) & kSign));
}
BNEXT_FORMULA double with_sign_of(double a, double b) {
    constexpr std::uint64_t kSign = std::uint64_t{1} << 63;
    return bits_as<double>((bits_as<std::uint64_t>(a) & ~kSign) |
                           (bits_as<std::uint64_t>(b) & kSign));
}

// -|a|, also of NaN.
BNEXT_FORMULA float minus_magnitude(float a) { return with_sign_of(a, -1.0F); }
BNEXT_FORMULA double minus_magnitude(double a) { return with_sign_of(a, -1.0); }

// |a|
BNEXT_FORMULA float magnitude(float a) { return with_sign_of(a, 1.0F); }
BNEXT_FORMULA double magnitude(double a) { return with_sign_of(a, 1.0); }

// 2^n, when the last bits of `rounded` are n plus the exponent's bias.
BNEXT_FORMULA float power_of_two(float rounded) {
    return bits_as<float>(bits_as<std::uint32_t>(rounded) << 23);
}
BNEXT_FORMULA double power_of_two(double rounded) {
    return bits_as<double>(bits_as<std::uint64_t>(rounded) << 52);
}
// a 2^n, when the last bits of `rounded` are n, and neither a nor the result is 0 or subnormal.
BNEXT_FORMULA float times_power_of_two(float a, float rounded) {
    return bits_as<float>(bits_as<std::uint32_t>(a) + (bits_as<std::uint32_t>(rounded) << 23));
}
BNEXT_FORMULA double times_power_of_two(double a, double rounded) {
    return bits_as<double>(bits_as<std::uint64_t>(a) + (bits_as<std::uint64_t>(rounded) << 52));
}

}  // namespace bnext

// How a function out of line takes a value: by reference it would need local memory on a GPU.
#if defined(__CUDACC__)
#define BNEXT_OUTLINE_VALUE(V) V
#else
#define BNEXT_OUTLINE_VALUE(V) const V&
#endif
