// The second derivatives of smooth activations, as smooth_activations.hpp has the first, of the
// same exponentials. Pieces of lines have none.
//
//     sigmoid''(z)   = -sign(z) e (1 - e) / (1 + e)^3,  e = exp(-|z|)
//     tanh''(z)      = 8 sigmoid''(2z)
//     silu''(z)      = sigmoid'(z) (2 - |z| (1 - e) / (1 + e))
//     gelu_tanh''(z) = sigmoid'(w) (2 w' + z w'' - |z| w'^2 (1 - e) / (1 + e)),  e = exp(-|w|)
//     gelu''(z)      = phi(z) (2 - z^2)
//     hardswish''(z) = 1/3 from -3 to 3, as PyTorch has it at the ends
//
// Error:   at most 8 * 2^-24 (double: 2^-53) of the function's maximum; tests/cpp/activations.cpp
//          measures it.
#pragma once

#include "core/smooth_activations.hpp"

namespace bnext::smooth_activations {

// Of w = -|w|, of which `of.e` is the ratio of exponentials, above / below = e: sigmoid'(w), which
// is e / (1 + e)^2, and (1 - e) / (1 + e).
template <class V, class W>
BNEXT_FORMULA V rate(const W& of) {
    return (of.e.above * of.e.below) / (of.e.sum * of.e.sum);
}
template <class V, class W>
BNEXT_FORMULA V half_tanh(const W& of) {
    return (of.e.below - of.e.above) / of.e.sum;
}

template <class V>
BNEXT_FORMULA V sigmoid_second_derivative(const V& z) {
    const Linear<V> w(minus_magnitude(z));
    return with_sign_of(rate<V>(w) * half_tanh<V>(w), like(z, 0.0) - z);
}

template <class V>
BNEXT_FORMULA V silu_second_derivative(const V& z) {
    const Linear<V> w(minus_magnitude(z));
    return rate<V>(w) * fma(w.x, half_tanh<V>(w), like(z, 2.0));
}

template <class V>
BNEXT_FORMULA V gelu_tanh_second_derivative(const V& z) {
    using N = Of<V>;
    constexpr double kCubic = N::kCubic + N::kCubicRest, kLinear = N::kLinear + N::kLinearRest;
    const Cubic<V> w(minus_magnitude(z));
    const V slope = fma(like(z, 3 * kCubic), w.square, like(z, kLinear));  // w'
    const V doubled = fma(like(z, 6 * kCubic), w.square, slope + slope);
    return rate<V>(w) * fma((w.x * slope) * slope, half_tanh<V>(w), doubled);
}

template <class V>
BNEXT_FORMULA V gelu_second_derivative(const V& z) {
    const Tail<V> tail(z);
    const V bent = fma(tail.t * like(z, -kPeak), tail.t, like(z, 2 * kPeak));
    return tail.exponential(bent);
}

template <class V>
BNEXT_FORMULA V hardswish_second_derivative(const V& z) {
    const V zero = like(z, 0.0);
    const V below_three = unless_at_most(like(z, 3.0), z, like(z, 1.0 / 3), zero);
    return unless_at_most(z, like(z, -3.0), below_three, zero);
}

}  // namespace bnext::smooth_activations

namespace bnext {

// act''(z), for an activation that is known when this is compiled.
template <class V>
BNEXT_FORMULA V second_derivative(Activation activation, const V& z) {
    namespace act = smooth_activations;
    switch (activation) {
        case Activation::silu: return act::silu_second_derivative(z);
        case Activation::hardswish: return act::hardswish_second_derivative(z);
        case Activation::gelu: return act::gelu_second_derivative(z);
        case Activation::gelu_tanh: return act::gelu_tanh_second_derivative(z);
        case Activation::sigmoid: return act::sigmoid_second_derivative(z);
        case Activation::tanh:
            return act::sigmoid_second_derivative(z * like(z, 2.0)) * like(z, 8.0);
        default: return like(z, 0.0);
    }
}

}  // namespace bnext
