// How calls take in what many of them are given: x, parameters, running statistics, flags.
#pragma once

#include "bindings/bodies.hpp"
#include "bindings/fastcall.hpp"

namespace bnext::bindings {

inline bool flag_of(py::handle object, bool otherwise) {
    if (!object) return otherwise;
    if (object.ptr() == Py_True) return true;
    const int truth = PyObject_IsTrue(object.ptr());
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

inline py::handle or_none(py::handle object) { return object ? object : py::handle(Py_None); }

inline void take_running(Intake& call, py::handle mean, py::handle var, py::handle momentum,
                         py::handle counter) {
    call.write(Role::running_mean, mean);
    call.write(Role::running_var, var);
    call.momentum(momentum);
    call.count(counter);
}

// What every normalization takes.
inline void take_x(Intake& call, py::handle x, py::handle eps, py::handle channel_axis) {
    call.lead(Role::x, x);
    call.axis(channel_axis);
    call.eps(eps);
}

inline void take_affine(Intake& call, py::handle weight, py::handle bias) {
    call.read(Role::weight, weight);
    call.read(Role::bias, bias);
}

// What every backward pass takes, by what forward has saved.
inline void take_backward(Intake& call, py::handle dy, py::handle x, py::handle weight,
                          py::handle out) {
    call.lead(Role::x, x);
    call.read(Role::dy, dy);
    call.read(Role::weight, or_none(weight));
    call.write(Role::out, or_none(out));
}

// y from statistics in `saved`, for any dtype.
inline py::object apply_norm_of(Intake& call, const Results& results, Saved& saved) {
    py::object y = with_dtype(call[Role::x].dtype(), [&](auto type) {
        return apply_norm_body<decltype(type)>(call, results, saved);
    });
    call.count_writes();
    return y;
}

}  // namespace bnext::bindings
