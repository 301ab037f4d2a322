// How calls of layer and RMS normalization take their arguments in, on the CPU and on a GPU.
#pragma once

#include <span>
#include <vector>

#include "bindings/fastcall.hpp"
#include "core/error.hpp"
#include "intake/intake.hpp"

namespace bnext::bindings {

using intake::Intake;

inline std::vector<Index> take_normalized_shape(py::handle object) {
    constexpr const char* kName = "normalized_shape";
    if (PyIndex_Check(object.ptr()) != 0) return {intake::take_integer(object, kName)};
    if (!py::isinstance<py::sequence>(object) || py::isinstance<py::str>(object)) {
        type_error(kName, ": expected an integer or a sequence of integers, got ",
                   intake::type_name(object));
    }
    std::vector<Index> shape;
    for (const py::handle extent : object) shape.push_back(intake::take_integer(extent, kName));
    return shape;
}

inline bool truth_of(py::handle flag) { return flag && PyObject_IsTrue(flag.ptr()) != 0; }

// None; or what follows normalization: residual, activation, negative_slope.
inline void take_row_epilogue(Intake& call, py::handle object) {
    if (!object || object.is_none()) return;
    const auto parts = py::reinterpret_borrow<py::tuple>(object);
    call.read(Role::residual, parts[0]);
    call.call.fused.activation = intake::take_activation(parts[1]);
    call.call.fused.negative_slope = intake::take_real(parts[2], "negative_slope");
}

// x, the parameters and the epilogue of a forward pass, or of a phase of it, of rows.
inline void take_rows(Intake& call, std::span<const Index> shape, py::handle x, py::handle weight,
                      py::handle bias, py::handle eps, py::handle out, py::handle epilogue) {
    call.call.normalized_shape = shape;
    call.lead(Role::x, x);
    call.read(Role::weight, weight);
    call.read(Role::bias, bias);
    take_row_epilogue(call, epilogue);
    if (eps.is_none()) {
        const bool wide = call[Role::x].is(DType::float64);
        call.call.eps = wide ? 0x1p-52 : 0x1p-23;
    } else {
        call.eps(eps);
    }
    call.write(Role::out, out);
}

inline constexpr Signature kRowsForward{
    "rows_forward",
    "x, normalized_shape, weight, bias, eps, out, centered, plain=False, epilogue=None",
    "y and RowSaved: rows normalized by themselves. With `plain`, TypeError for a tensor that is\n"
    "not plain; what autograd would record is not asked. eps None: the machine epsilon of what\n"
    "elementwise arithmetic is in."};

inline constexpr Signature kRowsBackward{
    "rows_backward",
    "dy, x, saved, weight, out, centered, plain=False, wants_parameters=True, residual=None, "
    "divided=None",
    "dx, dweight and dbias; without the last where rows are not centered; and the gradient of\n"
    "the residual where there was one. Without `wants_parameters` the gradients of parameters\n"
    "are not computed, and None. divided: sum_dy and sum_dy_xmu as arrays that the sums of g and\n"
    "of g * xhat of each row are put into, and nothing else is done; or these and how many values\n"
    "a row has, whose sums they are."};

inline constexpr Signature kRowsRestored{
    "rows_restored",
    "x, rows, normalized_shape, eps, centered, weight=None, bias=None, epilogue=None",
    "RowSaved, from x and mean, mean_low and rstd of its rows as an array of float64, shape\n"
    "(3, N); and from the parameters and what followed normalization."};

}  // namespace bnext::bindings
