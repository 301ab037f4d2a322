// The activations that are no pieces of lines, and their derivatives, for V = float, double or a
// pack of them (values.hpp). Only operations that IEEE 754 defines, in one order: with fused
// multiply-add every machine has the same bits. No branch depends on data.
//
// Error:   values have at most 4 units in the last place, also where they are nearly 0 and down to
//          the subnormal numbers. Derivatives have the same, or 2^-24 (double: 2^-53) times the
//          derivative's maximum where they change their sign. Without fused multiply-add gelu has
//          8 units. tests/cpp/activations.cpp measures it.
// Limits:  those of the functions, where PyTorch has NaN at an infinite z; NaN stays NaN.
//
// All but hardswish need one exponential, of a number that is not positive: of -|z|, or of -z^2/2.
// It is kept multiplied by kUp until the last step, so that it loses no bits where it is subnormal.
// Polynomials, and numbers in two parts, are from benchmarks/fit_activations.py.
#pragma once

#include <numbers>
#include <utility>

#include "core/activation.hpp"
#include "core/values.hpp"

namespace bnext::smooth_activations {

template <class C>
struct Numbers;

template <>
struct Numbers<float> {
    static constexpr double kRounding = 0x1.8p23;  // a sum with it is a whole number
    static constexpr int kBias = 127;              // of exponents
    static constexpr int kUpExponent = 64;         // kUp is 2^this
    static constexpr double kDown = 0x1p-64;       // 1 / kUp
    // Whose exponential, and whose tail times themselves, are 0. Exponents are in range there.
    static constexpr double kFar = 110, kFarOfTail = 14.75, kFarOfCubic = 11;

    static constexpr double kLn2 = 0.69314575, kLn2Rest = 1.4286068e-6;
    static constexpr double kLinear = 1.5957689, kLinearRest = 1.930779e-7;
    static constexpr double kCubic = 0.071354814, kCubicRest = 2.3988325e-9;

    // exp(r) = 1 + r + r^2 p(r), |r| <= ln(2)/2
    static constexpr double kExponential[] = {0.49999997, 0.16666543, 0.0416672, 0.0083665205,
                                              0.0013882524};
    // Phi(-t) = exp(-t^2/2) p(y) / (t + k), y = 1 - 2k/(t + k), 0 <= t <= kFarOfTail, and k is one
    // of the numbers where the coefficients' rounding errors do least
    static constexpr double kTailShift = 3.53125;
    static constexpr double kTail[] = {0.74520606,   -0.56856686,   0.3203015,     -0.12048729,
                                       0.019730577,  0.006023928,   -0.0033698909, -0.000387164,
                                       0.0004400405, 0.000100666846};
};

template <>
struct Numbers<double> {
    static constexpr double kRounding = 0x1.8p52;
    static constexpr int kBias = 1023;
    static constexpr int kUpExponent = 512;
    static constexpr double kDown = 0x1p-512;
    static constexpr double kFar = 800, kFarOfTail = 39, kFarOfCubic = 22;

    static constexpr double kLn2 = 0.6931471805598903, kLn2Rest = 5.497923018708371e-14;
    static constexpr double kLinear = 1.5957691216057341, kLinearRest = -3.430362161966579e-15;
    static constexpr double kCubic = 0.07135481627260025, kCubicRest = -6.175149918155315e-19;

