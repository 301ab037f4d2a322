// Saved: what a forward call leaves for its backward call. Not the activations themselves; the
// caller has x, and hands it over again.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "bindings/arrays.hpp"
#include "core/dtype.hpp"

namespace bnext::bindings {

struct Saved {
    DType dtype = DType::float32;
    std::vector<Index> shape;
    Index channel_axis = 0;
    double eps = 0;
    bool batch_statistics = true;  // false: mean and var were given, and are constants
    Index count = 0;               // values per channel behind mean and m2; 0 if they were given
    std::vector<double> mean, m2, var, rstd;
    std::uint64_t fingerprint = 0;

    // Throws unless x may be the input this was made from.
    void check_input(const Array& x) const;
};

// A hash of eight elements of x and where they are: enough to notice another array, or that x was
// overwritten since, at the price of eight reads.
std::uint64_t fingerprint_of(const Array& x);

}  // namespace bnext::bindings
