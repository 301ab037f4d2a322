// Weights of positions (weights.hpp) made for a call, with memory from the pool. Kernels take
// Weights: they know no pool, and throw nothing.
#pragma once

#include <cstdint>
#include <span>

#include "cpu/pool_array.hpp"
#include "cpu/weights.hpp"

namespace bnext::cpu {

// Weights, and the memory that they refer to.
template <class C>
class OwnWeights {
public:
    // By the numbers of positions: whether each counts (0 or 1), and its weight (none: 1).
    OwnWeights(const Problem& problem, std::span<const std::uint8_t> counts,
               std::span<const C> weights, Outside outside);
    OwnWeights(const OwnWeights&) = delete;
    OwnWeights& operator=(const OwnWeights&) = delete;

    [[nodiscard]] const Weights<C>& get() const { return weights_; }

private:
    PoolArray<std::uint16_t> words_;
    PoolArray<C> each_;
    PoolArray<Index> counted_;
    PoolArray<TileOfWeights> tiles_;
    Weights<C> weights_;
};

}  // namespace bnext::cpu