    static constexpr double kExponential[] = {
        0.5000000000000006,    0.16666666666666588,    0.04166666666657676,   0.008333333333389554,
        0.0013888888931564926, 0.00019841269718999608, 2.4801505273641942e-5, 2.755740755060776e-6,
        2.7626037967393664e-7, 2.505377215494738e-8};
    static constexpr double kTailShift = 3.9375;
    static constexpr double kTail[] = {
        0.7541108056114132,      -0.6032175877860371,    0.3788883217419735,
        -0.17784760767384516,    0.05445373511102412,    -0.005057371598910256,
        -0.003831248309656435,   0.0014048021887235675,  0.0002434497791305568,
        -0.00021491730082559294, -2.242298453665086e-5,  3.3557379540575696e-5,
        4.546406266286637e-6,    -5.493346273282475e-6,  -1.3665729473368303e-6,
        8.536312696002142e-7,    4.048453324827923e-7,   -9.669333198047824e-8,
        -1.032908125006107e-7,   -2.1656519543532006e-9, 2.0040166505895175e-8,
        4.3859225842932915e-9,   -2.176838615241745e-9,  -8.200658936350708e-10};
};

template <class V>
using Of = Numbers<decltype(lane_of(std::declval<const V&>()))>;

// The coefficients from number k on, lowest power first, by Horner's rule.
template <class Coefficients, int k = 0, class V>
BNEXT_FORMULA V polynomial(const V& x) {
    constexpr double coefficient = Coefficients::at(k);
    if constexpr (k + 1 == Coefficients::kTerms) {
        return like(x, coefficient);
    } else {
        return fma(polynomial<Coefficients, k + 1>(x), x, like(x, coefficient));
    }
}
template <class N>
struct ExponentialOf {
    static constexpr int kTerms = sizeof N::kExponential / sizeof(double);
    static constexpr double at(int k) { return N::kExponential[k]; }
};
template <class N>
struct TailOf {
    static constexpr int kTerms = sizeof N::kTail / sizeof(double);
    static constexpr double at(int k) { return N::kTail[k]; }
};

// --- what the functions are made of -------------------------------------------------------------
// (Constructors initialize every member in its place: GCC copies packs through memory.)

// exp(x) = exp(r) power 2^-up, |r| <= ln(2)/2, of x or of x + low.
template <int up, class V>
struct Reduced {
    using N = Of<V>;
    // The last bits of `rounded` are n + bias, and x - n ln(2) is exact for ln(2)'s first part.
    V rounding, rounded, n, first, r, power;

    BNEXT_FORMULA explicit Reduced(const V& x)
        : rounding(like(x, N::kRounding + N::kBias + up)),
          rounded(fma(x, like(x, std::numbers::log2e), rounding)),
          n(rounded - rounding),
          first(fma(n, like(x, -N::kLn2), x)),
          r(fma(n, like(x, -N::kLn2Rest), first)),
          power(power_of_two(rounded)) {}
    BNEXT_FORMULA Reduced(const V& x, const V& low)
        : rounding(like(x, N::kRounding + N::kBias + up)),
          rounded(fma(x, like(x, std::numbers::log2e), rounding)),
          n(rounded - rounding),
          first(fma(n, like(x, -N::kLn2), x)),
          r(first + fma(n, like(x, -N::kLn2Rest), low)),
          power(power_of_two(rounded)) {}
};
template <class V>
using Raised = Reduced<Of<V>::kUpExponent, V>;

// exp(r) - 1
template <int up, class V>
BNEXT_FORMULA V less_one(const Reduced<up, V>& x) {
    return fma(x.r * x.r, polynomial<ExponentialOf<Of<V>>>(x.r), x.r);
}

// kUp exp(x)
template <class V>
BNEXT_FORMULA V exponential(const Raised<V>& x) {
    const V one = like(x.r, 1.0);
    const V p = polynomial<ExponentialOf<Of<V>>>(x.r);
    return fma(fma(p, x.r, one), x.r, one) * x.power;
}

// 1 + e, of up = kUp e.
template <class V>
BNEXT_FORMULA V plus_one(const V& up) {
    return fma(up, like(up, Of<V>::kDown), like(up, 1.0));
}

// Of e = exp(x), x = -|z|.
template <class V>
struct Decay {
    V x, up, sum;  // kUp e, 1 + e

