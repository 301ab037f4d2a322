// The formulas: functions of the values at one place and of its channel's coefficients, by which
// the second phase of a pass writes. Written once for the CPU, where V is a pack of values, and for
// a GPU, where V is one value.
//
// A formula of V has
//     kReads, kWrites    the arrays of the data's size that it reads (x, dy, ...) and writes
//     kSummed            how many of those it reads, from the first on, the first phase sums
//     Row, kRows         its coefficients, one a channel each
//     operator()         from in[kReads] to out[kWrites]
// An activated formula has besides
//     fused              what it applies (core/activation.hpp); arrays that this does without are
//                        read in vain, and not written
//     kFlags             whether it writes or reads a flag for every value, where there are flags:
//                        the last argument of operator(), 1 or 0
// Kernels, their tables, the bytes of a call and its schedule follow from that. The coefficients
// of a channel are computed in cpu/kernels/coefficients.inl.hpp, and by `set` in cuda/forward.hpp
// and backward.hpp.
#pragma once

#include "core/activation_math.hpp"
#include "core/dtype.hpp"
#include "core/inline.hpp"

namespace bnext {

enum class Pass : std::uint8_t { forward, backward };
// What a pass applies besides. `activated` has all of Fused, chosen while it runs: with a kernel
// for each activation the package would take many times as long to compile.
enum class Epilogue : std::uint8_t { none, activated };
inline constexpr int kPasses = 2, kEpilogues = 2;
enum class Flags : std::uint8_t { none, written, read };

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
    static constexpr Flags kFlags = Flags::none;
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
    static constexpr Flags kFlags = Flags::none;
    enum Row { kCenter, kSlope, kOffset, kScale, kRows };
    V row[kRows];

    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites]) const {
        const V& x = in[0];
        const V& dy = in[1];
        const V centred = x - row[kCenter];
        out[0] = fma(centred, row[kSlope], dy - row[kOffset]) * row[kScale];
    }
};

// dx where positions have weights (cpu/weights.hpp):
//     dx = (dy + w * ((x - center) * slope - offset)) * scale
// with w the weight of a position, and n of the sums the sum of all weights.
//
// Traffic: x, dy and w once each, dx once; w is the same for all channels.
// Order:   elementwise.
// Error:   as Gradient, with a rounding more of the weight's share.
template <class V>
struct WeightedGradient {
    static constexpr int kReads = 2, kWrites = 1, kSummed = 2;
    static constexpr Flags kFlags = Flags::none;
    enum Row { kCenter, kSlope, kOffset, kScale, kRows };
    V row[kRows];
    V weight;

    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites]) const {
        const V& x = in[0];
        const V& dy = in[1];
        const V share = fma(x - row[kCenter], row[kSlope], -row[kOffset]);
        out[0] = fma(weight, share, dy) * row[kScale];
    }
};

// y = act(z), z = Normalize(x) + residual.
//
// Traffic: x, the residual and y once each; the flags where they are kept.
// Order:   elementwise.
// Error:   Normalize's, one rounding of the sum, and the activation's (activation_math.hpp).
template <class V>
struct NormalizeActivated : Normalize<V> {
    static constexpr int kReads = 2, kWrites = 1, kSummed = 1;
    static constexpr Flags kFlags = Flags::written;
    Fused fused{};

    BNEXT_FORMULA V normalized(const V& x) const {
        const V in[] = {x};
        V out[1];
        Normalize<V>::operator()(in, out);
        return out[0];
    }
    BNEXT_FORMULA V z(const V& x, const V& residual) const {
        return fused.residual ? normalized(x) + residual : normalized(x);
    }
    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites]) const {
        out[0] = activate(fused, z(in[0], in[1]));
    }
    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites], V& flag) const {
        const V at = z(in[0], in[1]);
        flag = passes(fused, at);
        out[0] = activate(fused, at);
    }
};

// g = dy * act'(z), from x, dy and the residual (flags: gradient_by_flag). Rows of z, as Normalize
// has them, of the forward call's weight and bias. In place, y takes the place of x, and of z,
// whose sign it has.
template <class V>
struct ThroughActivation {
    static constexpr Flags kFlags = Flags::read;
    enum Row { kCenter, kScale, kShift, kRows };
    V row[kRows];
    Fused fused{};

    BNEXT_FORMULA V operator()(const V& x, const V& dy, const V& residual) const {
        if (fused.in_place) return gradient_through(fused, x, dy);
        const V z = fma(x - row[kCenter], row[kScale], row[kShift]);
        return gradient_through(fused, fused.residual ? z + residual : z, dy);
    }
};

// dx, with g = ThroughActivation in place of dy, and dresidual = g. The sums are of g. In place, z
// takes the place of x, and cpu/in_place.hpp has the coefficients.
//
// Traffic: x, dy, the residual or the flags, and dx once each; dresidual where there is a residual.
// Order:   elementwise.
// Error:   Gradient's, and of g (activation_math.hpp).
template <class V>
struct GradientActivated {
    static constexpr int kReads = 3, kWrites = 2, kSummed = 2;
    static constexpr Flags kFlags = Flags::read;
    enum Row { kCenter, kSlope, kOffset, kScale, kScaleOfZ, kShiftOfZ, kRows };
    V row[kRows];
    Fused fused{};

    // z without a residual, and dx of any g.
    BNEXT_FORMULA V z(const V& x) const {
        return fma(x - row[kCenter], row[kScaleOfZ], row[kShiftOfZ]);
    }
    BNEXT_FORMULA V from_gradient(const V& x, const V& g) const {
        return fma(x - row[kCenter], row[kSlope], g - row[kOffset]) * row[kScale];
    }
    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites]) const {
        if (fused.in_place) {
            out[1] = gradient_through(fused, in[0], in[1]);
            out[0] = from_gradient(argument_of(fused, in[0]), out[1]);
            return;
        }
        const V of_x = z(in[0]);
        out[1] = gradient_through(fused, fused.residual ? of_x + in[2] : of_x, in[1]);
        out[0] = from_gradient(in[0], out[1]);
    }
    BNEXT_FORMULA void operator()(const V (&in)[kReads], V (&out)[kWrites], const V& flag) const {
        out[1] = gradient_by_flag(fused, flag, in[1]);
        out[0] = from_gradient(in[0], out[1]);
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
template <class V>
struct FormulaOf<Pass::forward, Epilogue::activated, V> {
    using type = NormalizeActivated<V>;
};
template <class V>
struct FormulaOf<Pass::backward, Epilogue::activated, V> {
    using type = GradientActivated<V>;
};
template <Pass P, Epilogue E, class V>
using Formula = typename FormulaOf<P, E, V>::type;

// Calls f<pass, epilogue>() for all of them.
template <class F>
constexpr void for_each_formula(F&& f) {
    f.template operator()<Pass::forward, Epilogue::none>();
    f.template operator()<Pass::backward, Epilogue::none>();
    f.template operator()<Pass::forward, Epilogue::activated>();
    f.template operator()<Pass::backward, Epilogue::activated>();
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
