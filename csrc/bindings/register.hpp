// One function per group of bindings; core_module.cpp lists them, and cuda_module.cpp the last.
#pragma once

#include <pybind11/pybind11.h>

namespace bnext::bindings {

void register_errors();
void register_dlpack(pybind11::module_& m);
void register_saved(pybind11::module_& m);
void register_calls(pybind11::module_& m);
void register_phases(pybind11::module_& m);
void register_checks(pybind11::module_& m);
void register_runtime(pybind11::module_& m);
void register_sync(pybind11::module_& m);
void register_cuda_tensors(pybind11::module_& m);

}  // namespace bnext::bindings
