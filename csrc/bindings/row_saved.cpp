// RowSaved as Python has it: its attributes, pickles.
#include "bindings/row_saved.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "bindings/device_row_saved.hpp"
#include "bindings/register.hpp"
#include "intake/dlpack.hpp"

namespace bnext::bindings {

const RowSaved& take_row_saved(py::handle object, bool centered) {
    const char* name = centered ? "layer_norm_forward" : "rms_norm_forward";
    if (py::isinstance<DeviceRowSaved>(object)) {
        type_error("saved: made from an input on ",
                   std::string(py::cast<const DeviceRowSaved&>(object).where),
                   ", got x on the CPU");
    }
    if (!py::isinstance<RowSaved>(object)) {
        type_error("saved: expected what ", name, " returned, got ", intake::type_name(object));
    }
    const auto& saved = py::cast<const RowSaved&>(object);
    if (saved.centered != centered) {
        value_error("saved: expected what ", name, " returned, got what ",
                    centered ? "rms_norm_forward" : "layer_norm_forward", " did");
    }
    return saved;
}

namespace {

template <Index which>
py::object view_of(const py::object& self) {
    const auto& saved = py::cast<const RowSaved&>(self);
    std::vector<py::ssize_t> shape(saved.leading().begin(), saved.leading().end());
    py::array_t<double> array(shape, saved.row(which), self);
    array.attr("setflags")(py::arg("write") = false);
    return array;
}

py::object copy_of_rows(const RowSaved& saved) {
    return py::array_t<double>(
        {py::ssize_t{kRowStatistics}, static_cast<py::ssize_t>(saved.rows())}, saved.values.data());
}

// None; or what followed normalization.
py::object state_of(const std::shared_ptr<const RowEpilogue>& epilogue) {
    if (epilogue == nullptr) return py::none();
    const Fused& fused = epilogue->fused;
    return py::make_tuple(name_of(fused.activation), fused.negative_slope, fused.residual,
                          epilogue->residual_fingerprint, epilogue->weight, epilogue->bias);
}
py::tuple state_of(const RowSaved& s) {
    return py::make_tuple(name_of(s.dtype), s.shape, s.first, s.centered, s.eps, s.fingerprint,
                          copy_of_rows(s), state_of(s.epilogue));
}

constexpr const char* kWrongRows = "state: expected the state of a pickled RowSaved";

std::shared_ptr<const RowEpilogue> epilogue_of_state(const py::object& object, Index width) {
    if (object.is_none()) return nullptr;
    const auto state = py::cast<py::tuple>(object);
    if (state.size() != 6) value_error(kWrongRows);
    auto epilogue = std::make_shared<RowEpilogue>();
    const int number = activation_number(py::cast<std::string>(state[0]));
    if (number == kActivations) value_error(kWrongRows);
    epilogue->fused = {static_cast<Activation>(number), py::cast<double>(state[1]),
                       py::cast<bool>(state[2])};
    epilogue->residual_fingerprint = py::cast<std::uint64_t>(state[3]);
    epilogue->weight = py::cast<std::vector<double>>(state[4]);
    epilogue->bias = py::cast<std::vector<double>>(state[5]);
    for (const auto* const each : {&epilogue->weight, &epilogue->bias}) {
        if (!each->empty() && static_cast<Index>(each->size()) != width) value_error(kWrongRows);
    }
    return epilogue;
}

RowSaved row_saved_of_state(const py::tuple& state) {
    if (state.size() != 7 && state.size() != 8) value_error(kWrongRows);
    const auto shape = py::cast<std::vector<Index>>(state[1]);
    const auto first = py::cast<Index>(state[2]);
    const auto rows = py::cast<py::array_t<double, py::array::c_style>>(state[6]);
    const bool possible = first >= 0 && first < static_cast<Index>(shape.size()) &&
                          std::ranges::all_of(shape, [](Index extent) { return extent >= 0; });
    if (!possible) value_error(kWrongRows);
    RowSaved saved(dtype_named(py::cast<std::string>(state[0])), shape, first,
                   py::cast<bool>(state[3]), intake::take_eps(state[4]));
    saved.fingerprint = py::cast<std::uint64_t>(state[5]);
    if (static_cast<std::size_t>(rows.size()) != saved.values.size()) value_error(kWrongRows);
    std::copy_n(rows.data(), rows.size(), saved.values.data());
    if (state.size() == 8) saved.epilogue = epilogue_of_state(state[7], saved.problem().width);
    return saved;
}

}  // namespace

void register_row_saved(py::module_& m) {
    py::class_<RowSaved>(
        m, "RowSaved",
        "What a forward call of layer or RMS normalization leaves for its backward "
        "call: the\nstatistics of each row, and what is needed to notice another "
        "input. Read-only.")
        .def_property_readonly("mean", &view_of<0>,
                               "Mean of each row: array of float64, of the shape of x without the "
                               "normalized axes; 0 of RMS normalization.")
        .def_property_readonly("mean_low", &view_of<1>,
                               "Low part of the mean: the exact mean is mean + mean_low. 0 but for "
                               "float64 data.")
        .def_property_readonly("rstd", &view_of<2>,
                               "1 / sqrt(var + eps) of each row, 0 where that has no value; of RMS "
                               "normalization with the mean of squares as var.")
        .def_property_readonly("rows", &copy_of_rows,
                               "mean, mean_low and rstd as one array of float64, shape (3, rows): "
                               "a copy.")
        .def_readonly("eps", &RowSaved::eps, "What was added to the variance (float).")
        .def_readonly("centered", &RowSaved::centered,
                      "Whether the mean was subtracted (bool): not by RMS normalization.")
        .def_property_readonly(
            "shape", [](const RowSaved& s) { return intake::tuple_of_integers(s.shape); },
            "Shape of x (tuple of int).")
        .def_property_readonly(
            "normalized_shape",
            [](const RowSaved& s) { return intake::tuple_of_integers(s.normalized()); },
            "Lengths of the normalized axes, the last of x (tuple of int).")
        .def_property_readonly(
            "dtype", [](const RowSaved& s) { return intake::dlpack::descr_for(s.dtype, "dtype"); },
            "Dtype of x (numpy.dtype).")
        .def_property_readonly(
            "activation",
            [](const RowSaved& s) -> py::object {
                const bool any = s.epilogue && s.epilogue->fused.changes_backward();
                if (!any) return py::none();
                return py::str(name_of(s.epilogue->fused.activation));
            },
            "Name of the activation that followed (str), or None.")
        .def_property_readonly(
            "residual", [](const RowSaved& s) { return s.epilogue && s.epilogue->fused.residual; },
            "Whether a residual was added (bool).")
        .def_property_readonly("reads_residual", &RowSaved::reads_residual,
                               "Whether the backward pass needs the residual again (bool).")
        .def("__repr__",
             [](const RowSaved& s) {
                 return concat("<bnext.RowSaved of a ", name_of(s.dtype), " input of shape ",
                               shape_text(s.shape), ", normalized_shape ",
                               shape_text(s.normalized()), ">");
             })
        .def(py::pickle([](const RowSaved& s) { return state_of(s); }, &row_saved_of_state));
}

}  // namespace bnext::bindings