    BNEXT_FORMULA explicit Decay(const V& z)
        : x(at_least(minus_magnitude(z), like(z, -Of<V>::kFar))),
          up(exponential<V>(Raised<V>(x))),
          sum(plus_one(up)) {}
};

// Where z < 0 the results are multiples of e, kept multiplied by kUp.
template <class V>
BNEXT_FORMULA V scaled_down_if_negative(const V& z, const V& up) {
    return up * where_less(z, like(z, 0.0), like(z, Of<V>::kDown), like(z, 1.0));
}

// --- z times a sigmoid --------------------------------------------------------------------------

// z sigmoid(w), of e = exp(-|w|); w has the sign of z, and e.x is -|z|.
template <class V, class E>
BNEXT_FORMULA V gated(const V& z, const E& e) {
    const V numerator = where_less(z, like(z, 0.0), e.x * e.up, z);
    return scaled_down_if_negative(z, numerator / e.sum);
}
// Its derivative, sigmoid(w) (1 + z w' (1 - sigmoid(w))), of m = -|z w'|:
//     (1 + e - m e) / (1 + e)^2,  z < 0: e (1 + e + m) / (1 + e)^2
template <class V, class E>
BNEXT_FORMULA V gated_derivative(const V& z, const V& m, const E& e) {
    const V positive = fma(m * e.up, like(z, -Of<V>::kDown), e.sum);
    const V numerator = where_less(z, like(z, 0.0), e.up * (e.sum + m), positive);
    return scaled_down_if_negative(z, numerator / (e.sum * e.sum));
}

// gelu_tanh(z) = z (1 + tanh(w/2)) / 2 = z sigmoid(w), w = linear z + cubic z^3. The relative error
// of exp(w) is the absolute one of w, so w has a low part. Of e = exp(w), x = -|z|:
template <class V>
struct CubicDecay {
    using N = Of<V>;
    V x, square, factor, rests, low, w, up, sum;

    BNEXT_FORMULA explicit CubicDecay(const V& z)
        : x(at_least(minus_magnitude(z), like(z, -N::kFarOfCubic))),
          square(x * x),
          factor(fma(like(z, N::kCubic), square, like(z, N::kLinear))),
          rests(fma(like(z, N::kCubic), cancelling_fma(x, x, -square),
                    fma(like(z, N::kCubicRest), square, like(z, N::kLinearRest)))),
          // The difference is exact.
          low(cancelling_fma(like(z, N::kCubic), square, like(z, N::kLinear) - factor) + rests),
          w(x * factor),
          up(exponential<V>(Raised<V>(w, fma(x, low, cancelling_fma(x, factor, -w))))),
          sum(plus_one(up)) {}

    // x w'
    [[nodiscard]] BNEXT_FORMULA V slope() const {
        return x * fma(like(x, 3 * (N::kCubic + N::kCubicRest)), square,
                       like(x, N::kLinear + N::kLinearRest));
    }
};

// --- gelu ---------------------------------------------------------------------------------------

// Of x = -|z|: Phi(x) = exp(-x^2/2) p(y) (inverse + low), y = 1 - 2k (inverse + low). The tail is
// steep in 1/(k - x), hence the low part; and x^2 has one as well.
template <class V>
struct Gaussian {
    using N = Of<V>;
    V x, half, square;  // -x/2, -x^2/2
    Raised<V> reduced;
    V exponential_less_one;
    V sum, missing, inverse, low, p;

    BNEXT_FORMULA explicit Gaussian(const V& z)
        : x(at_least(minus_magnitude(z), like(z, -N::kFarOfTail))),
          half(x * like(z, -0.5)),
          square(half * x),
          reduced(square, cancelling_fma(half, x, -square)),
          exponential_less_one(less_one(reduced)),
          sum(like(z, N::kTailShift) - x),
          missing((sum - like(z, N::kTailShift)) + x),
          inverse(like(z, 1.0) / sum),
          low(inverse * fma(missing, inverse, cancelling_fma(-sum, inverse, like(z, 1.0)))),
          p(polynomial<TailOf<N>>(fma(low, like(z, -2 * N::kTailShift),
                                      fma(inverse, like(z, -2 * N::kTailShift), like(z, 1.0))))) {}

