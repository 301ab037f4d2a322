// The bodies of group and instance normalization on a GPU, beside the CPU's in cell_calls.cpp.
#pragma once

#include "bindings/taking.hpp"

namespace bnext::bindings::gpu {

py::object cell_forward(Taken& taken);
py::object cell_backward(Taken& taken);
py::object cell_restored(Taken& taken);

}  // namespace bnext::bindings::gpu
