#include "bindings/device_row_saved.hpp"

#include <pybind11/stl.h>

#include "bindings/register.hpp"
#include "bindings/row_saved.hpp"

namespace bnext::bindings {

const DeviceRowSaved& take_device_row_saved(py::handle object, const Engine& engine,
                                            bool centered) {
    if (py::isinstance<RowSaved>(object)) {
        type_error("saved: made from an input on the CPU, got x on ", std::string(engine.where));
    }
    const char* const names[] = {"rms_norm_forward", "layer_norm_forward"};
    if (!py::isinstance<DeviceRowSaved>(object)) {
        type_error("saved: expected what ", names[centered], " returned, got ",
                   intake::type_name(object));
    }
    const auto& saved = py::cast<const DeviceRowSaved&>(object);
    if (saved.centered != centered) {
        value_error("saved: expected what ", names[centered], " returned, got what ",
                    names[!centered], " did");
    }
    if (!saved.where.equal(engine.where)) {
        type_error("saved: expected an array on ", std::string(engine.where),
                   ", like x, got one on ", std::string(saved.where));
    }
    return saved;
}

namespace {

template <int which>
py::object statistic(const DeviceRowSaved& saved) {
    return saved.rows[py::make_tuple(which, py::ellipsis())];
}

py::tuple state_of_rows(const DeviceRowSaved& s) {
    return py::make_tuple(s.rows, s.where, s.dtype_object, name_of(s.dtype), s.shape, s.first,
                          s.centered, s.eps, name_of(s.fused.activation), s.fused.negative_slope,
                          s.fused.residual, s.weight, s.bias);
}

DeviceRowSaved rows_of_state(const py::tuple& state) {
    constexpr const char* kWrongState = "state: expected the state of a pickled DeviceRowSaved";
    if (state.size() != 13) value_error(kWrongState);
    const int activation = activation_number(py::cast<std::string>(state[8]));
    const auto shape = py::cast<std::vector<Index>>(state[4]);
    const auto first = py::cast<Index>(state[5]);
    const bool possible = first >= 0 && first < static_cast<Index>(shape.size());
    if (activation == kActivations || !possible) value_error(kWrongState);
    return {state[0],
            state[1],
            state[2],
            dtype_named(py::cast<std::string>(state[3])),
            shape,
            first,
            py::cast<bool>(state[6]),
            py::cast<double>(state[7]),
            {static_cast<Activation>(activation), py::cast<double>(state[9]),
             py::cast<bool>(state[10])},
            state[11],
            state[12]};
}

}  // namespace

void register_device_row_saved(py::module_& m) {
    py::class_<DeviceRowSaved> type(
        py::handle(), "DeviceRowSaved",
        "What a forward call of layer or RMS normalization on a GPU leaves for its backward\n"
        "call: as `RowSaved`, on the device.\n\n"
        "Calls make it. Whether `x` has changed since is not noticed here, as it is on the CPU:\n"
        "to look at its elements would mean to wait for the device. Its arrays are of float64, of\n"
        "the library and on the device of `x`.");
    type.def_readonly("rows", &DeviceRowSaved::rows,
                      "mean, mean_low and rstd: shape 3 and behind it the shape of x without the\n"
                      "normalized axes.")
        .def_property_readonly("mean", &statistic<0>,
                               "Mean of each row, of the shape of x without the normalized axes; "
                               "0 of RMS\nnormalization.")
        .def_property_readonly("mean_low", &statistic<1>,
                               "Low part of the mean: the exact mean is mean + mean_low. 0 but for "
                               "float64 data.")
        .def_property_readonly("rstd", &statistic<2>,
                               "1 / sqrt(var + eps) of each row, 0 where that has no value; of RMS "
                               "normalization\nwith the mean of squares as var.")
        .def_readonly("eps", &DeviceRowSaved::eps, "What was added to the variance (float).")
        .def_readonly("centered", &DeviceRowSaved::centered,
                      "Whether the mean was subtracted (bool): not by RMS normalization.")
        .def_property_readonly(
            "shape", [](const DeviceRowSaved& s) { return intake::tuple_of_integers(s.shape); },
            "Shape of x (tuple of int).")
        .def_property_readonly(
            "normalized_shape",
            [](const DeviceRowSaved& s) { return intake::tuple_of_integers(s.normalized()); },
            "Lengths of the normalized axes, the last of x (tuple of int).")
        .def_readonly("dtype", &DeviceRowSaved::dtype_object, "Dtype of x, as its library has it.")
        .def_property_readonly(
            "activation",
            [](const DeviceRowSaved& s) -> py::object {
                if (s.fused.activation == Activation::none) return py::none();
                return py::str(name_of(s.fused.activation));
            },
            "Name of the activation that followed (str), or None.")
        .def_property_readonly(
            "residual", [](const DeviceRowSaved& s) { return s.fused.residual; },
            "Whether a residual was added (bool).")
        .def_property_readonly(
            "reads_residual", [](const DeviceRowSaved& s) { return s.facts().reads_residual(); },
            "Whether the backward pass needs the residual again (bool): after any activation.")
        .def("__repr__",
             [](const DeviceRowSaved& s) {
                 return concat("<bnext.DeviceRowSaved of a ", name_of(s.dtype), " input of shape ",
                               shape_text(s.shape), ", normalized_shape ",
                               shape_text(s.normalized()), ", on ", std::string(s.where), ">");
             })
        .def(py::pickle(&state_of_rows, &rows_of_state));  // for copies too
    type.attr("__module__") = "bnext";
    m.attr("DeviceRowSaved") = type;
}

}  // namespace bnext::bindings
