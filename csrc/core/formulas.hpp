// The formulas: functions of the values at one place and of its channel's coefficients, by which
// the second phase of a pass writes. Written once for the CPU, where V is a pack of values, and for
// a GPU, where V is one value.
//
// A formula of V has
//     kReads, kWrites    the arrays of the data's size that it reads (x, dy, ...) and writes
//     kSummed            how many of those it reads, from the first on, the first phase sums
//     Row, kRows         its coefficients, one a channel each
//     operator()         from in[kReads] to out[kWrites]
// Kernels, their tables, the bytes of a call and its schedule follow from that. The coefficients
// of a channel are computed in cpu/kernels/coefficients.inl.hpp, and by `set` in cuda/forward.hpp
// and backward.hpp.
#pragma once

#include "core/dtype.hpp"
#include "core/inline.hpp"

#if defined(__CUDACC__)
#define BNEXT_FORMULA __host__ __device__ __forceinline__
#else
#define BNEXT_FORMULA BNEXT_FORCE_INLINE
#endif

namespace bnext {

enum class Pass : std::uint8_t { forward, backward };
enum class Epilogue : std::uint8_t { none };  // an operation on the results of a pass
inline constexpr int kPasses = 2, kEpilogues = 1;

// a * b + c, rounded once. (Packs have their own.)
#if defined(__CUDACC__)
BNEXT_FORMULA float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
BNEXT_FORMULA double fma(double a, double b, double c) { return ::fma(a, b, c); }
#else
BNEXT_FORMULA float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
BNEXT_FORMULA double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

// y = (x - center) * scale + shift.
//
// With mean = center + low (center is the mean rounded to the compute type),
//     (x - mean) * rstd * weight + bias = (x - center) * scale + (bias - low * scale)
// so the low part is folded into the shift, and centring comes before scaling: x * a + b would
// cancel when mean/std is large. Channels at the ends of float32's range go by cpu/extremes.hpp.
//
// Traffic: x once, y once (written without being read first where stores are streaming).
// Order:   elementwise, so no bit depends on it.
// Error:   three roundings: of x - center, of scale, of the fused multiply-add.
template <class V>
struct Normalize {
    static constexpr int kReads = 1, kWrites = 1, kSummed = 1;
    enum Row { kCenter, kScale, kShift, kRows };
    V row[kRows];

    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites]) const {
        const V& x = in[0];
        out[0] = fma(x - row[kCenter], row[kScale], row[kShift]);
    }
};

// dx = ((x - center) * slope + (dy - offset)) * scale.
//
// From the sums of backward_reduce over n values, with mean = center + low,
//     slope = -rstd^2 * s2 / n,  offset = s1 / n + low * slope,  scale = weight * rstd
// which is dx = weight * rstd * (dy - s1/n - xhat * rstd * s2/n). Multiplying by scale last keeps
// every intermediate in range down to std = 1e-38; beyond, cpu/extremes.hpp. The slope is negative
// where dweight is positive.
//
// Traffic: x and dy once each, dx once.
// Order:   elementwise.
// Error:   of x - center, slope, the fused multiply-add, dy - offset, scale, the product.
template <class V>
struct Gradient {
    static constexpr int kReads = 2, kWrites = 1, kSummed = 2;
    enum Row { kCenter, kSlope, kOffset, kScale, kRows };
    V row[kRows];

    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites]) const {
        const V& x = in[0];
        const V& dy = in[1];
        const V centred = x - row[kCenter];
        out[0] = fma(centred, row[kSlope], dy - row[kOffset]) * row[kScale];
    }
};

// Which formula a pass writes by.
template <Pass, Epilogue, class V>
struct FormulaOf;
template <class V>
struct FormulaOf<Pass::forward, Epilogue::none, V> {
    using type = Normalize<V>;
};
template <class V>
struct FormulaOf<Pass::backward, Epilogue::none, V> {
    using type = Gradient<V>;
};
template <Pass P, Epilogue E, class V>
using Formula = typename FormulaOf<P, E, V>::type;

// Calls f<pass, epilogue>() for all of them.
template <class F>
constexpr void for_each_formula(F&& f) {
    f.template operator()<Pass::forward, Epilogue::none>();
    f.template operator()<Pass::backward, Epilogue::none>();
}

// The most that any formula has of something.
template <class Number>
constexpr int most_of_formulas(Number number) {
    int most = 0;
    for_each_formula([&]<Pass P, Epilogue E>() {
        const int here = number(Formula<P, E, double>{});
        most = here > most ? here : most;
    });
    return most;
}
inline constexpr int kMostReads = most_of_formulas([](auto f) { return decltype(f)::kReads; });
inline constexpr int kMostWrites = most_of_formulas([](auto f) { return decltype(f)::kWrites; });
inline constexpr int kMostRows = most_of_formulas([](auto f) { return int{decltype(f)::kRows}; });

}  // namespace bnext
