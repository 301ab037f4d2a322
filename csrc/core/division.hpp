// Division of extents that rounds up.
#pragma once

#include "core/dtype.hpp"
#include "core/inline.hpp"

namespace bnext {

BNEXT_FORCE_INLINE constexpr Index divide_up(Index a, Index b) { return (a + b - 1) / b; }
BNEXT_FORCE_INLINE constexpr Index round_up(Index a, Index b) { return divide_up(a, b) * b; }

}  // namespace bnext
