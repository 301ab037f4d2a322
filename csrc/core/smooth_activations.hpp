// The activations that are no pieces of lines, and their derivatives, for V = float, double or a
// pack of them (values.hpp). Only operations that IEEE 754 defines, in one order: with fused
// multiply-add every machine has the same bits. No branch depends on data.
//
// Error:   values have at most 4 units in the last place, also where they are nearly 0 and down to
//          the subnormal numbers. Derivatives have the same, or 2^-24 (double: 2^-53) times the
//          derivative's maximum where they change their sign. Without fused multiply-add the bound
//          is 5. tests/cpp/activations.cpp measures it, over all floats if asked.
// Limits:  those of the functions, where PyTorch has NaN at an infinite z; NaN stays NaN.
//
// All but hardswish need one exponential and one division. exp(r) near 0 is a ratio, (A + r B) /
// (A - r B) with A and B of r^2, so that the exponential is divided together with the rest. Powers
// of two are added to exponents. Where a result may be subnormal, what is divided is 2^kUp times as
// large, so that only the last step rounds there. Polynomials, and numbers in two parts, are from
// fit_activations.py.
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
    static constexpr int kUp = 26, kUpOfTail = 64;
    static constexpr double kDownOfTail = 0x1p-64;
    // Between these ends exponents are in range. Below the first one results and derivatives are 0,
    // above the second one a sigmoid is 1, and beyond the last one a tail is 0.
    static constexpr double kFar = -109, kFull = 21;
    static constexpr double kFarOfCubic = -10.9, kFullOfCubic = 5.55;
    static constexpr double kFarOfTail = 14.75;

    static constexpr double kLn2 = 0.69314575, kLn2Rest = 1.4286068e-6;
    static constexpr double kLinear = 1.5957689, kLinearRest = 1.930779e-7;
    static constexpr double kCubic = 0.071354814, kCubicRest = 2.3988325e-9;

    // A / B = r / tanh(r/2) of r^2, |r| <= ln(2)/2. Of each B the last coefficient, 1, is left out.
    static constexpr double kA[] = {120.15435, 12.012854};
    static constexpr double kB[] = {60.077175};
    // exp(-x/2) = 1 + x p(x), |x| <= ln(2)
    static constexpr double kLessOne[] = {-0.5,        0.124999985,    -0.020833123,
                                          0.002604218, -0.00026159533, 2.1720882e-5};
    // exp(t^2/2) Phi(-t) = B / (k t B + 2 B - t A), k = sqrt(2 pi), 0 <= t <= kFarOfTail
    static constexpr double kTailA[] = {94.23079, 57.85153, 16.288908, 1.9997522};
    static constexpr double kTailB[] = {103.45281, 94.5449, 40.80676, 9.392099};
};

template <>
struct Numbers<double> {
    static constexpr double kRounding = 0x1.8p52;
    static constexpr int kBias = 1023;
    static constexpr int kUp = 112, kUpOfTail = 128;
    static constexpr double kDownOfTail = 0x1p-128;
    static constexpr double kFar = -752, kFull = 42;
    static constexpr double kFarOfCubic = -22, kFullOfCubic = 7.6;
    static constexpr double kFarOfTail = 39;

    static constexpr double kLn2 = 0.6931471805598903, kLn2Rest = 5.497923018708371e-14;
    static constexpr double kLinear = 1.5957691216057341, kLinearRest = -3.430362161966579e-15;
    static constexpr double kCubic = 0.07135481627260025, kCubicRest = -6.175149918155315e-19;

