// Channels that have several columns (Tiling): what there is for each channel, given to each of its
// columns.
#pragma once

#include "core/dtype.hpp"
#include "core/inline.hpp"

namespace bnext::cpu {

// Where in the room for all columns the channels' values may lie for spread(): at its end.
BNEXT_FORCE_INLINE Index made_at(Index channels, Index columns) { return channels * (columns - 1); }

// Upwards, so that `values` may be the end of `to`: a value's places are no later ones' values.
// Eight at a time while that holds for eight, since a loop over a few columns costs more; the next
// channels write over those too many.
template <class C>
BNEXT_FORCE_INLINE void spread(const C* values, C* to, Index channels, Index columns) {
    constexpr Index kAtOnce = 8;
    for (Index k = 0; k < channels; ++k, to += columns) {
        const C value = values[k];
        if (columns <= kAtOnce && made_at(channels - k, columns) >= kAtOnce) {
            for (Index i = 0; i < kAtOnce; ++i) to[i] = value;
        } else {
            for (Index i = 0; i < columns; ++i) to[i] = value;
        }
    }
}

}  // namespace bnext::cpu
