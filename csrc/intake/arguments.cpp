#include "intake/arguments.hpp"

#include <cmath>

#include <algorithm>

namespace bnext::intake {

std::string type_name(py::handle object) { return Py_TYPE(object.ptr())->tp_name; }

py::tuple tuple_of_integers(std::span<const Index> values) {
    py::tuple tuple(values.size());
    for (std::size_t k = 0; k < values.size(); ++k) tuple[k] = py::int_(values[k]);
    return tuple;
}

void raise_from(py::error_already_set& cause, PyObject* type, const std::string& text) {
    py::raise_from(cause, type, text.c_str());
    throw py::error_already_set();
}

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
    type_error(name, ": expected an array without a mask, got a MaskedArray (", name,
               ".filled(value) has none)");
}

double take_real(py::handle object, const char* name) {
    if (PyFloat_CheckExact(object.ptr()) != 0) return PyFloat_AS_DOUBLE(object.ptr());
    // NumPy's complex128, which is Python's as well, would become its real part.
    if (PyFloat_Check(object.ptr()) == 0 &&
        (PyComplex_Check(object.ptr()) != 0 || has_mask(object))) {
        type_error(name, ": expected a real number, got ", type_name(object));
    }
    const double value = PyFloat_AsDouble(object.ptr());
    if (value == -1.0 && PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        type_error(name, ": expected a real number, got ", type_name(object));
    }
    return value;
}

double take_eps(py::handle object) {
    const double eps = take_real(object, "eps");
    check_eps(eps);
    return eps;
}

Activation take_activation(py::handle object) {
    if (object.is_none()) return Activation::none;
    const auto expected = [] {
        std::string names;
        for (int k = 1; k < kActivations; ++k) {
            names += concat("'", kActivationNames[k], "', ");
        }
        return names;
    };
    if (!py::isinstance<py::str>(object)) {
        type_error("activation: expected ", expected(), "or None, got ", type_name(object));
    }
    const auto name = py::cast<std::string>(object);
    const int number = activation_number(name);
    if (number == 0 || number == kActivations) {
        value_error("activation: expected ", expected(), "or None, got '", name, "'");
    }
    return static_cast<Activation>(number);
}

double take_momentum(py::handle object) {
    const double momentum = take_real(object, "momentum");
    check_momentum(momentum);
    return momentum;
}

py::object number_of(double value) {
    constexpr double kWhole = 0x1p63;
    if (value == std::trunc(value) && std::abs(value) < kWhole) {
        return py::int_(static_cast<Index>(value));
    }
    return py::float_(value);
}

Index take_integer(py::handle object, const char* name) {
    if (PyIndex_Check(object.ptr()) == 0) {
        type_error(name, ": expected an integer, got ", type_name(object));
    }
    return static_cast<Index>(PyNumber_AsSsize_t(object.ptr(), nullptr));
}

void take_axis_of(Call& call, py::handle object) {
    const Index axis = call.channel_axis = take_integer(object, "channel_axis");
    // An axis that was clipped is out of range here too.
    if (axis == PY_SSIZE_T_MAX || axis == PY_SSIZE_T_MIN || PyBool_Check(object.ptr()) != 0) {
        call.axis_text = py::str(object);
    }
}

Index take_axis(py::handle object, std::size_t rank) {
    Call call(Function::moments);
    take_axis_of(call, object);
    const auto n = static_cast<Index>(rank);
    check_axis(call.channel_axis, n, call.axis_text);
    return call.channel_axis < 0 ? call.channel_axis + n : call.channel_axis;
}

}  // namespace bnext::intake