    static constexpr double kA[] = {30262.923458235862, 3362.456017190895, 30.013639284488878};
    static constexpr double kB[] = {15131.461729117931, 420.2728645023118};
    static constexpr double kLessOne[] = {-0.5,
                                          0.125,
                                          -0.02083333333333336,
                                          0.0026041666666666813,
                                          -0.0002604166666660553,
                                          2.1701388888651704e-5,
                                          -1.55009921126088e-6,
                                          9.688120174615403e-8,
                                          -5.3822709773299235e-9,
                                          2.691111425110403e-10,
                                          -1.2262960982236262e-11,
                                          5.129216374032384e-13};
    static constexpr double kTailA[] = {1800063.4848206055, 2474110.7318452946, 1689628.1754293991,
                                        736908.4055701512,  224003.73072591858, 49001.038262286944,
                                        7708.977197958723,  843.432157475489,   58.63277072277034,
                                        1.9999999999890854};
    static constexpr double kTailB[] = {1976225.9388204976, 3309066.8273481806, 2743607.707888892,
                                        1456857.2384691818, 543764.220990017,   148428.41775731105,
                                        29974.24863682235,  4428.543459551583,  460.02951540157284,
                                        30.56969949755173};
};

template <class V>
using Of = Numbers<decltype(lane_of(std::declval<const V&>()))>;

// The coefficients from number k on, lowest power first, by Horner's rule; where it is monic, one
// that is 1 follows them.
template <class Coefficients, int k = 0, class V>
BNEXT_FORMULA V polynomial(const V& x) {
    constexpr double coefficient = Coefficients::at(k);
    if constexpr (k + 1 < Coefficients::kTerms) {
        return fma(polynomial<Coefficients, k + 1>(x), x, like(x, coefficient));
    } else if constexpr (Coefficients::kMonic) {
        return x + like(x, coefficient);
    } else {
        return like(x, coefficient);
    }
}
template <class N>
struct ExponentialA {
    static constexpr bool kMonic = false;
    static constexpr int kTerms = sizeof N::kA / sizeof(double);
    static constexpr double at(int k) { return N::kA[k]; }
};
template <class N>
struct ExponentialB {
    static constexpr bool kMonic = true;
    static constexpr int kTerms = sizeof N::kB / sizeof(double);
    static constexpr double at(int k) { return N::kB[k]; }
};
template <class N>
struct LessOne {
    static constexpr bool kMonic = false;
    static constexpr int kTerms = sizeof N::kLessOne / sizeof(double);
    static constexpr double at(int k) { return N::kLessOne[k]; }
};
template <class N>
struct TailA {
    static constexpr bool kMonic = false;
    static constexpr int kTerms = sizeof N::kTailA / sizeof(double);
    static constexpr double at(int k) { return N::kTailA[k]; }
};
template <class N>
struct TailB {
    static constexpr bool kMonic = true;
    static constexpr int kTerms = sizeof N::kTailB / sizeof(double);
    static constexpr double at(int k) { return N::kTailB[k]; }
};

// --- what the functions are made of -------------------------------------------------------------
// (Constructors initialize every member in its place: GCC copies packs through memory.)

// The number nearest to a b, n: the last bits of `rounded` are n plus an offset.
template <class V>
struct Nearest {
    V rounding, rounded, n;

    BNEXT_FORMULA Nearest(const V& a, const V& b, int offset)
        : rounding(like(a, Of<V>::kRounding + offset)),
          rounded(fma(a, b, rounding)),
          n(rounded - rounding) {}
};

// exp(w) = above / below, both times 2^kUp, of w = n ln(2) + r
template <class V>
struct Ratio {
    using N = Of<V>;
    V square, a, b, above, below, sum;

    BNEXT_FORMULA Ratio(const V& r, const Nearest<V>& n)
        : square(r * r),
          a(polynomial<ExponentialA<N>>(square)),
          b(polynomial<ExponentialB<N>>(square)),
          above(times_power_of_two(fma(r, b, a), n.rounded)),
          below(times_power_of_two(fma(-r, b, a), n.rounding)),
          sum(above + below) {}
};

// w = n ln(2) + r
template <class V>
struct Exponential {
    using N = Of<V>;
    V w;
    Nearest<V> nearest;
    V first, r;

    BNEXT_FORMULA Exponential(const V& within, int offset)
        : w(within),
          nearest(w, like(w, std::numbers::log2e), offset),
          first(fma(nearest.n, like(w, -N::kLn2), w)),  // exact
          r(fma(nearest.n, like(w, -N::kLn2Rest), first)) {}
};

