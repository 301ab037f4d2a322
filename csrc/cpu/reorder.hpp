// Copies between the two memory orders, planes (N, C, S) and channels side by side (N, S, C): for a
// gradient in another memory order than its data.
#pragma once

#include "core/dtype.hpp"

namespace bnext::cpu {

// Transposes `count` consecutive matrices of (rows, columns), with elements of `item` bytes.
void transpose(const void* from, void* to, Index item, Index count, Index rows, Index columns);

}  // namespace bnext::cpu
