// What formulas (formulas.hpp) do with single values. Packs have the same functions
// (cpu/simd.inl.hpp).
#pragma once

#include "core/inline.hpp"

#if defined(__CUDACC__)
#define BNEXT_FORMULA __host__ __device__ __forceinline__
#define BNEXT_OUTLINE BNEXT_FORMULA  // a call would need local memory
#else
#define BNEXT_FORMULA BNEXT_FORCE_INLINE
#define BNEXT_OUTLINE BNEXT_NO_INLINE
#endif

namespace bnext {

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

}  // namespace bnext