// --- z times a sigmoid --------------------------------------------------------------------------

// sigmoid(w) = above / sum, w = z: the ratio of exp(w).
template <class V>
struct Linear {
    using N = Of<V>;
    V x;  // z, where it is not below kFar
    Exponential<V> exponential;
    Ratio<V> e;

    BNEXT_FORMULA explicit Linear(const V& z)
        : x(at_least(z, like(z, N::kFar))),
          exponential(at_most(x, like(z, N::kFull)), N::kUp),
          e(exponential.r, exponential.nearest) {}
    [[nodiscard]] BNEXT_FORMULA V slope() const { return exponential.w; }  // z w'
};

// w = linear z + cubic z^3, of gelu_tanh(z) = z (1 + tanh(w/2)) / 2 = z sigmoid(w). The relative
// error of exp(w) is the absolute one of w, so w/z has a low part.
template <class V>
struct Cubic {
    using N = Of<V>;
    V x, within, square, factor, rests, low;
    Nearest<V> nearest;
    V first, r;
    Ratio<V> e;

    BNEXT_FORMULA explicit Cubic(const V& z)
        : x(at_least(z, like(z, N::kFarOfCubic))),
          within(at_most(x, like(z, N::kFullOfCubic))),
          square(within * within),
          factor(fma(like(z, N::kCubic), square, like(z, N::kLinear))),
          rests(fma(like(z, N::kCubic), cancelling_fma(within, within, -square),
                    fma(like(z, N::kCubicRest), square, like(z, N::kLinearRest)))),
          // The difference is exact.
          low(cancelling_fma(like(z, N::kCubic), square, like(z, N::kLinear) - factor) + rests),
          nearest(within * like(z, std::numbers::log2e), factor, N::kUp),
          first(cancelling_fma(within, factor, nearest.n * like(z, -N::kLn2))),
          r(fma(nearest.n, like(z, -N::kLn2Rest), fma(within, low, first))),
          e(r, nearest) {}
    [[nodiscard]] BNEXT_FORMULA V slope() const {
        return within * fma(like(x, 3 * (N::kCubic + N::kCubicRest)), square,
                            like(x, N::kLinear + N::kLinearRest));
    }
};

// z sigmoid(w). Where z is large, the product overflows.
template <class V, class W>
BNEXT_FORMULA V gated(const V& z, const W& w) {
    return at_most((w.x * w.e.above) / w.e.sum, magnitude(z));
}
// Its derivative, sigmoid(w) (1 + z w' (1 - sigmoid(w))), which is 1 minus itself for -z. (For
// positive z it would have larger rounding errors.)
template <class W, class V>
BNEXT_FORMULA V gated_derivative(const V& z) {
    const W w(minus_magnitude(z));
    const V factor = fma(w.slope(), w.e.below, w.e.sum);
    const V of_negative = (w.e.above * factor) / (w.e.sum * w.e.sum);
    return where_less(z, like(z, 0.0), of_negative, like(z, 1.0) - of_negative);
}

// --- gelu ---------------------------------------------------------------------------------------

inline constexpr double kSlope = 2.5066282746310002;  // sqrt(2 pi)
inline constexpr double kPeak = 0.3989422804014327;   // 1 / sqrt(2 pi)

// Of t = |z|: Phi(-t) = exp(-t^2/2) B(t) / sum, sum = sqrt(2 pi) t B(t) + 2 B(t) - t A(t). The last
// term is small, so that B's rounding errors are in both. The exponent's remainder is taken from
// the exact t^2.
template <class V>
struct Tail {
    using N = Of<V>;
    V t;
    Nearest<V> nearest;
    V first, rest, less_one, power;  // exp(-t^2/2) = (1 + less_one) power 2^-kUpOfTail
    V b, product, sum;

