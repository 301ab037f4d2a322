// One function per group of bindings, for core_module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace bnext::bindings {

void register_errors();
void register_dlpack(pybind11::module_& m);
void register_saved(pybind11::module_& m);
void register_device_saved(pybind11::module_& m);
// The calls that compute, in the module, and in an engine for a GPU, to which they belong.
void register_calls(const pybind11::object& m, pybind11::handle engine = {});
void register_cell_calls(const pybind11::object& m, pybind11::handle engine = {});
void register_double_backward(const pybind11::object& m, pybind11::handle engine = {});
void register_phases(const pybind11::object& m, pybind11::handle engine = {});
void register_questions(const pybind11::object& m, pybind11::handle engine = {});
void register_row_saved(pybind11::module_& m);
void register_rows(pybind11::module_& m);
void register_gpu_rows(const pybind11::object& calls, pybind11::handle engine);
void register_device_row_saved(pybind11::module_& m);
void register_checks(pybind11::module_& m);
void register_engines(pybind11::module_& m);
void register_runtime(pybind11::module_& m);
void register_sync(pybind11::module_& m);
void register_foreign(pybind11::module_& m);
void register_emulated_programs(pybind11::module_& m);
void register_unchanged(pybind11::module_& m);
void register_layer_call(pybind11::module_& m);  // behind register_calls

}  // namespace bnext::bindings
