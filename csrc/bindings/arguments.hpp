// Arguments that are not arrays, and what is refused whatever it is: errors name the argument, what
// was expected and what came. All of this needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <span>
#include <string>

#include "core/errors.hpp"
#include "core/problem.hpp"

namespace bnext::bindings {

namespace py = pybind11;

[[noreturn]] inline void type_error(const std::string& text) { throw py::type_error(text); }
[[noreturn]] inline void value_error(const std::string& text) { throw py::value_error(text); }

std::string shape_text(std::span<const Index> shape);  // as Python prints a tuple
std::string type_name(py::handle object);

bool is_tracer(py::handle object);  // what JAX gives functions that it transforms

// A masked array, or a list with one in it: NumPy would drop the mask.
bool has_mask(py::handle object);
void refuse_mask(py::handle object, const char* name);

double take_real(py::handle object, const char* name);
double take_eps(py::handle object);
double take_momentum(py::handle object);
Index take_axis(py::handle object, std::size_t rank);  // normalised to 0..rank-1

}  // namespace bnext::bindings
