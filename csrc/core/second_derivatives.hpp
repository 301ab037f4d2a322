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

// kUp e / (1 + e)^2, and (1 - e) / (1 + e)
template <class V, class E>
BNEXT_FORMULA V rate_up(const E& e) {
    return e.up / (e.sum * e.sum);
}
template <class V, class E>
BNEXT_FORMULA V half_tanh(const E& e) {
    return fma(e.up, like(e.up, -Of<V>::kDown), like(e.up, 1.0)) / e.sum;
}

template <class V>
BNEXT_FORMULA V sigmoid_second_derivative(const V& z) {
    const Decay<V> e(z);
    const V size = rate_up<V>(e) * (half_tanh<V>(e) * like(z, Of<V>::kDown));
    return with_sign_of(size, like(z, 0.0) - z);
}

template <class V>
BNEXT_FORMULA V silu_second_derivative(const V& z) {
    const Decay<V> e(z);
    return rate_up<V>(e) * (fma(e.x, half_tanh<V>(e), like(z, 2.0)) * like(z, Of<V>::kDown));
}

template <class V>
BNEXT_FORMULA V gelu_tanh_second_derivative(const V& z) {
    using N = Of<V>;
    const CubicDecay<V> e(z);
    constexpr double kCubic = N::kCubic + N::kCubicRest, kLinear = N::kLinear + N::kLinearRest;
    const V slope = fma(like(z, 3 * kCubic), e.square, like(z, kLinear));  // w'
    const V doubled = fma(like(z, 6 * kCubic), e.square, slope + slope);
    const V bent = fma((e.x * slope) * slope, half_tanh<V>(e), doubled);
    return rate_up<V>(e) * (bent * like(z, N::kDown));
}

template <class V>
BNEXT_FORMULA V gelu_second_derivative(const V& z) {
    constexpr double kPeaks = std::numbers::inv_sqrtpi * std::numbers::sqrt2;  // 2 phi(0)
    const Gaussian<V> g(z);
    const V bent = fma(g.square, like(z, kPeaks), like(z, kPeaks));
    return g.times_exponential(bent) * like(z, Of<V>::kDown);
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
