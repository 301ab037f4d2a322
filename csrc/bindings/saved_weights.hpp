// SavedWeights: which positions of x count, and how much, as a forward call was told, for its
// backward call. A copy: 1 byte a position, and its weight where there are any; x has C times as
// many values.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cpu/own_weights.hpp"

namespace bnext::bindings {

struct SavedWeights {
    // In C order over the axes of x but the channels'.
    std::vector<std::uint8_t> counts;  // 0 or 1
    std::vector<double> weights;       // values of the parameters' dtype; empty: 1
    cpu::Outside outside = cpu::Outside::zero;
};
using SharedWeights = std::shared_ptr<const SavedWeights>;

// From what `bnext.weighting` makes of the arguments: counts (bytes), weights (float64) or None,
// "zero", "normalized" or "unchanged", the name of the argument. Of None: null.
SharedWeights take_weighting(pybind11::handle object, const char** name);

// As a pickle has it, and back; null for a state that is none.
pybind11::object state_of(const SavedWeights& saved);
SharedWeights weights_of_state(pybind11::handle state, std::size_t positions);

// The weights of a call by the numbers of its positions. `axis`: the channels'; `strides`: of the
// first array of the call.
template <class C>
std::unique_ptr<cpu::OwnWeights<C>> own_weights(const SavedWeights& saved, const Problem& problem,
                                                std::span<const Index> shape, Index axis,
                                                AxisStrides strides, bool zero_outside);

}  // namespace bnext::bindings
