// Activations and their derivatives, of a value or of a pack of values (V), for the CPU and a GPU.
// V has operators, fma, and the functions of values.hpp.
#pragma once

#include "core/activation.hpp"
#include "core/smooth_activations.hpp"
#include "core/values.hpp"

namespace bnext {

// ReLU, which kernels have inline, and its gradient.
template <class V>
BNEXT_FORMULA V relu(const V& z) {
    const V zero = like(z, 0.0);
    return where_less(z, zero, zero, z);
}
template <class V>
BNEXT_FORMULA V relu_gradient(const V& z, const V& dy) {
    const V zero = like(z, 0.0);
    return unless_at_most(z, zero, dy, zero);
}

// y = act(z). Piecewise linear ones are exact; NaN stays NaN. `kInline`: for an activation that is
// known when this is compiled.
template <bool kInline = false, class V>
BNEXT_FORMULA V activate(const Fused& f, const V& z) {
    const V zero = like(z, 0.0);
    switch (f.activation) {
        case Activation::none: return z;
        case Activation::relu: return relu(z);
        case Activation::relu6: {
            const V six = like(z, 6.0), above = where_less(z, zero, zero, z);
            return where_less(six, above, six, above);
        }
        case Activation::leaky_relu: return where_less(z, zero, z * like(z, f.negative_slope), z);
        default:
            if constexpr (kInline) {
                return smooth_inline(f.activation, z);
            } else {
                return smooth(f.activation, z);
            }
    }
}

// dy * act'(z); at a kink, and for NaN, as PyTorch has it.
template <bool kInline = false, class V>
BNEXT_FORMULA V gradient_through(const Fused& f, const V& z, const V& dy) {
    const V zero = like(z, 0.0);
    switch (f.activation) {
        case Activation::none: return dy;
        case Activation::relu: return relu_gradient(z, dy);
        case Activation::relu6:
            return unless_at_most(z, zero, unless_at_most(like(z, 6.0), z, dy, zero), zero);
        case Activation::leaky_relu: return where_less(zero, z, dy, dy * like(z, f.negative_slope));
        default:
            if constexpr (kInline) {
                return dy * smooth_derivative_inline(f.activation, z);
            } else {
                return dy * smooth_derivative(f.activation, z);
            }
    }
}

// z of y = act(z), where Fused::is_invertible.
template <class V>
BNEXT_FORMULA V argument_of(const Fused& f, const V& y) {
    if (f.activation != Activation::leaky_relu) return y;
    return where_less(y, like(y, 0.0), y / like(y, f.negative_slope), y);
}

// 1 where the derivative is 1, else 0; of an activation that is piecewise linear.
template <class V>
BNEXT_FORMULA V passes(const Fused& f, const V& z) {
    const V one = like(z, 1.0);
    const Fused ends{f.activation, 0.0, f.residual};
    return gradient_through(ends, z, one);
}

// gradient_through of such a flag.
template <class V>
BNEXT_FORMULA V gradient_by_flag(const Fused& f, const V& flag, const V& dy) {
    const V zero = like(dy, 0.0);
    const double other = f.other_derivative();
    const V otherwise = other != 0 ? dy * like(dy, other) : zero;  // 0 also where dy is infinite
    return where_less(zero, flag, dy, otherwise);
}

}  // namespace bnext
