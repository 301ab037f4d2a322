// What a pass applies besides normalizing: an activation, and an addition before it,
//     y = act(z),  z = norm(x) + residual
// and in the backward pass g = dy * act'(z), the gradient of the residual, which takes the place of
// dy. z is made again from x (and the residual) by the forward's own formula, with the forward's
// bits.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/inline.hpp"

namespace bnext {

// As PyTorch has them. gelu_tanh is GELU's approximation by tanh.
enum class Activation : std::uint8_t {
    none,
    relu,
    relu6,
    leaky_relu,
    silu,
    hardswish,
    gelu,
    gelu_tanh,
    sigmoid,
    tanh,
};
inline constexpr int kActivations = 10;
inline constexpr const char* kActivationNames[kActivations] = {
    "none",      "relu", "relu6",     "leaky_relu", "silu",
    "hardswish", "gelu", "gelu_tanh", "sigmoid",    "tanh"};

constexpr const char* name_of(Activation activation) {
    return kActivationNames[static_cast<int>(activation)];
}
// kActivations, of a name that is none.
constexpr int activation_number(std::string_view name) {
    int k = 0;
    while (k < kActivations && name != kActivationNames[k]) ++k;
    return k;
}

struct Fused {
    Activation activation = Activation::none;
    double negative_slope = 0.01;  // of leaky_relu
    bool residual = false;
    bool in_place = false;       // y was written over x: the backward pass reads y in place of x
    bool without_flags = false;  // no flags are kept: the backward pass makes z again

    // Whether z follows from y alone, for a backward pass in place: the activation is one-to-one,
    // and nowhere so flat that y keeps no digits of z. (Sigmoid and tanh saturate.)
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr bool is_invertible() const {
        if (activation == Activation::leaky_relu) return negative_slope > 0.0;
        return activation == Activation::none;
    }
    // Whether the forward pass is another than without it.
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr bool any() const {
        return residual || activation != Activation::none;
    }
    // Whether act' is one of two numbers (of hardswish it is not).
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr bool is_piecewise_linear() const {
        return activation <= Activation::leaky_relu;
    }
    // Whether the forward pass leaves a flag for every value: whether act' is 1. The backward pass
    // then needs no z, and so no residual: to read it twice again would be 8 arrays' traffic in
    // place of 6 and two bits a value (without the addition it is 5).
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr bool keeps_flags() const {
        return residual && is_piecewise_linear() && activation != Activation::none &&
               !without_flags;
    }
    // The derivative where it is not 1, of an activation with flags.
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr double other_derivative() const {
        return activation == Activation::leaky_relu ? negative_slope : 0.0;
    }
    // Whether the backward pass is another: without an activation it is the gradient's own, and
    // dresidual is dy.
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr bool changes_backward() const {
        return activation != Activation::none;
    }
    // Whether the backward pass reads the residual.
    [[nodiscard]] BNEXT_FORCE_INLINE constexpr bool reads_residual() const {
        return residual && changes_backward() && !keeps_flags();
    }
};

}  // namespace bnext
