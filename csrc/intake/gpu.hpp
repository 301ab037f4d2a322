// Gpu: the device of a call whose arrays are on a GPU, all of one library.
#pragma once

#include <optional>

#include "intake/library.hpp"

namespace bnext::intake {

struct Gpu {
    const Library* library;
    std::int32_t index;
    py::str where;                       // as errors call it
    py::object device_of;                // the device of an address
    std::optional<TensorReader> reader;  // of plain tensors there, where the library has the table
};

}  // namespace bnext::intake
