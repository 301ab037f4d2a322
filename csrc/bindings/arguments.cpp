#include "bindings/arguments.hpp"

#include <algorithm>
#include <cmath>

namespace bnext::bindings {
namespace {

std::string number_text(double value) { return py::str(py::float_(value)); }

}  // namespace

std::string shape_text(std::span<const Index> shape) {
    std::string text = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (i > 0) text += ", ";
        text += std::to_string(shape[i]);
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

bool is_tracer(py::handle object) {
    const py::object base = py::type::of(object).attr("__mro__");
    return std::ranges::any_of(base, [](py::handle type) {
        return py::cast<std::string>(type.attr("__name__")) == "Tracer" &&
               py::cast<std::string>(py::str(type.attr("__module__"))).starts_with("jax");
    });
}

namespace {

// Lists deeper than arrays have axes are no arrays, and may contain themselves.
bool holds(py::handle object, py::handle kind, std::size_t depth) {
    if (PyList_Check(object.ptr()) == 0 && PyTuple_Check(object.ptr()) == 0) {
        return py::isinstance(object, kind);
    }
    return depth < kMaxAxes &&
           std::ranges::any_of(
               object, [&](py::handle item) { return holds(item, kind, depth + 1); });
}

}  // namespace

// Where nobody has imported the module, there is no masked array.
bool has_mask(py::handle object) {
    const auto ma =
        py::reinterpret_steal<py::object>(PyImport_GetModule(py::str("numpy.ma").ptr()));
    if (!ma) {
        PyErr_Clear();
        return false;
    }
    return holds(object, ma.attr("MaskedArray"), 0);
}

void refuse_mask(py::handle object, const char* name) {
    if (!has_mask(object)) return;
    type_error(concat(name, ": expected an array without a mask, got a MaskedArray (", name,
                      ".filled(value) has none)"));
}

double take_real(py::handle object, const char* name) {
    // NumPy's complex128, which is Python's as well, would become its real part.
    if (PyFloat_Check(object.ptr()) == 0 &&
        (PyComplex_Check(object.ptr()) != 0 || has_mask(object))) {
        type_error(concat(name, ": expected a real number, got ", type_name(object)));
    }
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        type_error(concat(name, ": expected a real number, got ", type_name(object)));
    }
    return value;
}

double take_eps(py::handle object) {
    const double eps = take_real(object, "eps");
    if (!(eps >= 0.0) || std::isinf(eps)) {
        value_error(concat("eps: expected a finite number >= 0, got ", number_text(eps)));
    }
    return eps;
}

double take_momentum(py::handle object) {
    const double momentum = take_real(object, "momentum");
    if (!std::isfinite(momentum)) {
        value_error(
            concat("momentum: expected a finite number or None, got ", number_text(momentum)));
    }
    return momentum;
}

Index take_axis(py::handle object, std::size_t rank) {
    if (PyIndex_Check(object.ptr()) == 0) {
        type_error(concat("channel_axis: expected an integer, got ", type_name(object)));
    }
    // Out of range for a C long clips, and is out of range here too.
    const auto axis = static_cast<Index>(PyNumber_AsSsize_t(object.ptr(), nullptr));
    const auto n = static_cast<Index>(rank);
    if (axis < -n || axis >= n) {
        value_error(concat("channel_axis: expected an axis of a ", n, "-dimensional array (", -n,
                           " to ", n - 1, "), got ", std::string(py::str(object))));
    }
    return axis < 0 ? axis + n : axis;
}

}  // namespace bnext::bindings
