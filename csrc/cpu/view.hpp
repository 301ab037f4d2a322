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

template <class P>
BNEXT_FORCE_INLINE P median_of(P first, P middle, P last) {
    const P low = first < middle ? first : middle;  // as median() of packs has it
    const P high = first < middle ? middle : first;
    const P top = high < last ? high : last;
    return low < top ? top : low;
}

// The median of the first, middle and last value of a channel in a tile, so that one outlier is not
// chosen.
template <class T>
BNEXT_FORCE_INLINE double usual_value(const View<T>& x, const Tile& tile, Index c) {
    const Index middle_outer = (tile.outer_begin + tile.outer_end) / 2;
    const Index middle_inner = (tile.inner_begin + tile.inner_end) / 2;
    const auto value = [&](Index o, Index i) BNEXT_INLINE_LAMBDA {
        return static_cast<Compute<std::remove_const_t<T>>>(*at(x, o, c, i));
    };
    return median_of(value(tile.outer_begin, tile.inner_begin), value(middle_outer, middle_inner),
                     value(tile.outer_end - 1, tile.inner_end - 1));
}

// The usual values of several channels. Compilers compare packs of them without branches; compared
// one by one, random values take branches, half of which are mispredicted.
template <class T, class Value>
BNEXT_FORCE_INLINE void set_usual_values(const View<T>& x, const Tile& tile, Index first,
                                         Index channels, Value* values) {
    using P = Compute<std::remove_const_t<T>>;
    constexpr Index kTogether = 16;
    const T* const places[3] = {
        at(x, tile.outer_begin, first, tile.inner_begin),
        at(x, (tile.outer_begin + tile.outer_end) / 2, first,
           (tile.inner_begin + tile.inner_end) / 2),
        at(x, tile.outer_end - 1, first, tile.inner_end - 1),
    };
    P medians[kTogether];
    Index k = 0;
    for (; x.stride.channel == 1 && k + kTogether <= channels; k += kTogether) {
        for (Index i = 0; i < kTogether; ++i) {
            medians[i] =
                median_of(static_cast<P>(places[0][k + i]), static_cast<P>(places[1][k + i]),
                          static_cast<P>(places[2][k + i]));
        }
        for (Index i = 0; i < kTogether; ++i) values[k + i] = static_cast<Value>(medians[i]);
    }
    P taken[3][kTogether] = {};
    for (; k < channels; k += kTogether) {
        const Index some = channels - k < kTogether ? channels - k : kTogether;
        for (int p = 0; p < 3; ++p) {
            for (Index i = 0; i < some; ++i) {
                taken[p][i] = static_cast<P>(places[p][(k + i) * x.stride.channel]);
            }
        }
        for (Index i = 0; i < kTogether; ++i) {
            medians[i] = median_of(taken[0][i], taken[1][i], taken[2][i]);
        }
        for (Index i = 0; i < some; ++i) values[k + i] = static_cast<Value>(medians[i]);
    }
}

// The channel's origin. Means are kept relative to it until they are final; where mean/std is large
// they would otherwise lose, each time they are rounded, what separates one chunk's mean from
// another's.
template <class T>
BNEXT_FORCE_INLINE double origin_of(const View<T>& x, const Tiling& tiling, Index c) {
    return usual_value(x, Tile{0, tiling.outer(), 0, tiling.inner()}, c);
}

// The origins of several channels.
template <class T>
BNEXT_FORCE_INLINE void set_origins(const View<T>& x, const Tiling& tiling, Index first,
                                    Index channels, double* origins) {
    set_usual_values(x, Tile{0, tiling.outer(), 0, tiling.inner()}, first, channels, origins);
}

}  // namespace bnext::cpu
