// An array of a Problem: where its first element is, and how far apart the others are.
#pragma once

#include "core/problem.hpp"

namespace bnext::cpu {

template <class T>
struct View {
    T* data;
    Strides stride;
};

}  // namespace bnext::cpu
