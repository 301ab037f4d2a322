// An array of a Problem: where its first element is, and how far apart the others are.
#pragma once

#include <type_traits>

#include "core/dtype.hpp"
#include "core/inline.hpp"
#include "core/problem.hpp"
#include "core/tiling.hpp"

namespace bnext::cpu {

template <class T>
struct View {
    T* data;
    Strides stride;
};

template <class T>
BNEXT_FORCE_INLINE T* at(const View<T>& view, Index o, Index c, Index i) {
    return view.data + o * view.stride.outer + c * view.stride.channel + i * view.stride.inner;
}

// In the type of the values, so that compilers compare by instructions of minima and maxima: a branch
// on random values would be mispredicted for every other channel.
template <class P>
BNEXT_FORCE_INLINE P median_of(P first, P middle, P last) {
    const P low = first < middle ? first : middle;  // as median() of packs has it
    const P high = middle > first ? middle : first;
    const P top = high < last ? high : last;
    return top > low ? top : low;
}

// The median of the first, middle and last value of a channel in a tile, so that one outlier is not
// chosen.
template <class T>
BNEXT_FORCE_INLINE double usual_value(const View<T>& x, const Tile& tile, Index c) {
    const Index middle_outer = (tile.outer_begin + tile.outer_end) / 2;
    const Index middle_inner = (tile.inner_begin + tile.inner_end) / 2;
    const auto value = [&](Index o, Index i) {
        return static_cast<Compute<std::remove_const_t<T>>>(*at(x, o, c, i));
    };
    return median_of(value(tile.outer_begin, tile.inner_begin), value(middle_outer, middle_inner),
                     value(tile.outer_end - 1, tile.inner_end - 1));
}

// The channel's origin. Means are kept relative to it until they are final; where mean/std is large
// they would otherwise lose, each time they are rounded, what separates one chunk's mean from
// another's.
template <class T>
BNEXT_FORCE_INLINE double origin_of(const View<T>& x, const Tiling& tiling, Index c) {
    return usual_value(x, Tile{0, tiling.outer(), 0, tiling.inner()}, c);
}

}  // namespace bnext::cpu
