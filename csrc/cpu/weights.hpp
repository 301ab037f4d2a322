// Weights of positions: how often each (outer, inner) of a Problem counts, for all channels alike.
// A position that counts has a weight above 0; the values at others are never part of a sum, and
// are selected away rather than multiplied by 0, since NaN times 0 is NaN.
//
// A position's number is outer * problem.inner + inner. Sums go by the tiles of the Problem, of
// which small planes are walked as planes (`problem_of_positions`): columns of a row that is an
// example (core/tiling.hpp) have weights of their own.
#pragma once

#include <cstdint>

#include "core/problem.hpp"
#include "core/tiling.hpp"
#include "cpu/flag_bits.hpp"

namespace bnext::cpu {

// What y has at positions that do not count: 0, the formula's value, or x. Gradients there are 0.
enum class Outside : std::uint8_t { zero, normalized, unchanged };

struct Place {
    Index outer, inner;
};

// The first, the middle and the last of the positions of a tile, or of all, that count: where a
// pilot or an origin is taken from.
struct UsualPlaces {
    Place first, middle, last;
};

struct TileOfWeights {
    double weight;  // of its positions together
    Index begin;    // its first position among `counted`
    UsualPlaces usual;
};

// C: the type that the kernels compute in.
template <class C>
struct Weights {
    FlagBits bits;               // by the position's number: whether it counts
    const C* each = nullptr;     // by the position's number; null: 1 of all that count
    const Index* counted;        // the numbers of positions that count, in their order
    const TileOfWeights* tiles;  // of the Problem's Tiling, and one behind the last
    UsualPlaces usual;
    double total;
    Outside outside = Outside::zero;
    Index inner;

    [[nodiscard]] BNEXT_FORCE_INLINE Index number(Index o, Index i) const { return o * inner + i; }
    [[nodiscard]] BNEXT_FORCE_INLINE bool counts(Index o, Index i) const {
        return flag_at(bits, number(o, i));
    }
    [[nodiscard]] BNEXT_FORCE_INLINE double weight(Index o, Index i) const {
        return each != nullptr ? static_cast<double>(each[number(o, i)]) : 1.0;
    }
};

// The Problem as positions have it: no columns.
inline Problem problem_of_positions(Problem problem) {
    problem.adjoining = false;
    return problem;
}

}  // namespace bnext::cpu
