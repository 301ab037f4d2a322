// An array of a Problem: where its first element is, and how far apart the others are.
#pragma once

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

BNEXT_FORCE_INLINE double median_of(double first, double middle, double last) {
    const double low = first < middle ? first : middle;  // as median() of packs has it
    const double high = first < middle ? middle : first;
    const double top = high < last ? high : last;
    return low < top ? top : low;
}

// The median of the first, middle and last value of a channel in a tile, so that one outlier is not
// chosen.
template <class T>
BNEXT_FORCE_INLINE double usual_value(const View<T>& x, const Tile& tile, Index c) {
    const Index middle_outer = (tile.outer_begin + tile.outer_end) / 2;
    const Index middle_inner = (tile.inner_begin + tile.inner_end) / 2;
    const auto first = static_cast<double>(*at(x, tile.outer_begin, c, tile.inner_begin));
    const auto middle = static_cast<double>(*at(x, middle_outer, c, middle_inner));
    const auto last = static_cast<double>(*at(x, tile.outer_end - 1, c, tile.inner_end - 1));
    return median_of(first, middle, last);
}

// The channel's origin. Means are kept relative to it until they are final; where mean/std is large
// they would otherwise lose, each time they are rounded, what separates one chunk's mean from
// another's.
template <class T>
BNEXT_FORCE_INLINE double origin_of(const View<T>& x, const Tiling& tiling, Index c) {
    return usual_value(x, Tile{0, tiling.outer(), 0, tiling.inner()}, c);
}

}  // namespace bnext::cpu