    // kUp exp(-x^2/2) a, with one rounding less than the product
    [[nodiscard]] BNEXT_FORMULA V times_exponential(const V& a) const {
        return fma(a, exponential_less_one, a) * reduced.power;
    }
};

template <class V>
BNEXT_FORMULA V gelu(const V& z) {
    const Gaussian<V> g(z);
    const V tail = fma(g.p, g.inverse, g.p * g.low);
    const V positive = at_least(z, like(z, -0.0));  // -0, also if not fused
    return fma(g.times_exponential(g.x * tail), like(z, Of<V>::kDown), positive);
}
// Phi(z) + z phi(z), which is 1 minus itself for -z.
template <class V>
BNEXT_FORMULA V gelu_derivative(const V& z) {
    constexpr double kPeak = std::numbers::inv_sqrtpi / std::numbers::sqrt2;  // phi(0)
    const Gaussian<V> g(z);
    const V zero = like(z, 0.0), down = like(z, Of<V>::kDown);
    const V of_negative =
        g.times_exponential(fma(g.p, g.inverse, fma(g.x, like(z, kPeak), g.p * g.low)));
    return fma(of_negative, where_less(z, zero, down, -down),
               where_less(z, zero, zero, like(z, 1.0)));
}

// --- the others ---------------------------------------------------------------------------------

template <class V>
BNEXT_FORMULA V sigmoid(const V& z) {
    const Decay<V> e(z);
    const V numerator = where_less(z, like(z, 0.0), e.up, like(z, 1.0));
    return scaled_down_if_negative(z, numerator / e.sum);
}
// e / (1 + e)^2 times kUp
template <class V>
BNEXT_FORMULA V sigmoid_derivative_up(const V& z) {
    const Decay<V> e(z);
    return e.up / (e.sum * e.sum);
}

// -(e - 1) / (e + 1) of e = exp(-2|z|), with e - 1 from the polynomial: no cancellation.
template <class V>
BNEXT_FORMULA V tanh(const V& z) {
    constexpr double kOne = 44;  // tanh(22) rounds to 1
    const Reduced<0, V> e(at_least(minus_magnitude(z) * like(z, 2.0), like(z, -kOne)));
    const V numerator = fma(e.power, less_one(e), e.power - like(z, 1.0));
    return with_sign_of(numerator / (numerator + like(z, 2.0)), z);
}

// z min(max(z + 3, 0), 6) / 6
template <class V>
BNEXT_FORMULA V hardswish(const V& z) {
    const V factor = at_most(at_least(z + like(z, 3.0), like(z, 0.0)), like(z, 6.0));
    return at_least(z, like(z, -4.0)) * (factor * like(z, 1.0 / 6));  // -inf * 0 would be NaN
}
template <class V>
BNEXT_FORMULA V hardswish_derivative(const V& z) {
    const V between = fma(z, like(z, 1.0 / 3), like(z, 0.5));
    const V below_three = unless_at_most(like(z, 3.0), z, between, like(z, 1.0));
    return unless_at_most(z, like(z, -3.0), below_three, like(z, 0.0));
}

}  // namespace bnext::smooth_activations

namespace bnext {

// act(z), for an activation that is known when this is compiled.
template <class V>
BNEXT_FORMULA V smooth_inline(Activation activation, const V& z) {
    namespace act = smooth_activations;
    switch (activation) {
        case Activation::silu: return act::gated(z, act::Decay<V>(z));
        case Activation::hardswish: return act::hardswish(z);
        case Activation::gelu: return act::gelu(z);
        case Activation::gelu_tanh: return act::gated(z, act::CubicDecay<V>(z));
        case Activation::sigmoid: return act::sigmoid(z);
        case Activation::tanh: return act::tanh(z);
        default: return z;
    }
}

// act'(z), for such an activation.
template <class V>
BNEXT_FORMULA V smooth_derivative_inline(Activation activation, const V& z) {
    namespace act = smooth_activations;
    constexpr double kDown = act::Of<V>::kDown;
    switch (activation) {
        case Activation::silu: {
            const act::Decay<V> e(z);
            return act::gated_derivative(z, e.x, e);
        }
        case Activation::hardswish: return act::hardswish_derivative(z);
        case Activation::gelu: return act::gelu_derivative(z);
        case Activation::gelu_tanh: {
            const act::CubicDecay<V> e(z);
            return act::gated_derivative(z, e.slope(), e);
        }
        case Activation::sigmoid: return act::sigmoid_derivative_up(z) * like(z, kDown);
        case Activation::tanh:  // 1 - tanh(z)^2
            return act::sigmoid_derivative_up(z * like(z, 2.0)) * like(z, 4 * kDown);
        default: return like(z, 1.0);
    }
}

// The same, for an activation that is chosen while the program runs.
template <class V>
BNEXT_OUTLINE V smooth(Activation activation, BNEXT_OUTLINE_VALUE(V) z) {
    return smooth_inline(activation, z);
}
template <class V>
BNEXT_OUTLINE V smooth_derivative(Activation activation, BNEXT_OUTLINE_VALUE(V) z) {
    return smooth_derivative_inline(activation, z);
}

}  // namespace bnext
