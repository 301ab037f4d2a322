// An array of a Problem: where its first element is, and how far apart the others are.
#pragma once

#include "core/inline.hpp"
#include "core/plan.hpp"

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

// The channel's origin: the median of its first, middle and last value, so that one outlier is not
// chosen. Means are kept relative to it until they are final; where mean/std is large they would
// otherwise lose, each time they are rounded, what separates one chunk's mean from another's.
template <class T>
BNEXT_FORCE_INLINE double origin_of(const View<T>& x, const Tiling& tiling, Index c) {
    const Index outer = tiling.outer();
    const Index inner = tiling.inner();
    const auto first = static_cast<double>(*at(x, 0, c, 0));
    const auto middle = static_cast<double>(*at(x, outer / 2, c, inner / 2));
    const auto last = static_cast<double>(*at(x, outer - 1, c, inner - 1));
    const double low = first < middle ? first : middle;  // as median() of packs has it
    const double high = first < middle ? middle : first;
    const double top = high < last ? high : last;
    return low < top ? top : low;
}

}  // namespace bnext::cpu
