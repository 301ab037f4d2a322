// Arguments that are not arrays, and objects that are refused whatever they are: errors name the
// argument, what was expected and what came. All of this needs the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <span>
#include <string>

#include "core/call.hpp"
#include "core/error.hpp"

namespace bnext::intake {

namespace py = pybind11;

std::string type_name(py::handle object);
py::tuple tuple_of_integers(std::span<const Index> values);

// Raises an error of Python's as the effect of another one.
[[noreturn]] void raise_from(py::error_already_set& cause, PyObject* type, const std::string& text);

bool is_tracer(py::handle object);  // what JAX gives functions that it transforms

// A masked array, or a list with one in it: NumPy would drop the mask.
bool has_mask(py::handle object);
void refuse_mask(py::handle object, const char* name);

double take_real(py::handle object, const char* name);
Index take_integer(py::handle object, const char* name);  // clipped
// An integer, or where it is no whole number, a float.
py::object number_of(double value);
double take_eps(py::handle object);
double take_momentum(py::handle object);
Activation take_activation(py::handle object);  // of a name, or None
// An axis as it is given; its range is left to check().
void take_axis_of(Call& call, py::handle object);
Index take_axis(py::handle object, std::size_t rank);  // checked, from the front

}  // namespace bnext::intake
