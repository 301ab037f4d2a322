// The activations that are no pieces of lines, and their derivatives.
//
// (Work in progress: values through the C library, one by one.)
#pragma once

#include <cmath>

#include "core/activation.hpp"
#include "core/values.hpp"

namespace bnext {

template <class V>
BNEXT_OUTLINE V smooth(Activation, const V& z) { return z; }
template <class V>
BNEXT_OUTLINE V smooth_derivative(Activation, const V& z) { return z; }

}  // namespace bnext