    BNEXT_FORMULA explicit Tail(const V& z)
        : t(at_most(magnitude(z), like(z, N::kFarOfTail))),
          nearest(t * like(z, -0.5 * std::numbers::log2e), t, N::kBias + N::kUpOfTail),
          first(cancelling_fma(t, t, nearest.n * like(z, 2 * N::kLn2))),
          rest(fma(nearest.n, like(z, 2 * N::kLn2Rest), first)),
          less_one(rest * polynomial<LessOne<N>>(rest)),
          power(power_of_two(nearest.rounded)),
          b(polynomial<TailB<N>>(t)),
          product(t * b),
          sum(fma(product, like(z, kSlope), fma(-t, polynomial<TailA<N>>(t), b + b))) {}

    // exp(-t^2/2) c
    [[nodiscard]] BNEXT_FORMULA V exponential(const V& c) const {
        return (fma(c, less_one, c) * power) * like(t, N::kDownOfTail);
    }
    // exp(-t^2/2) c / sum
    [[nodiscard]] BNEXT_FORMULA V times(const V& c) const {
        const V up = like(t, N::kRounding + N::kUpOfTail);
        return (fma(c, less_one, c) * power) / times_power_of_two(sum, up);
    }
};

template <class V>
BNEXT_FORMULA V gelu(const V& z) {
    const Tail<V> tail(z);
    return at_least(z, like(z, -0.0)) - tail.times(tail.product);
}
// Phi(z) + z phi(z), which is 1 minus itself for -z.
template <class V>
BNEXT_FORMULA V gelu_derivative(const V& z) {
    const Tail<V> tail(z);
    const V of_negative = tail.times(fma(tail.t * like(z, -kPeak), tail.sum, tail.b));
    return where_less(z, like(z, 0.0), of_negative, like(z, 1.0) - of_negative);
}

// --- the others ---------------------------------------------------------------------------------

template <class V>
BNEXT_FORMULA V sigmoid(const V& z) {
    const Linear<V> w(z);
    return w.e.above / w.e.sum;
}
// s (1 - s) times `factor`, a power of two; s = sigmoid(-|z|).
template <class V>
BNEXT_FORMULA V sigmoid_derivative(const V& z, double factor) {
    const V s = sigmoid(minus_magnitude(z)) * like(z, factor);
    return fma(s * like(z, -1 / factor), s, s);
}

// (m - 1) / (m + 1), m = exp(2 z) = 2^n (A + r B) / (A - r B): no cancellation beside 0.
template <class V>
BNEXT_FORMULA V tanh(const V& z) {
    constexpr double kOne = 44;  // tanh(22) rounds to 1
    const V twice = at_most(at_least(z + z, like(z, -kOne)), like(z, kOne)), one = like(z, 1.0);
    const Exponential<V> e(twice, Of<V>::kBias);
    const V square = e.r * e.r;
    const V a = polynomial<ExponentialA<Of<V>>>(square);
    const V rb = e.r * polynomial<ExponentialB<Of<V>>>(square);
    const V power = power_of_two(e.nearest.rounded);
    const V more = power + one, less = power - one;
    return with_sign_of(fma(less, a, more * rb) / fma(more, a, less * rb), z);
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
        case Activation::silu: return act::gated(z, act::Linear<V>(z));
        case Activation::hardswish: return act::hardswish(z);
        case Activation::gelu: return act::gelu(z);
        case Activation::gelu_tanh: return act::gated(z, act::Cubic<V>(z));
        case Activation::sigmoid: return act::sigmoid(z);
        case Activation::tanh: return act::tanh(z);
        default: return z;
    }
}

// act'(z), for such an activation.
template <class V>
BNEXT_FORMULA V smooth_derivative_inline(Activation activation, const V& z) {
    namespace act = smooth_activations;
    switch (activation) {
        case Activation::silu: return act::gated_derivative<act::Linear<V>>(z);
        case Activation::hardswish: return act::hardswish_derivative(z);
        case Activation::gelu: return act::gelu_derivative(z);
        case Activation::gelu_tanh: return act::gated_derivative<act::Cubic<V>>(z);
        case Activation::sigmoid: return act::sigmoid_derivative(z, 1);
        case Activation::tanh: return act::sigmoid_derivative(z + z, 4);  // 1 - tanh(z)^2
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
