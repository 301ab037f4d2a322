// Values brought from one memory order to the other: planes, (N, C, S), and channels side by side,
// (N, S, C). For a gradient that lies otherwise than the data it belongs to.
#pragma once

#include "core/dtype.hpp"

namespace bnext::cpu {

// Transposes `count` matrices of (rows, columns), one behind the other, of elements of `item`
// bytes.
void transpose(const void* from, void* to, Index item, Index count, Index rows, Index columns);

}  // namespace bnext::cpu
